"""What the records of a grid say: tables of rows, their costs, and which differences hold."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from panning.compare.cells import CHOSEN, by_place, recipe_text
from panning.compare.contrasts import Contrast, contrasts, corrected, pairs_with_random, planned_pairs
from panning.compare.rows import Row
from panning.compare.statistics import Difference, Ranks, ranks
from panning.foundation.errors import PanningError
from panning.foundation.own import label_of
from panning.foundation.records import RunRecord, canonical_json
from panning.pruners.targets import words_of

#: What a grid is believed for: control, or method -> in words.
CONTROLS_OF_A_GRID = {
    "erk": "random masks with ERK's quotas",
    "shuffle_alive": "shuffled masks of a method",
    "reinitialise": "masks of a method for other weights",
}


@dataclass(frozen=True, eq=False)
class Table:
    """All rows of one network, data set and recipe.

    Attributes:
        rows: by falling density; at one density by ``Row.rank``, best on the validation part first, and rows that failed on
            a seed last.
        shares_of: of what the densities are shares.
    """

    title: str
    epochs: float
    dense: Row
    rows: tuple[Row, ...]
    shares_of: str = "weights"

    @property
    def level(self) -> str:
        """What tables call the column of the densities."""
        return "density" if self.shares_of == "weights" else f"share of {words_of(self.shares_of)}"

    @property
    def densities(self) -> list[float]:
        return sorted({row.density for row in self.rows}, reverse=True)

    @property
    def missing_controls(self) -> list[str]:
        """The controls that no row is, in words. A search's table, whose question is another, lacks none."""
        if any(row.method == CHOSEN for row in self.rows):
            return []
        there = {row.by.get("control") for row in self.rows} | {"erk" for row in self.rows if row.is_random}
        return [words for name, words in CONTROLS_OF_A_GRID.items() if name not in there]

    def at(self, density: float) -> list[Row]:
        return [row for row in self.rows if row.density == density]

    @cached_property
    def _epoch_s(self) -> dict[str, float]:
        """Hardware -> wall time of an epoch of the dense network on one thread."""
        times: dict[str, list[float]] = defaultdict(list)
        for cell in self._dense_cells:
            times[_hardware(cell)].append(cell.metrics["timing"]["train_s"] / _epochs(cell))
        return {hardware: statistics.fmean(some) for hardware, some in times.items()}

    def _scoring(self, cell: RunRecord) -> float:
        """The wall time of pruning in dense epochs, of the same hardware where the dense network was trained on it."""
        if "timing" not in cell.metrics:
            return 0.0
        epoch_s = self._epoch_s.get(_hardware(cell), statistics.fmean(self._epoch_s.values()))
        return float(cell.metrics["timing"]["prune_s"]) / epoch_s

    def _training(self, cell: RunRecord) -> float:
        """The training in epochs: of a failed cell a whole training, since its record does not say how far it came; of a
        cell without a mask 0."""
        if "images_seen" in cell.metrics:
            return _epochs(cell)
        return _epochs(self._dense_cells[0]) if "mask" in cell.metrics else 0.0

    @property
    def _dense_cells(self) -> list[RunRecord]:
        return [cell for cell in self.dense.cells if cell.metrics["error"] is None]

    def cost(self, row: Row) -> tuple[float, float, float]:
        """Dense epochs of search (the agent's training, learning rates that were tried), scoring and training.

        Each is a mean over seeds.
        """
        agent = [c.metrics["search_images"] / c.metrics["n_train"] for c in row.cells if "search_images" in c.metrics]
        trials = sum(self._scoring(trial) + self._training(trial) for trial in row.trials) / len(row.cells)
        return (
            (statistics.fmean(agent) if agent else 0.0) + trials,
            statistics.fmean(self._scoring(cell) for cell in row.cells),
            statistics.fmean(self._training(cell) for cell in row.cells),
        )

    @cached_property
    def has_moving(self) -> bool:
        """Whether masks move in some row."""
        return any(row.dynamic is not None for row in self.rows)

    @cached_property
    def counts_adds(self) -> bool:
        """Whether multiply-adds tell trainings apart: where masks move, most trainings pass over the data as often."""
        return self.has_moving and all("train_epochs" in metrics for row in self.rows for metrics in row.good.values())

    def work(self, row: Row) -> float:
        """Dense epochs of search, scoring and training together; ``row`` must have a cell that did not fail."""
        search, scoring, training = self.cost(row)
        return search + scoring + (row.mean("train_epochs") if self.counts_adds else training)

    def best(self, density: float) -> Row:
        """The row that is best on the validation part: the row to take, and what the others are compared with."""
        return self.at(density)[0]

    @cached_property
    def differences(self) -> dict[tuple[float, str], Difference]:
        """(density, method) -> difference to the best row of that density, over the seeds that failed for neither.

        Holm-corrected over the rows of the density.
        """
        found: dict[tuple[float, str], Difference] = {}
        for density in self.densities:
            best = self.best(density)
            others = [row for row in self.at(density) if row is not best and row.good]
            family = corrected([(row, best) for row in others])
            found |= {(density, row.method): d for row, d in zip(others, family, strict=True)}
        return found

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The planned comparisons, in the rows' order."""
        return contrasts(planned_pairs(self.rows))

    @cached_property
    def beside_random(self) -> list[Contrast]:
        """Every method but controls, minus random masks with ERK's quotas; a family of its own."""
        return contrasts(pairs_with_random(self.rows))

    @cached_property
    def ranks(self) -> Ranks | None:
        """Mean ranks over all densities and seeds; a training that failed is last."""
        return self._ranked("test_accuracy")

    @cached_property
    def methods(self) -> list[str]:
        """All methods, by mean rank on the validation part where they have one: the order of the short table."""
        ranked = self._ranked("accuracy")
        return list(dict.fromkeys([*(() if ranked is None else ranked.names), *(row.method for row in self.rows)]))

    def rows_of(self, method: str) -> list[Row]:
        return [row for row in self.rows if row.method == method]

    def _ranked(self, figure: str) -> Ranks | None:
        blocks: dict[str, dict[object, float]] = defaultdict(dict)
        for row in self.rows:
            for cell in row.cells:
                good = cell.metrics["error"] is None
                blocks[row.method][row.density, cell.config["seed"]] = cell.metrics[figure] if good else -1.0
        return ranks(blocks)  # a row that was added later, and a seed that was begun, wait where they lack blocks


