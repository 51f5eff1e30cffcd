"""One round: signals at the current mask and an action give the next mask.

The pruners and the environment call this same function, so that what an agent was trained on is what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from panning.allocation import allocate
from panning.layout import Layout
from panning.masks import Masks, n_kept_at
from panning.mixing import Combination, Normaliser, mix
from panning.signals import Signals

#: Called after each round with its number, from 1, and the number of all rounds.
OnRound = Callable[[int, int], None]


@dataclass(frozen=True)
class RoundAction:
    """What one round does.

    Attributes:
        weights: index name -> weight (sum) or exponent (product).
        density: after this round.
        spread: 0 places the weights of a layer by score, 1 at random (see ``allocate``).
        revive: whether a masked weight may return.
    """

    weights: Mapping[str, float]
    density: float
    spread: float = 0.0
    combination: Combination = "sum"
    normaliser: Normaliser = "mean"
    revive: bool = True


@dataclass(frozen=True, eq=False)
class Round:
    """What a round leaves: the mask and the scores that ranked it, both flat."""

    mask: Tensor
    scores: Tensor


def prune_round(signals: Signals, action: RoundAction) -> Round:
    """The next mask, with exactly round(density * n_prunable) weights."""
    problem = signals.problem
    scores = mix(action.weights, signals, action.combination, action.normaliser)
    mask = allocate(
        scores,
        n_kept_at(action.density, problem.layout.n_prunable),
        problem.layout,
        candidates=None if action.revive else signals.mask,
        spread=action.spread,
        noise=problem.noise if action.spread > 0 else None,
    )
    return Round(mask, scores)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What a pruner returns.

    Attributes:
        mask: flat bool.
        scores: flat; the ranking that ``all_alive`` revives weights by.
        history: one JSON-able entry a round.
    """

    layout: Layout
    mask: Tensor
    scores: Tensor
    history: tuple[dict[str, Any], ...] = ()

    @property
    def masks(self) -> Masks:
        return Masks(self.layout, self.mask.cpu())
