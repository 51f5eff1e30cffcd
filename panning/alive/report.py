"""The report on a mask: the figures that stand beside every mask, in manifests, records and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.masks.layout import KINDS, by_unit, prunable_parameters


@dataclass(frozen=True)
class MaskReport:
    """The figures of one mask in its network.

    Attributes:
        n_dead_units: output units (neurons, channels) of masked layers without an alive weight into them.
        collapsed_layers: layers without an alive weight.
        n_alive_units: those with one: NPB's effective nodes.
        log10_paths: NPB's effective paths (``Connectivity.log10_paths``).
        n_reached_outputs, n_outputs: how many entries of the output, as classes, a path leads to, and of how many.
    """

    n_kept: int
    density: float
    effective_density: float
    n_dead_units: int
    collapsed_layers: tuple[str, ...]
    n_alive_units: int
    log10_paths: float | None
    n_reached_outputs: int
    n_outputs: int

    def facts(self) -> dict[str, Any]:
        """The figures under the names that manifests and records give them."""
        return {
            "effective_density": self.effective_density,
            "n_dead_units": self.n_dead_units,
            "collapsed_layers": list(self.collapsed_layers),
            "n_alive_units": self.n_alive_units,
            **({} if self.log10_paths is None else {"log10_paths": self.log10_paths}),
            "n_reached_outputs": self.n_reached_outputs,
            "n_outputs": self.n_outputs,
        }

    @property
    def sentence(self) -> str:
        """The figures in words."""
        paths = "" if self.log10_paths is None else f", 10^{self.log10_paths:.1f} paths"
        return (
            f"effective density {self.effective_density:.6g}, {self.n_alive_units} alive and {self.n_dead_units} dead "
            f"units{paths}, {self.n_reached_outputs} of {self.n_outputs} outputs reached"
        )


def report(connectivity: Connectivity, mask: Tensor) -> MaskReport:
    """Measure a flat mask in the network of ``connectivity``."""
    layout = connectivity.layout
    alive = connectivity.alive(mask)
    kinds = prunable_parameters(connectivity.model, layout.found)
    n_dead, n_units, collapsed = 0, 0, []
    for name, part in layout.views(alive).items():
        units = by_unit(part, *kinds.get(name, (KINDS[0], connectivity.model))).any(1)
        n_units += len(units)
        n_dead += int((~units).sum())
        if not part.any():
            collapsed.append(name)
    n_kept = int(mask.sum())
    paths = connectivity.log10_paths(mask)
    return MaskReport(
        n_kept, n_kept / layout.n_prunable, int(alive.sum()) / layout.n_prunable, n_dead, tuple(collapsed),
        n_units - n_dead, None if paths is None else round(paths, 4), *connectivity.reached_outputs(mask),
    )  # fmt: skip
