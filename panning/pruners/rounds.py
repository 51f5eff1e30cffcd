"""One round: signals at the current mask and an action give the next mask.

The pruners and the environment call this same function, so that what an agent was trained on is what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.alive.repair import all_alive
from panning.foundation.errors import ModelError
from panning.foundation.progress import Event, Listener, silent
from panning.masks.allocation import allocate
from panning.masks.layout import Layout
from panning.masks.masks import Masks, n_kept_at
from panning.masks.shape import Shaped
from panning.scoring.mixing import Combination, Normaliser, mix
from panning.scoring.problem import PLAIN, Problem, Scoring
from panning.scoring.schedules import densities
from panning.scoring.signals import Signals


@dataclass(frozen=True)
class Rounds:
    """A caller's wishes about the rounds of any method; None leaves the choice to the method.

    Attributes:
        n_rounds: how many.
        schedule: a row of ``SCHEDULES``.
        listen: hears of each.
        inverted: keep the lowest scores instead of the highest, the control of score inversion.
        round_to: of methods that keep whole units: keep more, up to a multiple of so many channels in each layer; without
            these, kernels would only be slower.
    """

    n_rounds: int | None = None
    schedule: str | None = None
    listen: Listener = silent
    inverted: bool = False
    round_to: int = 1

    def targets(self, n_rounds: int, schedule: str, density: float) -> list[float]:
        """The density after each round, with the method's own number and schedule where the caller says nothing."""
        return densities(self.schedule or schedule, n_rounds if self.n_rounds is None else self.n_rounds, density)


METHODS_OWN = Rounds()


@dataclass(frozen=True)
class RoundAction:
    """The decisions of one round.

    Attributes:
        weights: index name -> weight (sum) or exponent (product).
        density: after this round.
        spread: 0 places the weights of a layer by score, 1 at random (see ``allocate``).
        revive: whether a masked weight may return.
        inverted: keep the lowest scores.
    """

    weights: Mapping[str, float]
    density: float
    spread: float = 0.0
    combination: Combination = "sum"
    normaliser: Normaliser = "mean"
    revive: bool = True
    inverted: bool = False


@dataclass(frozen=True, eq=False)
class Round:
    """The result of a round: the mask and the scores that ranked its weights, both flat."""

    mask: Tensor
    scores: Tensor


def prune_round(signals: Signals, action: RoundAction) -> Round:
    """The next mask, with exactly round(density * n_prunable) weights."""
    problem = signals.problem
    scores = mix(action.weights, signals, action.combination, action.normaliser)
    if action.inverted:
        scores = -scores
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
    """The result of a pruner.

    Attributes:
        mask: flat bool.
        scores: flat; the ranking that ``all_alive`` revives weights by.
        history: one JSON-able entry a round.
        of_units: weights whose scores have the same whole part go together; the highest whole part always stays.
        ranks_once: the scores rank weights for every density: the mask of another has the best of them.
    """

    layout: Layout
    mask: Tensor
    scores: Tensor
    history: tuple[dict[str, Any], ...] = ()
    of_units: bool = False
    ranks_once: bool = False

    @property
    def masks(self) -> Masks:
        return Masks(self.layout, self.mask.cpu())


def run_rounds(
    problem: Problem,
    targets: list[float],
    choose: Callable[[float], RoundAction],
    *,
    scoring: Scoring = PLAIN,
    listen: Listener = silent,
) -> PruneResult:
    """Prune in one round per target density, each with a scoring batch of its own, from the dense network on.

    Args:
        choose: the action that leads to a target.
    """
    mask = torch.ones_like(problem.weight, dtype=torch.bool)
    signals = Signals(problem, mask, scoring=scoring)
    history = []
    for number, target in enumerate(targets):
        action = choose(target)
        signals = signals.at(mask, number)
        result = prune_round(signals, action)
        mask = result.mask
        history.append({"round": number + 1, "density": target, "weights": dict(action.weights)})
        listen(Event("pruning", number + 1, len(targets), "round", {"density": target}))
    return PruneResult(problem.layout, mask, result.scores, tuple(history))


def make_all_alive(problem: Problem, result: PruneResult) -> PruneResult:
    """The result with as many weights, all of them alive (see ``all_alive``).

    Raises:
        DensityError: if no such mask is found.
        ModelError: if the network contains a function whose paths the alive test does not follow exactly.
    """
    connectivity = Connectivity.of(problem)
    mask = all_alive(connectivity, result.mask, result.scores)
    if (n_alive := connectivity.n_alive(mask)) != int(mask.sum()):  # no search can do more than the alive test knows
        raise ModelError(
            f"Only {n_alive} of {int(mask.sum())} weights are alive: this network contains a function in which more weights "
            "can cut others off. docs/layers.md says what is followed."
        )
    return PruneResult(result.layout, mask, result.scores, result.history)


def ranking_of(result: PruneResult) -> Tensor:
    """The scores by which a method ranks all weights, flat.

    What a method of several rounds has cut ranks last, for its scores there are those of a network without it.
    """
    scores = result.scores
    return scores if len(result.history) < 2 else torch.where(result.mask, scores, scores.min())


def make_shaped(result: PruneResult, shaped: Shaped, density: float | None) -> PruneResult:
    """The result in a shape: the weights that the method ranks highest among those that the shape allows."""
    mask = shaped.mask(ranking_of(result).cpu(), density).to(result.mask.device)
    return PruneResult(result.layout, mask, result.scores, result.history)
