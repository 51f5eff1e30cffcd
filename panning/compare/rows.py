"""A row of a table: one method at one density, with a cell for each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from panning.compare.cells import CHOSEN, row_name, start_of
from panning.foundation.records import RunRecord, canonical_json
from panning.foundation.tables import percent
from panning.training import DYNAMICS

#: How masks are made (the record's ``by`` as JSON), whether all alive, by which policy file, and the start of the kept
#: weights where none were tried: equal for one method's rows.
Identity = tuple[str, bool, str | None, str]


@dataclass(frozen=True, eq=False)
class Row:
    """A method at one density, or the dense network.

    Attributes:
        method: the key of its line; what a search has chosen has one for all densities.
        cells: one record a seed.
        trials: the cells in which learning rates and starts were tried for this row.
    """

    method: str
    density: float
    cells: tuple[RunRecord, ...]
    trials: tuple[RunRecord, ...] = ()

    @property
    def label(self) -> str:
        """As tables call it: what a search has chosen by what it is."""
        return line_label([self])

    @cached_property
    def good(self) -> dict[int, dict[str, Any]]:
        """Seed -> metrics of the cells that did not fail."""
        return {cell.config["seed"]: cell.metrics for cell in self.cells if cell.metrics["error"] is None}

    def values(self, name: str) -> dict[int, float]:
        """Seed -> a figure of the training, where the cell did not fail."""
        return {seed: float(metrics[name]) for seed, metrics in self.good.items()}

    def mean(self, name: str) -> float:
        """The mean of a figure of the training; minus infinity if every cell failed."""
        values = list(self.values(name).values())
        return statistics.fmean(values) if values else -math.inf

    def spread(self, name: str) -> str:
        """Mean and standard deviation of an accuracy, in percent."""
        return percent(list(self.values(name).values()))

    def of_masks(self, name: str) -> list[float]:
        """A figure of each mask, also where the training failed."""
        return [float(cell.metrics[name]) for cell in self.cells if name in cell.metrics]

    @property
    def n_collapsed_layers(self) -> list[int]:
        """The number of collapsed layers of each mask, also where the training failed."""
        return [len(cell.metrics["collapsed_layers"]) for cell in self.cells if "collapsed_layers" in cell.metrics]

    @property
    def rank(self) -> tuple[int, float, float, str]:
        """The key by which the best row is chosen; higher is better. It holds the number of seeds that did not fail, then
        accuracy and loss on the validation part, then the name.

        The test part never decides.
        """
        return len(self.good), self.mean("accuracy"), -self.mean("loss") if self.good else -math.inf, self.method

    @cached_property
    def outcome(self) -> tuple[object, ...]:
        """Equal for two methods that found the same masks, and are therefore one."""
        return tuple((seed, m.get("mask"), m["test_accuracy"]) for seed, m in self.good.items())

    @property
    def identity(self) -> Identity:
        config = self.cells[0].config
        return canonical_json(config["by"]), config["all_alive"], config["policy"], self.fixed_start

    @property
    def fixed_start(self) -> str:
        """The start of the kept weights; empty where they start as drawn, or starts were tried."""
        return "" if len({start_of(trial) for trial in self.trials}) > 1 else start_of(self.cells[0])

    @property
    def by(self) -> dict[str, Any]:
        """The record's ``by``, which says how masks are made; empty for the dense network."""
        return self.cells[0].config["by"] or {}

    @property
    def is_control(self) -> bool:
        return bool(self.by.get("control"))

    @property
    def is_random(self) -> bool:
        """Whether the masks are random with ERK's quotas, which every grid has, whatever their start."""
        return self.identity[:3] == (canonical_json({"method": "erk"}), False, None)

    @property
    def dynamic(self) -> str | None:
        """The row of ``DYNAMICS`` whose masks move."""
        return (self.by.get("dynamic") or {}).get("name")

    def competes_with(self, other: Row) -> bool:
        """Whether the rows differ only in how masks move, and this row's paper sets out to beat the other's method."""
        if self.dynamic is None or other.dynamic not in DYNAMICS[self.dynamic].rivals:
            return False
        ours, theirs = ({**row.by, "dynamic": None} for row in (self, other))
        return ours == theirs and self.identity[1:] == other.identity[1:]

    def reference(self) -> Identity | None:
        """The identity to compare with: a control's method, or the row without all-alive pruning; None for other rows."""
        by, all_alive, policy, start = self.identity
        if self.is_control:
            return canonical_json({key: value for key, value in self.by.items() if key != "control"}), *self.identity[
                1:
            ]
        return (by, False, policy, start) if all_alive else None


def line_label(rows: Iterable[Row]) -> str:
    """What tables call the rows of one method; of a search's choice all that it is, for it may differ by density."""
    rows = list(rows)
    if rows[0].method != CHOSEN:
        return rows[0].method
    return f"{CHOSEN}: " + "; ".join(dict.fromkeys(row_name(row.cells[0].config) for row in rows))
