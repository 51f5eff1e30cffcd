"""Figures of one mask that tell it from others: what its layers keep, how units share it, what is alive.

The *concentration* of a layer is the Gini coefficient of its units' counts of kept weights: 0 where all units have as many,
near 1 where one has all. Of a mask it is the mean over layers, weighted by their kept weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.alive.report import MaskReport, report
from panning.masks.layout import Layout
from panning.scoring.problem import Problem


@dataclass(frozen=True)
class Sketch:
    """The figures of one mask.

    Attributes:
        name: what made it.
        kept: layer -> kept weights.
        sizes: layer -> weights.
        units_in_use: the share of output units with a kept weight, mean over layers.
        concentration: see above.
        report: what only the network tells; None without it.
    """

    name: str
    kept: Mapping[str, int]
    sizes: Mapping[str, int]
    units_in_use: float
    concentration: float
    report: MaskReport | None = None

    @property
    def n_kept(self) -> int:
        return sum(self.kept.values())

    @property
    def density(self) -> float:
        return self.n_kept / sum(self.sizes.values())

    @property
    def layer_densities(self) -> dict[str, float]:
        return {name: n / self.sizes[name] for name, n in self.kept.items()}

    @property
    def dead_share(self) -> float | None:
        """The share of the kept weights that lies on no path."""
        return None if self.report is None else 1.0 - self.report.effective_density / self.report.density

    def as_json(self) -> dict[str, Any]:
        """Everything, unrounded."""
        return {
            "name": self.name, "n_kept": self.n_kept, "density": self.density, "kept": dict(self.kept),
            "layer_densities": self.layer_densities, "units_in_use": self.units_in_use,
            "concentration": self.concentration, "dead_share": self.dead_share,
            **({} if self.report is None else self.report.facts()),
        }  # fmt: skip


def sketch(name: str, layout: Layout, mask: Tensor, problem: Problem | None = None) -> Sketch:
    """The figures of a flat mask.

    Args:
        problem: the network; without it a layer's units are its first axis.
    """
    counts = dict(zip(layout.names, layout.counts(mask), strict=True))
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    if problem is not None:
        parts = problem.by_unit(mask)
    else:
        parts = {name: view.reshape(view.shape[0], -1) for name, view in layout.views(mask).items()}
    of_units = {layer: part.sum(1).cpu().numpy() for layer, part in parts.items()}
    used = [float((kept > 0).mean()) for kept in of_units.values()]
    weights = [counts[layer] for layer in of_units]
    packed = [gini(kept) for kept in of_units.values()]
    return Sketch(
        name, counts, sizes, float(np.mean(used)),
        float(np.average(packed, weights=weights)) if any(weights) else 0.0,
        None if problem is None else report(Connectivity.of(problem), mask),
    )  # fmt: skip


def gini(counts: Sequence[float] | np.ndarray[Any, Any]) -> float:
    """The Gini coefficient of counts; 0 where there are none.

    Examples:
        >>> from panning.explaining.sketch import gini
        >>> gini([1, 1]), gini([0, 2]), gini([0, 0, 0, 4])
        (0.0, 0.5, 0.75)
    """
    ordered = np.sort(np.asarray(counts, dtype=float))
    n, total = len(ordered), ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total > 0 else 0.0


def moved(of: Sketch, beside: Sketch) -> float:
    """The share of the weights of a mask that would have to change layers for it to have the other's layer counts.

    Examples:
        >>> from panning.explaining.sketch import Sketch, moved
        >>> sizes = {"a": 10, "b": 10}
        >>> moved(Sketch("x", {"a": 3, "b": 1}, sizes, 1.0, 0.0), Sketch("y", {"a": 1, "b": 3}, sizes, 1.0, 0.0))
        0.5
    """
    scale = of.n_kept / beside.n_kept
    return sum(abs(n - scale * beside.kept[name]) for name, n in of.kept.items()) / 2 / of.n_kept
