"""GraNet (Liu et al. 2021, arXiv 2106.10404): gradual pruning with zero-cost neuroregeneration.

Every move prunes by magnitude over all layers to a cubic schedule, and then exchanges in each layer a share of the weights
that are left, the smallest, for as many with the largest gradient. The share falls along a cosine over the whole training;
the exchange goes on when the schedule has ended, until the last step.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from panning.training.moving.method import Move, Ramp, Share, View
from panning.training.moving.selection import cosine, drop, full_layers, grow, highest


class GraNet(Ramp):
    """
    Attributes:
        fraction, last_fraction: of a layer's weights that are exchanged, at the start and at the end.
    """

    wants_gradient: ClassVar[bool] = True

    every: Annotated[int, Field(ge=1)] | None = 1000
    end_at: Annotated[float, Field(gt=0, le=1)] = 0.6875  # epoch 110 of 160
    fraction: Share = 0.5
    last_fraction: Share = 0.005

    def move(self, view: View) -> Move:
        assert view.grad is not None
        magnitude, gradient = view.weight.abs(), view.grad.abs()
        left = highest(magnitude.masked_fill(~view.mask, -torch.inf), self.n_kept(view), view.generator)
        if view.clock.is_over:  # what would be grown now would never learn
            return Move(left, revival=gradient)
        fraction = cosine(self.fraction, self.last_fraction, view.clock.progress)
        n_left = zip(view.layout.counts(left), full_layers(left, view.layout), strict=True)
        counts = [0 if is_full else math.ceil(fraction * n) for n, is_full in n_left]
        kept = drop(magnitude, left, counts, view.layout, view.generator)
        return Move(grow(gradient, kept, counts, view.layout, view.generator), revival=gradient)
