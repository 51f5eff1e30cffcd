"""Pruning by scores, in one round or many: magnitude, SNIP, GraSP, SynFlow, iterative SNIP, FORCE.

One shot is one round. Without revival (iterative SNIP, SynFlow) a masked weight stays masked; with it (FORCE,
de Jorge et al., ICLR 2021) every weight competes again in each round, with the gradient taken at the masked network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from panning.mixing import Combination, Normaliser
from panning.problem import Problem
from panning.pruners.rounds import OnRound, PruneResult, RoundAction, prune_round
from panning.schedules import densities
from panning.signals import Signals


@dataclass(frozen=True)
class ScoreRounds:
    """A pruner: the same index or mix in every round of a density schedule.

    Attributes:
        n_rounds: the paper's default; a caller may ask for another number.
        temperature: of the logits while scoring.
    """

    weights: Mapping[str, float]
    n_rounds: int = 1
    revive: bool = False
    schedule: str = "exponential"
    temperature: float = 1.0
    spread: float = 0.0
    combination: Combination = "sum"
    normaliser: Normaliser = "mean"

    def __call__(
        self,
        problem: Problem,
        density: float,
        n_rounds: int | None = None,
        schedule: str | None = None,
        on_round: OnRound | None = None,
    ) -> PruneResult:
        problem = dataclasses.replace(problem, temperature=self.temperature)
        mask = torch.ones_like(problem.weight, dtype=torch.bool)
        targets = densities(schedule or self.schedule, self.n_rounds if n_rounds is None else n_rounds, density)
        history = []
        for number, target in enumerate(targets):
            action = RoundAction(
                self.weights, target, self.spread, self.combination, self.normaliser, revive=self.revive
            )
            result = prune_round(Signals(problem, mask, number), action)
            mask = result.mask
            if on_round is not None:
                on_round(number + 1, len(targets))
            history.append({"round": number + 1, "density": target})
        return PruneResult(problem.layout, mask, result.scores, tuple(history))
