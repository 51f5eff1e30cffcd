"""Dynamic network surgery (Guo et al. 2016, arXiv 1608.04493): pruning and splicing.

As in DPF the gradient at the pruned network moves all weights. A mask changes with a probability that falls as training goes
on, and only where a magnitude crosses a band: a kept weight goes below 0.9 t, a masked one returns above 1.1 t.

NOTE: the paper fixes t from the mean and spread of a layer's weights, and takes the density that comes of it. Here t is
where exactly the wanted number is kept over all layers: weights are ranked by |w| / 0.9 if kept and |w| / 1.1 if not.
Whether masks change is one draw for all layers, so that this number is kept over all of them; the paper draws for each.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat

from panning.masks.allocation import top_k
from panning.training.moving.abilities import KeepsDenseWeights
from panning.training.moving.method import BLOCKS, N_OF_M, Count, Move, ShareAboveZero, ShareBelowOne, View
from panning.training.moving.selection import kept_magnitude
from panning.training.moving.timing import Ramp


class NetworkSurgery(KeepsDenseWeights, Ramp):
    """Keeps the largest dense weights, with a band around the threshold in which masks stay.

    Attributes:
        band: half the width of the band around the threshold, as a share of it.
        decay, power: after t steps masks change with probability (1 + decay t)^-power.
    """

    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M, BLOCKS})

    every: Count | None = 1
    end_at: ShareAboveZero = 0.5
    band: ShareBelowOne = 0.1
    decay: NonNegativeFloat = 1e-4
    power: NonNegativeFloat = 1.0

    def move(self, view: View) -> Move:
        n_kept = self.n_kept(view)
        probability = (1.0 + self.decay * view.clock.step) ** -self.power
        if float(torch.rand((), generator=view.generator)) < probability:
            factor = torch.where(view.mask, 1.0 / (1.0 - self.band), 1.0 / (1.0 + self.band))
            return Move(top_k(view.weight.abs() * factor, n_kept, sizes=view.layout.sizes))
        return Move(top_k(kept_magnitude(view), n_kept, sizes=view.layout.sizes))  # only what the schedule takes goes
