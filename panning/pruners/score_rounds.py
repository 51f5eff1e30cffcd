"""Pruning by scores, in one round or many: every method that ranks all weights by one index or a fixed mix.

A one-shot method has one round. Without revival (iterative SNIP, SynFlow) a masked weight stays masked. With revival
(FORCE, de Jorge et al., ICLR 2021) every weight competes again in each round, with the gradient taken at the masked network.

NOTE Each round scores one batch. The papers average gradients over several (GraSP 1 to 150, FORCE 1 to 40). One batch of all
their samples, which a caller may pass, gives the same scores but for norms by the batch's statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from panning.pruners.rounds import METHODS_OWN, PruneResult, RoundAction, Rounds, run_rounds
from panning.scoring.mixing import Combination, Normaliser
from panning.scoring.problem import PLAIN, Problem, Scoring

#: The released code of GraSP, GCS and Panning divides the logits by this temperature.
#: NOTE Only the rows of these methods do so. An agent mixes indices of one pass at temperature 1, so that its GraSP ranks
#: weights otherwise than the row ``grasp_magnitude``.
RELEASE_TEMPERATURE = 200.0


def mean_true_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean logit of the true class: the loss of FORCE's release, which takes no log-softmax."""
    return F.nll_loss(logits, targets)


@dataclass(frozen=True)
class ScoreRounds:
    """A pruner that ranks weights by the same index or mix in every round of a density schedule.

    Attributes:
        weights: index -> its weight in the mix.
        n_rounds: the paper's default; a caller may ask for another number.
        revive: whether a masked weight may return.
    """

    weights: Mapping[str, float]
    n_rounds: int = 1
    revive: bool = False
    schedule: str = "exponential"
    spread: float = 0.0
    combination: Combination = "sum"
    normaliser: Normaliser = "mean"
    scoring: Scoring = PLAIN

    @property
    def indices(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        def choose(target: float) -> RoundAction:
            return RoundAction(
                self.weights, target, self.spread, self.combination, self.normaliser, self.revive, rounds.inverted
            )

        targets = rounds.targets(self.n_rounds, self.schedule, density)
        result = run_rounds(problem, targets, choose, scoring=self.scoring, listen=rounds.listen)
        return replace(result, ranks_once=len(targets) == 1 and self.spread == 0.0)
