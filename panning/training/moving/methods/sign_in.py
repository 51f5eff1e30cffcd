"""Sign-In (Gadhikar et al. 2025, arXiv 2504.12801): kept weights learn as products of two factors, so that signs can flip.

    theta = a * b;   at every reset, at the same theta:   a = sqrt((beta + sqrt(beta^2 + 4 theta^2)) / 2),   b = theta / a

The mask stays. The optimizer moves a and b, its momentum and weight decay act on them, and at the end the products are what
is left. beta = a^2 - b^2: where it is above 0, theta passes 0 at a speed, for its gradient is felt sqrt(beta) times as
strongly there; training and weight decay draw beta to 0, and the reset brings it back.

NOTE: the paper resets every few epochs, how many could not be read; here it is every one. At a reset the optimizer keeps its
momentum of a and b.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.scoring.problem import Problem
from panning.training.moving.abilities import TrainsFactors
from panning.training.moving.method import Clock, Dynamic


class SignIn(TrainsFactors, Dynamic):
    """Trains factors of the kept weights, under a mask that stays.

    Attributes:
        every: steps from reset to reset; None: an epoch.
        beta: a^2 - b^2 after a reset.
    """

    keeps_count: ClassVar[bool] = True
    counts_epochs: ClassVar[bool] = True

    beta: PositiveFloat = 1.0

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        a = ((self.beta + (self.beta**2 + 4.0 * weight.square()).sqrt()) / 2.0).sqrt()
        return a, weight / a

    def check(self, clock: Clock, problem: Problem) -> None:
        if next(self.move_steps(clock), None) is None:
            raise MaskError(f"Sign-In would never reset its factors: {self.tempo(clock)}.")
