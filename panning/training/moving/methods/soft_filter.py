"""Soft filter pruning (He et al. 2018, arXiv 1808.06866): after each epoch the filters with the smallest norm are zeroed,
and learn again in the next; what is zero after the last epoch is pruned.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from panning.training.moving.method import Clock, Dynamic, Holds, Memory, Move, View
from panning.training.moving.selection import top_units


class SoftFilter(Dynamic):
    """Of each hidden layer the same share of filters, or neurons, is zeroed: all but the density."""

    holds: ClassVar[Holds] = "free"
    counts_epochs: ClassVar[bool] = True

    @property
    def prunes_units(self) -> bool:
        return True

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) or clock.is_over

    def move(self, view: View) -> Move:
        return Move(view.first & top_units(view.problem, view.weight, view.hidden, view.density))

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        return clock.is_over or clock.step >= (self.every or clock.epoch)  # once it has moved
