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

from panning.compare.cells import by_place, recipe_text
from panning.compare.statistics import Difference, Ranks, difference, holm, ranks
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord, canonical_json
from panning.foundation.tables import percent
from panning.training import DYNAMICS

#: Of a row, but for density and seed: how its masks are made, whether all alive, by which policy file.
Identity = tuple[str, bool, str | None]


@dataclass(frozen=True, eq=False)
class Row:
    """A method at one density: one cell a seed.

    Attributes:
        trials: of learning rates, that were made for it.
    """

    method: str
    density: float
    cells: tuple[RunRecord, ...]
    trials: tuple[RunRecord, ...] = ()

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
        return percent(list(self.values(name).values()))

    def of_masks(self, name: str) -> list[float]:
        """A figure of the masks, also where the training failed."""
        return [float(cell.metrics[name]) for cell in self.cells if name in cell.metrics]

    @property
    def n_collapsed_layers(self) -> list[int]:
        """Of each mask, also where the training failed."""
        return [len(cell.metrics["collapsed_layers"]) for cell in self.cells if "collapsed_layers" in cell.metrics]

    @property
    def rank(self) -> tuple[int, float, float, str]:
        """What it is chosen by, higher is better: seeds that it has, then accuracy and loss on the validation part.

        Then the name: the test part never decides.
        """
        return len(self.good), self.mean("accuracy"), -self.mean("loss") if self.good else -math.inf, self.method

    @cached_property
    def outcome(self) -> tuple[object, ...]:
        """Equal for two methods that found the same masks, and are therefore one."""
        return tuple((seed, m.get("mask"), m["test_accuracy"]) for seed, m in self.good.items())

    @property
    def identity(self) -> Identity:
        """What made the masks."""
        config = self.cells[0].config
        return canonical_json(config["by"]), config["all_alive"], config["policy"]

    @property
    def by(self) -> dict[str, Any]:
        """How its masks are made; empty of the dense network."""
        return self.cells[0].config["by"] or {}

    @property
    def is_control(self) -> bool:
        return bool(self.by.get("control"))

    @property
    def dynamic(self) -> str | None:
        """The row of ``DYNAMICS`` whose masks move."""
        return (self.by.get("dynamic") or {}).get("name")

    def competes_with(self, other: Row) -> bool:
        """Whether the two differ in the method that moves their masks alone, and its paper sets out to beat the other's."""
        if self.dynamic is None or other.dynamic not in DYNAMICS[self.dynamic].rivals:
            return False
        ours, theirs = ({**row.by, "dynamic": None} for row in (self, other))
        return ours == theirs and self.identity[1:] == other.identity[1:]

    @property
    def is_random(self) -> bool:
        """Whether it is what every grid holds: random masks with ERK's quotas."""
        return self.identity == (canonical_json({"method": "erk"}), False, None)

    def part_of(self) -> Identity | None:
        """What it is to be compared with: the method of a control, or the row without all-alive pruning.

        None of a row that stands for itself.
        """
        by, all_alive, policy = self.identity
        if self.is_control:
            return canonical_json({key: value for key, value in self.by.items() if key != "control"}), all_alive, policy
        return (by, False, policy) if all_alive else None


@dataclass(frozen=True, eq=False)
class Contrast:
    """A planned comparison: a method and its control, with and without all-alive pruning, or two whose masks move.

    Attributes:
        row, reference: by density; what is compared is row minus reference.
        differences: by density, Holm-corrected over the contrasts of one.
        pooled: of each seed's mean over the densities, Holm-corrected over all contrasts.
    """

    row: dict[float, Row]
    reference: dict[float, Row]
    differences: dict[float, Difference]
    pooled: Difference

    @property
    def method(self) -> str:
        return _any(self.row).method

    @property
    def name(self) -> str:
        return f"{self.method} − {_any(self.reference).method}"

    @property
    def is_shuffle(self) -> bool:
        """Whether the two are meant to have the same layer quotas."""
        return str(_any(self.reference).by.get("control", "")).startswith("shuffle")

    def drift(self, density: float) -> float:
        """The largest relative change of a layer's density from one to the other, a mean over seeds."""
        found = []
        row, reference = self.row[density].good, self.reference[density].good
        for seed in row.keys() & reference.keys():
            layers, others = (dict(side[seed]["layer_densities"]) for side in (row, reference))
            found.append(max((abs(layers[n] / d - 1.0) for n, d in others.items() if d and n in layers), default=0.0))
        return statistics.fmean(found) if found else 0.0


def _planned(rows: Sequence[Row]) -> list[tuple[dict[float, Row], dict[float, Row]]]:
    """Row and reference of every planned comparison, by the densities that both have."""
    by_identity: dict[Identity, dict[float, Row]] = defaultdict(dict)
    for row in rows:
        by_identity[row.identity][row.density] = row
    found = []
    for part in by_identity.values():
        if (whole := _any(part).part_of()) is not None:
            others = by_identity.get(whole, {})
            found.append((others, part) if _any(part).is_control else (part, others))
        found += [(part, others) for others in by_identity.values() if _any(part).competes_with(_any(others))]
    pairs = []
    for first, second in found:
        if shared := [density for density in first if density in second]:
            pairs.append(({d: first[d] for d in shared}, {d: second[d] for d in shared}))
    return pairs


def _any(rows: dict[float, Row]) -> Row:
    return next(iter(rows.values()))


