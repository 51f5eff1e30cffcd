"""Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878): the smallest weights go, along a cubic schedule.

What is pruned is zero from then on and does not come back.

NOTE: TensorFlow's masks leave pruned values in place, from where they may return when the threshold moves; here they are
zeroed, as in the code of GraNet. The paper gives every layer the same sparsity, which is the row ``gmp_layerwise``; ``gmp``
ranks the weights of all layers together.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from panning.masks.allocation import round_counts
from panning.training.moving.method import BLOCKS, Clock, Count, Move, View
from panning.training.moving.selection import by_layer, highest, kept_magnitude
from panning.training.moving.timing import Ramp

#: In the memory: how many weights each layer had at the start.
AT_START = "layer counts at the start"


class GradualMagnitude(Ramp):
    """``scope`` says whether the smallest are found over all layers or each layer loses the same share."""

    only_prunes: ClassVar[bool] = True
    shapes: ClassVar[frozenset[str]] = frozenset({BLOCKS})

    every: Count | None = 100
    scope: Literal["global", "layerwise"] = "global"

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) and clock.step <= self.ends(clock)

    def begin(self, view: View) -> Move:
        view.memory[AT_START] = torch.tensor(view.layout.counts(view.mask))
        return Move(view.mask)

    def move(self, view: View) -> Move:
        n_kept = self.n_kept(view)
        scores = kept_magnitude(view)
        if self.scope == "global":
            return Move(highest(scores, n_kept, view.generator))
        at_start = view.memory[AT_START].tolist()
        present = tuple(view.layout.counts(view.mask))
        quotas = [n * n_kept / sum(at_start) for n in at_start]
        return Move(by_layer(scores, round_counts(quotas, n_kept, present), view.layout, view.generator))
