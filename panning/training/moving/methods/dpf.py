"""DPF, dynamic pruning with feedback (Lin et al. 2020, arXiv 2006.07253, algorithm 1).

    w' = m * w;  g = gradient at w';  w <- w - rate * g, all of it;  every p steps: m = the largest |w|

The gradient is taken at the pruned network and applied to the dense weights: the error that pruning made is fed back, and a
weight that was pruned too early grows until it returns. Momentum and weight decay act on the dense weights.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from panning.masks.allocation import allocate_by_layer, top_k, uniform_counts
from panning.training.moving.abilities import KeepsDenseWeights
from panning.training.moving.method import BLOCKS, N_OF_M, Clock, Count, Memory, Move, Share, View
from panning.training.moving.selection import top_units
from panning.training.moving.timing import Ramp


class DPF(KeepsDenseWeights, Ramp):
    """Keeps the largest dense weights; the network runs without the others, which learn on.

    Attributes:
        scope: the largest weights over all layers, or of each layer the same share.
        units: prune whole filters and neurons by their norm, of each hidden layer the same share.
        frozen: the last share of the training keeps its mask, and trains kept weights alone.
    """

    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M, BLOCKS})

    every: Count | None = 16
    scope: Literal["global", "layerwise"] = "global"
    units: bool = False
    frozen: Share = 0.0

    @property
    def prunes_units(self) -> bool:
        return self.units

    def _freezes(self, clock: Clock) -> int:
        """The number of steps whose mask moves; never less than it takes to come to the density."""
        return max(round((1.0 - self.frozen) * clock.n_steps), self.ends(clock))

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) and clock.step <= self._freezes(clock)

    def learns_kept_only(self, clock: Clock) -> bool:
        return clock.step >= self._freezes(clock)

    def move(self, view: View) -> Move:
        if self.units:
            return Move(view.first & top_units(view.problem, view.weight, view.hidden, self.density_at(view)))
        magnitude, n_kept = view.weight.abs(), self.n_kept(view)
        if self.scope == "global":
            return Move(top_k(magnitude, n_kept, sizes=view.layout.sizes))
        return Move(allocate_by_layer(magnitude, uniform_counts(view.layout, n_kept), view.layout))

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        return clock.step >= self.ends(clock) if self.units else super().has_arrived(clock, mask, n_final, memory)
