"""Records of cells from files that anyone may have written: checked before anything is made of them."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from panning.compare.grid import Contender, DynamicSpec, row_name
from panning.episode.actions import ActionSpec
from panning.foundation.config import Config
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord, content_key, read_records
from panning.masks.masks import Density
from panning.tasks import TaskSpec, check_task_names
from panning.training import Recipe

Share = Annotated[float, Field(ge=0, le=1)]
#: More than anybody has; beyond 2**53 a count is no exact float.
MOST = 2**53
Count = Annotated[int, Field(ge=0, le=MOST)]


class _Agent(Config):
    policy: Literal["agent"]
    n_rounds: Annotated[int, Field(ge=1)]
    action: ActionSpec
    dynamic: DynamicSpec | None = None
    members: Annotated[int, Field(ge=1, le=100)] = 1


class _CellConfig(Config):
    """What ``cell_job`` writes."""

    task: TaskSpec
    seed: int
    density: Density
    by: dict[str, Any] | None
    all_alive: bool
    policy: str | None
    recipe: Recipe
    test: bool

    _names = field_validator("task")(check_task_names)

    @model_validator(mode="after")
    def _by_a_row(self) -> _CellConfig:
        by = self.by
        if by is not None and "policy" in by:
            _Agent.model_validate_json(json.dumps(by), strict=True)
        elif by is not None:
            Contender.model_validate_json(json.dumps(by), strict=True)
        if (
            by is not None
            and "dynamic" in by
            and by["dynamic"] != DynamicSpec.model_validate(by["dynamic"]).model_dump(mode="json")
        ):
            raise ValueError("a dynamic method stands with all its numbers")
        if (self.policy is not None) != (by is not None and "policy" in by):
            raise ValueError("an agent's row names its policy file, and no other does")
        return self


class _Timing(Config):
    prune_s: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    train_s: Annotated[float, Field(ge=1e-6, le=MOST)] | None = None


class _Metrics(Config):
    """What tables read of a cell; where it failed, any of it may lack."""

    model_config = ConfigDict(extra="ignore")

    error: str | None
    effective_density: Share | None = None
    n_dead_units: Count | None = None
    collapsed_layers: list[str] | None = None
    compute_left: Annotated[float, Field(ge=0)] | None = None
    layer_densities: list[tuple[str, Share]] | None = None
    mask: str | None = None
    data: str | None = None
    data_label: str | None = None
    n_train: Annotated[int, Field(ge=1, le=MOST)] | None = None
    search_images: Count | None = None
    timing: _Timing | None = None
    images_seen: Annotated[int, Field(ge=1, le=MOST)] | None = None
    train_epochs: Annotated[float, Field(ge=0, le=MOST)] | None = None
    accuracy: Share | None = None
    loss: float | None = None
    test_accuracy: Share | None = None
    test_accuracy_of_best: Share | None = None
    history: Annotated[list[dict[str, float]], Field(min_length=1)] | None = None

    def lacking(self, test: bool) -> list[str]:
        """What a cell that did not fail must have."""
        of_test = {"test_accuracy", "test_accuracy_of_best"}
        may_lack = {"error", "train_epochs"} | (set() if test else of_test)
        missing = [name for name, value in self if value is None and name not in may_lack]
        if self.timing is not None and self.timing.train_s is None:
            missing.append("timing.train_s")
        if any("epoch" not in entry for entry in self.history or ()):
            missing.append("history.epoch")
        if any(entry.get("density", 1.0) <= 0 for entry in self.history or ()):
            missing.append("history.density above 0")
        return missing


def check_cell(record: RunRecord) -> RunRecord:
    """The record of a cell, with the defaults of keys that its task or recipe lacks.

    Raises:
        PanningError: if its key is not that of its config, or something that tables need is missing or no such thing.
    """
    try:
        if record.key != content_key({"kind": record.kind, **record.config}):
            raise ValueError("the key is not that of this config")
        config = _CellConfig.model_validate_json(json.dumps(record.config), strict=True)
        metrics = _Metrics.model_validate_json(json.dumps(record.metrics), strict=True)
        if metrics.error is None and (missing := metrics.lacking(config.test)):
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PanningError(
            f"The record {record.key[:20]} is no cell of a benchmark: {place}: {first['msg']}."
        ) from None
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

#: Task and recipe as text, name, density.
Place = tuple[str, str, float]


def by_place(cells: Iterable[RunRecord]) -> tuple[dict[Place, list[RunRecord]], dict[Place, list[RunRecord]]]:
    """The cells that read the test part, a row's together, and the trials of learning rates that were made for them.

    Where rates were tried, the recipe's text has none, and of a row only the cells count whose rate is best in the trials: a
    grid that was extended may have settled on another than before. Cells at a rate that was not tried are rows of their own.
    """
    cells = list(cells)
    n_agents = len({cell.config["policy"] for cell in cells} - {None})

    def place(cell: RunRecord, recipe: dict[str, Any]) -> Place:
        policy = cell.config["policy"]
        name = row_name(cell.config) + (f" {policy[:6]}" if policy and n_agents > 1 else "")
        return json.dumps([cell.config["task"], recipe], sort_keys=True), name, cell.config["density"]

    def at_any_rate(cell: RunRecord) -> Place:
        return place(cell, {**cell.config["recipe"], "learning_rate": None})

    tried: dict[Place, list[RunRecord]] = defaultdict(list)
    for cell in cells:
        if not cell.config["test"]:
            tried[at_any_rate(cell)].append(cell)
    tuned: dict[str, set[float]] = defaultdict(set)
    for (text, _, _), trials in tried.items():
        tuned[text] |= {_rate(trial) for trial in trials}
    final: dict[Place, list[RunRecord]] = defaultdict(list)
    for cell in cells:
        if cell.config["test"]:
            where = at_any_rate(cell)
            final[where if _rate(cell) in tuned[where[0]] else place(cell, cell.config["recipe"])].append(cell)
    final = {where: _of_best_rate(some, tried.get(where, [])) for where, some in final.items()}
    return final, {where: some for where, some in tried.items() if where in final}


def _of_best_rate(cells: list[RunRecord], trials: list[RunRecord]) -> list[RunRecord]:
    rates = sorted({_rate(cell) for cell in cells})
    if len(rates) == 1:
        return cells

    def score(rate: float) -> float:
        """As a grid chooses: on the validation part, a failure as nothing."""
        values = [trial.metrics.get("accuracy", 0.0) for trial in trials if _rate(trial) == rate]
        return statistics.fmean(values) if values else -1.0

    best = max(rates, key=score)
    return [cell for cell in cells if _rate(cell) == best]


def _rate(cell: RunRecord) -> float:
    return float(cell.config["recipe"]["learning_rate"])


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe in a few words."""
    rate = recipe["learning_rate"]
    images = f", {recipe['n_images']:,} images an epoch" if recipe["n_images"] else ""
    epochs = "1 epoch" if recipe["epochs"] == 1 else f"{recipe['epochs']:g} epochs"
    return f"{epochs}, {recipe['schedule']} at {'tried rates' if rate is None else f'{rate:g}'}{images}"
