"""Release: a mask that stays for a share of the training, then is let go (SPDF, Thangarasa et al. 2023, arXiv 2303.10464).

Most of the training is as cheap as under the mask, and the network that comes out is dense. What was masked begins at zero.

NOTE: the paper releases a random mask between pre-training and fine-tuning on another task; here training goes on by the
same schedule of learning rates. The density that is asked for is that of the mask; the last one keeps all weights.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.scoring.problem import Problem
from panning.training.moving.method import Clock, Dynamic, Memory, Move, View


class Release(Dynamic):
    """Lets the mask go after a share of the training.

    Attributes:
        at: that share.
    """

    releases: ClassVar[bool] = True

    at: Annotated[float, Field(gt=0, lt=1)] = 0.75

    def _step(self, clock: Clock) -> int:
        return round(self.at * clock.n_steps)

    def check(self, clock: Clock, problem: Problem) -> None:
        if not 0 < self._step(clock) < clock.n_steps:
            raise MaskError(
                f"A release at {self.at:g} of {clock.n_steps} steps leaves no step before it or none after it: train longer."
            )

    def acts(self, clock: Clock) -> bool:
        return clock.step == self._step(clock)

    def move(self, view: View) -> Move:
        return Move(torch.ones_like(view.mask))

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        return bool(mask.all())
