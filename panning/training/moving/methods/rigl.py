"""RigL (Evci et al. 2020, arXiv 1911.11134, algorithm 1): drop the smallest weights, grow where the gradient is largest.

Of each layer the share f(t) = fraction / 2 (1 + cos(pi t / T_end)) moves. All weights that are not kept after the drop may
be grown, those just dropped too, which then keep their value. The step whose gradient is looked at does not move the
weights.

NOTE: in the released code the skipped step does not count, and training has a batch more for each move; here it is one of
the training's steps.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from panning.training.moving.method import DropAndGrow, Move, Share, View
from panning.training.moving.selection import cosine, drop, grow, shares


class RigL(DropAndGrow):
    """
    Attributes:
        fraction: of a layer's weights that the first move exchanges.
    """

    wants_gradient: ClassVar[bool] = True
    skips_step: ClassVar[bool] = True

    every: Annotated[int, Field(ge=2)] | None = 100  # every step skipped would be no training
    fraction: Share = 0.3
    until: Annotated[float, Field(gt=0, le=1)] = 0.75

    def move(self, view: View) -> Move:
        return exchange(view, cosine(self.fraction, 0.0, view.clock.progress / self.until))


def exchange(view: View, fraction: float) -> Move:
    """The share ``fraction`` of each layer's weights, the smallest, for as many with the largest gradient."""
    assert view.grad is not None
    counts, gradient = shares(fraction, view.mask, view.layout), view.grad.abs()
    kept = drop(view.weight.abs(), view.mask, counts, view.layout, view.generator)
    return Move(grow(gradient, kept, counts, view.layout, view.generator), revival=gradient)