def _epochs(cell: RunRecord) -> float:
    return float(cell.metrics["images_seen"] / cell.metrics["n_train"])


def _hardware(cell: RunRecord) -> str:
    return canonical_json(cell.environment.get("hardware"))


def tables(records: Iterable[RunRecord]) -> list[Table]:
    """All tables that the cells of ``records`` make.

    Raises:
        PanningError: if there is no cell that read the test part, or a table has no dense network or several data sets.
    """
    final, trials = by_place(record for record in records if record.kind == "cell")
    if not final:
        raise PanningError("These records hold no cell of a benchmark: make some with panning bench CONFIG.")
    rows: dict[str, list[Row]] = defaultdict(list)
    for (text, name, density), some in final.items():
        ordered = tuple(sorted(some, key=lambda cell: cell.config["seed"]))
        rows[text].append(Row(name, density, ordered, tuple(trials.get((text, name, density), ()))))
    return _with_titles([(text, *_parted(text, of_text)) for text, of_text in rows.items()])


def _parted(text: str, rows: Sequence[Row]) -> tuple[Row, tuple[Row, ...]]:
    """The dense network's row, and the others in order."""
    task, _, _ = json.loads(text)
    dense = next((row for row in rows if row.method == "dense"), None)
    if dense is None or not dense.good:
        why = (
            "no dense network was trained; run the grid to its end, or join its shares"
            if dense is None
            else f"the dense network failed ({dense.cells[0].metrics['error']}); the recipe does not fit it"
        )
        raise PanningError(f"{task['model']} on {task['data']}: {why}.")
    others = [row for row in rows if row is not dense]
    if len(data := {cell.metrics["data"] for row in rows for cell in row.cells if "data" in cell.metrics}) > 1:
        raise PanningError(
            f"{task['model']} on {task['data']}: these records come from {len(data)} different data sets of that name, and "
            "are no pairs. Report those of one machine, or let all have the same files."
        )
    return dense, tuple(sorted(others, key=lambda row: (row.density, row.rank), reverse=True))


def _with_titles(parts: Sequence[tuple[str, Row, tuple[Row, ...]]]) -> list[Table]:
    """Model and data, and what tells a table from others of the same."""
    loaded = [json.loads(text) for text, _, _ in parts]
    recipes, shares = [recipe for _, recipe, _ in loaded], [shares_of for _, _, shares_of in loaded]
    labels = [next(iter(dense.good.values()))["data_label"] for _, dense, _ in parts]
    models = [label_of(task["model"]) for task, _, _ in loaded]
    titles = [" ".join(f"{model} on {label}".split()) for model, label in zip(models, labels, strict=True)]
    titles = [
        title if of == "weights" else f"{title}, by {words_of(of)}" for title, of in zip(titles, shares, strict=True)
    ]
    longer = [
        f"{title}, {recipe_text(recipe)}" if titles.count(title) > 1 else title
        for title, recipe in zip(titles, recipes, strict=True)
    ]
    final = [f"{t} ({longer[: i + 1].count(t)})" if longer.count(t) > 1 else t for i, t in enumerate(longer)]
    return [
        Table(title, recipe["epochs"], dense, rows, of)
        for title, recipe, of, (_, dense, rows) in zip(final, recipes, shares, parts, strict=True)
    ]
