"""RigL (Evci et al. 2020, arXiv 1911.11134, algorithm 1): drop the smallest weights, grow where the gradient is largest.

Of each layer the share f(t) = fraction / 2 (1 + cos(pi t / T_end)) moves. All weights that the drop does not keep may be
grown, also those just dropped, which then keep their value. The step whose gradient is looked at does not move the weights.

NOTE: in the released code the skipped step does not count, and training has a batch more for each move; here it is one of
the training's steps.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from panning.training.moving.abilities import LooksAtGradients
from panning.training.moving.method import BLOCKS, N_OF_M, Move, Share, ShareAboveZero, View
from panning.training.moving.selection import cosine, exchange, gradient, shares
from panning.training.moving.timing import DropAndGrow


class RigL(LooksAtGradients, DropAndGrow):
    """The share of weights that a move exchanges falls to 0 along a cosine.

    Attributes:
        fraction: of a layer's weights that the first move exchanges.
    """

    skips_step: ClassVar[bool] = True
    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M, BLOCKS})

    every: Annotated[int, Field(ge=2)] | None = 100  # every step skipped would be no training
    fraction: Share = 0.3
    until: ShareAboveZero = 0.75

    def move(self, view: View) -> Move:
        fraction = cosine(self.fraction, 0.0, view.clock.progress / self.until)
        return exchange(view, shares(fraction, view.mask, view.layout), grow_by=gradient(view))
