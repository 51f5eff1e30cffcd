"""What the records of a grid say: rows, their costs, and which differences hold."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from panning.benchmark.cells import by_place, recipe_text
from panning.benchmark.statistics import Difference, Ranks, difference, holm, ranks
from panning.errors import PanningError
from panning.records import RunRecord


@dataclass(frozen=True, eq=False)
class Row:
    """A method at one density: one cell a seed.

    Attributes:
        tuning_epochs: what the trial of learning rates cost, per seed.
    """

    method: str
    density: float
    cells: tuple[RunRecord, ...]
    tuning_epochs: float

    @cached_property
    def good(self) -> dict[int, dict[str, Any]]:
        """The metrics of the cells that did not fail, by seed."""
        return {cell.config["seed"]: cell.metrics for cell in self.cells if cell.metrics["error"] is None}

    def values(self, name: str) -> dict[int, float]:
        """A figure of the training by seed, where it did not fail."""
        return {seed: float(metrics[name]) for seed, metrics in self.good.items()}

    def mean(self, name: str) -> float:
        """The mean of a figure; minus infinity if the training failed on every seed."""
        values = list(self.values(name).values())
        return statistics.fmean(values) if values else -math.inf

    def spread(self, name: str) -> str:
        """Mean and standard deviation of an accuracy, in percent."""
        values = list(self.values(name).values())
        if not values:
            return "failed"
        deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{100 * statistics.fmean(values):.2f}{deviation}"

    def of_masks(self, name: str) -> list[float]:
        """A figure of the masks, also where the training failed."""
        return [float(cell.metrics[name]) for cell in self.cells if name in cell.metrics]

    @property
    def n_collapsed_layers(self) -> list[int]:
        """Of each mask, also where the training failed."""
        return [len(cell.metrics["collapsed_layers"]) for cell in self.cells if "collapsed_layers" in cell.metrics]

    @property
    def rank(self) -> tuple[int, float]:
        """What it is chosen by, higher is better: fewer failures, then accuracy on the validation part."""
        return len(self.good) - len(self.cells), self.mean("accuracy")

    def search_epochs(self) -> float:
        """What finding the masks cost before they were scored: the training of an agent, and trying learning rates."""
        agent = [c.metrics["search_images"] / c.metrics["n_train"] for c in self.cells if "search_images" in c.metrics]
        return (statistics.fmean(agent) if agent else 0.0) + self.tuning_epochs


@dataclass(frozen=True, eq=False)
class Table:
    """All rows of one network, data set and recipe.

    Attributes:
        rows: of each density, by mean test accuracy of the last epoch, best first, those that failed on a seed last;
            densities fall.
    """

    title: str
    epochs: float
    dense: Row
    rows: tuple[Row, ...]

    @property
    def densities(self) -> list[float]:
        return sorted({row.density for row in self.rows}, reverse=True)

    def at(self, density: float) -> list[Row]:
        return [row for row in self.rows if row.density == density]

    @cached_property
    def dense_epoch_s(self) -> float:
        """Wall time of an epoch of the dense network, on one thread."""
        return statistics.fmean(
            cell.metrics["timing"]["train_s"] / (cell.metrics["images_seen"] / cell.metrics["n_train"])
            for cell in self.dense.cells
            if cell.metrics["error"] is None
        )

    def cost(self, row: Row) -> tuple[float, float, float]:
        """Dense epochs of search, scoring (by wall time, against the dense network's) and training."""
        scoring = [cell.metrics["timing"]["prune_s"] for cell in row.cells if "timing" in cell.metrics]
        training = [metrics["images_seen"] / metrics["n_train"] for metrics in row.good.values()]
        return (
            row.search_epochs(),
            statistics.fmean(scoring) / self.dense_epoch_s if scoring else 0.0,
            statistics.fmean(training) if training else 0.0,
        )

    def whole_cost(self, row: Row) -> float:
        """Dense epochs of all three; of the training its multiply-adds, where all rows have them."""
        search, scoring, images = self.cost(row)
        known = all(r.of_masks("train_epochs") for r in (*self.rows, self.dense) if r.good)
        return search + scoring + (statistics.fmean(row.of_masks("train_epochs")) if known and row.good else images)

    def best(self, density: float) -> Row:
        """The row that is best on the validation part: what one would take, and what the others are compared with."""
        return max(self.at(density), key=lambda row: row.rank)

    @cached_property
    def differences(self) -> dict[tuple[float, str], Difference]:
        """(density, method) -> against the best of that density, Holm-corrected for the number of its rows.

        Over the seeds that failed for neither.
        """
        found: dict[tuple[float, str], Difference] = {}
        for density in self.densities:
            best = self.best(density)
            others = [row for row in self.at(density) if row is not best and row.good]
            raw = [difference(row.values("test_accuracy"), best.values("test_accuracy")) for row in others]
            found |= {(density, row.method): d for row, d in zip(others, holm(raw), strict=True)}
        return found

    @cached_property
    def ranks(self) -> Ranks | None:
        """Over all densities and seeds; a training that failed is last."""
        blocks: dict[str, dict[object, float]] = defaultdict(dict)
        for row in self.rows:
            for cell in row.cells:
                good = cell.metrics["error"] is None
                blocks[row.method][row.density, cell.config["seed"]] = cell.metrics["test_accuracy"] if good else -1.0
        return ranks(blocks)  # a row that was added later, and a seed that was begun, wait where they lack blocks


def tables(records: Iterable[RunRecord]) -> list[Table]:
    """All tables that the cells of ``records`` make.

    Raises:
        PanningError: if there is no cell that read the test part, or a table has no dense network.
    """
    final, trials = by_place(record for record in records if record.kind == "cell")
    if not final:
        raise PanningError("These records hold no cell of a benchmark: make some with panning bench CONFIG.")
    rows: dict[str, list[Row]] = defaultdict(list)
    for (text, name, density), some in final.items():
        images = [
            trial.metrics["images_seen"] / trial.metrics["n_train"]
            for trial in trials.get((text, name, density), ())
            if "images_seen" in trial.metrics
        ]
        ordered = tuple(sorted(some, key=lambda cell: cell.config["seed"]))
        rows[text].append(Row(name, density, ordered, sum(images) / len(some)))
    return _with_titles([(text, *_parted(text, of_text)) for text, of_text in rows.items()])


def _parted(text: str, rows: Sequence[Row]) -> tuple[Row, tuple[Row, ...]]:
    """The dense network's row, and the others in order."""
    dense = next((row for row in rows if row.method == "dense"), None)
    if dense is None or not dense.good:
        task, _ = json.loads(text)
        why = (
            "no dense network was trained; run the grid to its end, or join its shares"
            if dense is None
            else f"the dense network failed ({dense.cells[0].metrics['error']}); the recipe does not fit it"
        )
        raise PanningError(f"{task['model']} on {task['data']}: {why}.")
    n_failed = {row: len(row.cells) - len(row.good) for row in rows}
    others = [row for row in rows if row is not dense]
    return dense, tuple(sorted(others, key=lambda row: (-row.density, n_failed[row], -row.mean("test_accuracy"))))


def _with_titles(parts: Sequence[tuple[str, Row, tuple[Row, ...]]]) -> list[Table]:
    """Model and data, and what tells a table from others of the same."""
    loaded = [json.loads(text) for text, _, _ in parts]
    labels = [next(iter(dense.good.values()))["data_label"] for _, dense, _ in parts]
    titles = [" ".join(f"{task['model']} on {label}".split()) for (task, _), label in zip(loaded, labels, strict=True)]
    longer = [
        f"{title}, {recipe_text(recipe)}" if titles.count(title) > 1 else title
        for title, (_, recipe) in zip(titles, loaded, strict=True)
    ]
    final = [f"{t} ({longer[: i + 1].count(t)})" if longer.count(t) > 1 else t for i, t in enumerate(longer)]
    return [
        Table(title, recipe["epochs"], dense, rows)
        for title, (_, recipe), (_, dense, rows) in zip(final, loaded, parts, strict=True)
    ]
