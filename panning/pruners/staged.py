"""Staged ("artificial") Panning (Kang et al., ACCV 2022, arXiv 2209.13378).

Many rounds, each ranking all weights by a mix of SynFlow (P), SNIP (C) and GraSP (F) whose weights change in stages with
the sparsity reached. SynFlow is taken at the masked network; SNIP and GraSP at the dense one, as the authors do. Masked
weights may return in every round.
"""

from __future__ import annotations

from dataclasses import dataclass

from panning.pruners.rounds import METHODS_OWN, PruneResult, RoundAction, Rounds, run_rounds
from panning.pruners.score_rounds import RELEASE_TEMPERATURE
from panning.scoring.mixing import Combination
from panning.scoring.problem import Problem, Scoring

#: The next stage begins when the sparsity passes these values.
STAIRS = (0.80, 0.90, 0.98, 0.99, 1.0)
#: Weights of SynFlow, SNIP and GraSP in each stage.
SUM_STAGES = ((0.2, 0.5, 0.3), (0.2, 0.4, 0.4), (0.2, 0.3, 0.5), (0.4, 0.2, 0.4), (0.5, 0.0, 0.5))
#: Exponents for the product form.
PRODUCT_STAGES = ((0.3, 1.0, 0.2), (0.3, 1.0, 0.4), (0.5, 0.5, 0.6), (0.8, 0.0, 1.0), (1.0, 0.0, 1.0))


def stage_weights(stage: int, combination: Combination = "sum") -> dict[str, float]:
    """Index weights of a stage, 0 to 4."""
    synflow, snip, grasp = (SUM_STAGES if combination == "sum" else PRODUCT_STAGES)[stage]
    return {"synflow": synflow, "snip": snip, "grasp": grasp}


def next_stage(stage: int, density: float) -> int:
    """The stage after a round that left ``density``: at most one further."""
    return min(stage + 1, len(STAIRS) - 1) if 1.0 - density > STAIRS[stage] else stage


@dataclass(frozen=True)
class StagedPanning:
    """A pruner whose mix changes in stages; 100 rounds and temperature 200 as in the authors' code.

    NOTE The authors draw a fresh scoring batch every round, and so do we.
    """

    combination: Combination = "sum"
    n_rounds: int = 100
    scoring: Scoring = Scoring(temperature=RELEASE_TEMPERATURE, dense_loss=True)
    indices: tuple[str, ...] = ("synflow", "snip", "grasp")

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        stage = 0

        def choose(target: float) -> RoundAction:
            nonlocal stage
            stage = next_stage(stage, target)
            weights = stage_weights(stage, self.combination)
            return RoundAction(
                weights, target, combination=self.combination, normaliser="zscore", inverted=rounds.inverted
            )

        targets = rounds.targets(self.n_rounds, "exponential", density)
        return run_rounds(problem, targets, choose, scoring=self.scoring, listen=rounds.listen)
