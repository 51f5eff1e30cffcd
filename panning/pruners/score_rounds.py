"""Pruning by scores, in one round or many: magnitude, SNIP, GraSP, SynFlow, iterative SNIP, FORCE.

One shot is one round. Without revival (iterative SNIP, SynFlow) a masked weight stays masked; with it (FORCE,
de Jorge et al., ICLR 2021) every weight competes again in each round, with the gradient taken at the masked network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from panning.mixing import Combination, Normaliser
from panning.problem import Problem
from panning.pruners.rounds import METHODS_OWN, PruneResult, RoundAction, Rounds, run_rounds


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

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        def choose(target: float) -> RoundAction:
            return RoundAction(self.weights, target, self.spread, self.combination, self.normaliser, self.revive)

        targets = rounds.targets(self.n_rounds, self.schedule, density)
        problem = dataclasses.replace(problem, temperature=self.temperature)
        return run_rounds(problem, targets, choose, on_round=rounds.on_round)