def _family(pairs: Sequence[tuple[Row, Row]]) -> list[Difference]:
    """Differences on test, Holm-corrected together: pairs of the same masks count once, a mask and itself not at all."""
    raw = {
        (row.outcome, other.outcome): difference(row.values("test_accuracy"), other.values("test_accuracy"))
        for row, other in pairs
    }
    counted = [places for places in raw if places[0] != places[1]]
    corrected = raw | dict(zip(counted, holm([raw[places] for places in counted]), strict=True))
    return [corrected[row.outcome, other.outcome] for row, other in pairs]


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
    def _epoch_s(self) -> dict[str, float]:
        """Wall time of an epoch of the dense network on one thread, by the hardware it was trained on."""
        times: dict[str, list[float]] = defaultdict(list)
        for cell in self._dense_cells:
            times[_hardware(cell)].append(cell.metrics["timing"]["train_s"] / _epochs(cell))
        return {hardware: statistics.fmean(some) for hardware, some in times.items()}

    def _scoring(self, cell: RunRecord) -> float:
        """Its wall time by that of a dense epoch, of the same hardware where the dense network was trained on it."""
        if "timing" not in cell.metrics:
            return 0.0
        epoch_s = self._epoch_s.get(_hardware(cell), statistics.fmean(self._epoch_s.values()))
        return float(cell.metrics["timing"]["prune_s"]) / epoch_s

    def _training(self, cell: RunRecord) -> float:
        """In epochs; one that failed counts as a whole one, since a record does not say how far it came.

        Where no mask could be made, there was none.
        """
        if "images_seen" in cell.metrics:
            return _epochs(cell)
        return _epochs(self._dense_cells[0]) if "mask" in cell.metrics else 0.0

    @property
    def _dense_cells(self) -> list[RunRecord]:
        return [cell for cell in self.dense.cells if cell.metrics["error"] is None]

    def cost(self, row: Row) -> tuple[float, float, float]:
        """Dense epochs of search (an agent's training, learning rates that were tried), scoring and training; means over
        seeds."""
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
        """Whether trainings are told apart by their multiply-adds: where masks move, most pass over the data as often."""
        return self.has_moving and all("train_epochs" in metrics for row in self.rows for metrics in row.good.values())

    def work(self, row: Row) -> float:
        """Dense epochs of search, scoring and training together, of a row that did not fail everywhere."""
        search, scoring, training = self.cost(row)
        return search + scoring + (row.mean("train_epochs") if self.counts_adds else training)

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
            family = _family([(row, best) for row in others])
            found |= {(density, row.method): d for row, d in zip(others, family, strict=True)}
        return found

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The planned comparisons, in the rows' order."""
        return self._contrasts(_planned(self.rows))

    @cached_property
    def beside_random(self) -> list[Contrast]:
        """Every method, but controls, minus random masks with ERK's quotas; a family of its own."""
        random = {row.density: row for row in self.rows if row.is_random}
        by_method: dict[str, dict[float, Row]] = defaultdict(dict)
        for row in self.rows:
            if row.density in random and not (row.is_control or row.is_random):
                by_method[row.method][row.density] = row
        return self._contrasts([(rows, {d: random[d] for d in rows}) for rows in by_method.values()])

    def _contrasts(self, pairs: Sequence[tuple[dict[float, Row], dict[float, Row]]]) -> list[Contrast]:
        by_density: dict[int, dict[float, Difference]] = defaultdict(dict)
        for density in self.densities:
            here = [i for i, (first, _) in enumerate(pairs) if density in first]
            family = _family([(pairs[i][0][density], pairs[i][1][density]) for i in here])
            for i, found in zip(here, family, strict=True):
                by_density[i][density] = found
        pooled = holm([difference(*(_over_densities(side, pair) for side in pair)) for pair in pairs])
        return [Contrast(*pair, by_density[i], pooled[i]) for i, pair in enumerate(pairs)]

    @cached_property
    def ranks(self) -> Ranks | None:
        """Over all densities and seeds; a training that failed is last."""
        blocks: dict[str, dict[object, float]] = defaultdict(dict)
        for row in self.rows:
            for cell in row.cells:
                good = cell.metrics["error"] is None
                blocks[row.method][row.density, cell.config["seed"]] = cell.metrics["test_accuracy"] if good else -1.0
        return ranks(blocks)  # a row that was added later, and a seed that was begun, wait where they lack blocks


def _epochs(cell: RunRecord) -> float:
    return float(cell.metrics["images_seen"] / cell.metrics["n_train"])


def _hardware(cell: RunRecord) -> str:
    return canonical_json(cell.environment.get("hardware"))


def _over_densities(side: dict[float, Row], pair: Sequence[dict[float, Row]]) -> dict[int, float]:
    """Each seed's mean over the densities, of the seeds that failed nowhere on either side."""
    seeds = set.intersection(*(set(row.good) for rows in pair for row in rows.values()))
    return {seed: statistics.fmean(row.good[seed]["test_accuracy"] for row in side.values()) for seed in sorted(seeds)}


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
    if len(data := {cell.metrics["data"] for row in rows for cell in row.cells if "data" in cell.metrics}) > 1:
        task, _ = json.loads(text)
        raise PanningError(
            f"{task['model']} on {task['data']}: these records come from {len(data)} different data sets of that name, and "
            "are no pairs. Report those of one machine, or let all have the same files."
        )
    return dense, tuple(
        sorted(others, key=lambda row: (-row.density, n_failed[row], -row.mean("test_accuracy"), row.method))
    )


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
