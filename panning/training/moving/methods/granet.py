"""GraNet (Liu et al. 2021, arXiv 2106.10404): gradual pruning with zero-cost neuroregeneration.

Every move prunes by magnitude over all layers to a cubic schedule, and then exchanges in each layer a share of the weights
that are left, the smallest, for as many with the largest gradient. The share falls along a cosine over the whole training;
the exchange goes on when the schedule has ended, until the last step.
"""

from __future__ import annotations

import math
from typing import ClassVar

from panning.training.moving.abilities import LooksAtGradients
from panning.training.moving.method import BLOCKS, N_OF_M, Count, Move, Share, ShareAboveZero, View
from panning.training.moving.selection import cosine, exchange, gradient, highest, kept_magnitude, shares
from panning.training.moving.timing import Ramp


class GraNet(LooksAtGradients, Ramp):
    """Prunes by magnitude along a ramp, then exchanges the smallest weights for those with the largest gradient.

    Attributes:
        fraction, last_fraction: of a layer's weights that are exchanged, at the start and at the end.
    """

    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M, BLOCKS})

    every: Count | None = 1000
    end_at: ShareAboveZero = 0.6875  # epoch 110 of 160
    fraction: Share = 0.5
    last_fraction: Share = 0.005

    def move(self, view: View) -> Move:
        left = highest(kept_magnitude(view), self.n_kept(view), view.generator)
        if view.clock.is_over:  # what would be grown now would never learn
            return Move(left, revival=gradient(view))
        fraction = cosine(self.fraction, self.last_fraction, view.clock.progress)
        return exchange(view, shares(fraction, left, view.layout, math.ceil), gradient(view), mask=left)
