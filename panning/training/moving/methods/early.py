"""Pruning early in training: after a few steps of the dense network, by any method that prunes before training.

How much pre-training is enough is asked by Frankle et al. 2021 (arXiv 2009.08576, section 6) and by You et al. 2020
(arXiv 1909.11957): the method scores the weights as they are then, and training goes on under its mask.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from panning.foundation.config import Name
from panning.foundation.errors import MaskError
from panning.pruners import PRUNERS, prune_problem
from panning.scoring.problem import Problem
from panning.training.moving.method import Clock, Dynamic, Move, ShareBelowOne, View


class Early(Dynamic):
    """Prunes once, after a few steps of dense training.

    Attributes:
        method: a row of ``PRUNERS``.
        after: steps of dense training; None: the share ``after_share`` of the training.
    """

    method: Annotated[str, Name(PRUNERS, "method")] = "synflow"
    after: Annotated[int, Field(ge=0)] | None = None
    after_share: ShareBelowOne = 0.05

    def _step(self, clock: Clock) -> int:
        return round(self.after_share * clock.n_steps) if self.after is None else self.after

    def check(self, clock: Clock, problem: Problem) -> None:
        if PRUNERS[self.method].needs_data:
            problem.source(f"Method '{self.method}'")
        if (step := self._step(clock)) >= clock.n_steps:
            raise MaskError(f"Pruning after {step} steps never comes in a training of {clock.n_steps}.")

    def begin(self, view: View) -> Move:
        return self.move(view) if self._step(view.clock) == 0 else Move(view.mask)

    def acts(self, clock: Clock) -> bool:
        return not clock.is_over and clock.step == self._step(clock)

    def move(self, view: View) -> Move:
        result = prune_problem(view.problem, view.density, self.method)
        device = view.mask.device
        return Move(result.mask.to(device), revival=_ranks(result.scores).float().to(device))


def _ranks(scores: Tensor) -> Tensor:
    """Scores of any kind as their ranks, which are finite in float32."""
    ranks = scores.new_empty(scores.shape)
    ranks[scores.argsort(stable=True)] = torch.arange(scores.numel(), dtype=scores.dtype, device=scores.device)
    return ranks
