"""Records of cells from files that anyone may have written: checked before anything is made of them."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from panning.foundation.config import first_error
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord, read_records
from panning.jobs.outcome import CellOutcome
from panning.jobs.spec import CellSpec, is_key_of
from panning.jobs.ways import Way
from panning.training.recipe import Start

#: What tables call the mask that a search has chosen.
CHOSEN = "search's choice"


@dataclass(frozen=True)
class NamedCell(RunRecord):
    """A cell that tables show under a name of its own."""

    name: str = ""


def row_name(config: dict[str, Any]) -> str:
    """The name of a cell's row in tables, from the config of the cell's record."""
    return Way(by=config["by"], all_alive=config["all_alive"]).label


def check_cell(record: RunRecord) -> RunRecord:
    """The record of a cell, with the defaults of keys that its task or recipe lacks.

    Raises:
        PanningError: if its key is not that of its config, or something that tables need is missing or no such thing.
    """
    try:
        if not is_key_of(record.key, record.kind, record.config):
            raise ValueError("the key is not that of this config")
        config = CellSpec.model_validate_json(json.dumps(record.config), strict=True)
        outcome = CellOutcome.model_validate_json(json.dumps(record.metrics), strict=True)
        written = config.model_dump(mode="json")
        if lacking := [name for name in written if name not in record.config]:
            raise ValueError(f"its config lacks {', '.join(lacking)}")
        if written["by"] != record.config["by"]:
            raise ValueError("'by' must have all numbers of a dynamic method, and nothing else that is as by default")
        if missing := outcome.lacking(config.test):
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValidationError as error:
        raise PanningError(f"The record {record.key[:20]} is no cell of a benchmark: {first_error(error)}.") from None
    except (ValueError, RecursionError) as error:
        raise PanningError(f"The record {record.key[:20]} is no cell of a benchmark: {error}.") from None
    whole = {"task": config.task.model_dump(mode="json"), "recipe": config.recipe.model_dump(mode="json")}
    return replace(record, config={**record.config, **whole})


def join_records(files: Sequence[Path]) -> dict[str, RunRecord]:
    """The records of files, or of folders' ``records.jsonl``, by key; cells are checked.

    Raises:
        PanningError: if two records of one cell say different things, timing apart.
    """
    found: dict[str, RunRecord] = {}
    for path in files:
        for record in read_records(path / "records.jsonl" if path.is_dir() else path):
            if record.kind == "cell":
                check_cell(record)
            other = found.setdefault(record.key, record)
            if without_timing(other) != without_timing(record):
                raise PanningError(
                    f"{path} holds another result for the cell {record.key} ({record.config.get('by')}, density "
                    f"{record.config.get('density')}, seed {record.config.get('seed')}) than a record before it. One of the "
                    "machines computes something else: see panning reproduce."
                )
    return found


def read_cells(files: Sequence[Path]) -> list[RunRecord]:
    """All cells of files or folders, each once.

    Raises:
        PanningError: as ``join_records``.
    """
    return [check_cell(record) for record in join_records(files).values() if record.kind == "cell"]


def without_timing(record: RunRecord) -> dict[str, Any]:
    """What a record says that must be the same wherever and however often its cell is run."""
    return {key: value for key, value in record.metrics.items() if key != "timing"}


# --- cells that belong together ---

#: Task, recipe and of what densities are shares, as text; name; density.
Place = tuple[str, str, float]


def by_place(cells: Iterable[RunRecord]) -> tuple[dict[Place, list[RunRecord]], dict[Place, list[RunRecord]]]:
    """The cells that read the test part, a row's together, and the trials of rates and starts that were made for them.

    Where rates were tried, the recipe's text has none, and of a row only the cells count whose rate is best in the trials: a
    grid that was extended may have settled on another than before. Cells at a rate that was not tried are rows of their own.
    So it is with starts: where they were tried the name has none, else they are part of the name, and never of the text.
    """
    cells = list(cells)
    n_agents = len({cell.config["policy"] for cell in cells} - {None})

    def place(cell: RunRecord, rate: float | None, start: str) -> Place:
        config, policy = cell.config, cell.config["policy"]
        name = cell.name if isinstance(cell, NamedCell) else row_name(config)
        name += f" {policy[:6]}" if policy and n_agents > 1 else ""
        recipe = {key: value for key, value in config["recipe"].items() if key != "start"} | {"learning_rate": rate}
        text = json.dumps([config["task"], recipe, config.get("shares_of", "weights")], sort_keys=True)
        name += f", {start}" if start and not isinstance(cell, NamedCell) else ""
        return text, name, config["density"]

    starts: dict[Place, set[str]] = defaultdict(set)
    for cell in cells:
        if not cell.config["test"]:
            starts[place(cell, None, "")].add(start_of(cell))

    def at_any(cell: RunRecord) -> Place:
        anywhere = place(cell, None, "")
        return anywhere if len(starts[anywhere]) > 1 else place(cell, None, start_of(cell))

    tried: dict[Place, list[RunRecord]] = defaultdict(list)
    for cell in cells:
        if not cell.config["test"]:
            tried[at_any(cell)].append(cell)
    tuned: dict[str, set[float]] = defaultdict(set)
    for (text, _, _), trials in tried.items():
        tuned[text] |= {setting_of(trial)[0] for trial in trials}
    final: dict[Place, list[RunRecord]] = defaultdict(list)
    for cell in cells:
        if cell.config["test"]:
            where, (rate, start) = at_any(cell), setting_of(cell)
            untried = len(starts[place(cell, None, "")]) > 1 and start not in starts[place(cell, None, "")]
            where = place(cell, None, start) if untried else where
            final[where if rate in tuned[where[0]] else place(cell, rate, start)].append(cell)
    final = {where: _of_best(some, tried.get(where, [])) for where, some in final.items()}
    return final, {where: some for where, some in tried.items() if where in final}


def _of_best(cells: list[RunRecord], trials: list[RunRecord]) -> list[RunRecord]:
    settings = sorted({setting_of(cell) for cell in cells})
    if len(settings) == 1:
        return cells

    def score(setting: tuple[float, str]) -> float:
        """As a grid chooses: on the validation part, a failure as nothing."""
        values = [trial.metrics.get("accuracy", 0.0) for trial in trials if setting_of(trial) == setting]
        return statistics.fmean(values) if values else -1.0

    best = max(settings, key=score)
    return [cell for cell in cells if setting_of(cell) == best]


def setting_of(cell: RunRecord) -> tuple[float, str]:
    """The parts of a cell's recipe that a grid tries on the validation part: learning rate, and the label of the start."""
    return float(cell.config["recipe"]["learning_rate"]), start_of(cell)


def start_of(cell: RunRecord) -> str:
    """The label of the start of a cell's kept weights; empty if they start as drawn, or if the network is dense."""
    start = cell.config["recipe"].get("start") if cell.config["by"] is not None else None
    return "" if start is None else Start.model_validate(start).label


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe in a few words."""
    rate = recipe["learning_rate"]
    images = f", {recipe['n_images']:,} images an epoch" if recipe["n_images"] else ""
    epochs = "1 epoch" if recipe["epochs"] == 1 else f"{recipe['epochs']:g} epochs"
    return f"{epochs}, {recipe['schedule']} at {'what was tried' if rate is None else f'{rate:g}'}{images}"
