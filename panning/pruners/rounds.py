"""One round: signals at the current mask and an action give the next mask.

The pruners and the environment call this same function, so that what an agent was trained on is what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.alive.in_layers import all_alive_in_layers
from panning.alive.repair import all_alive
from panning.foundation.errors import MaskError, ModelError
from panning.foundation.progress import Listener, silent
from panning.masks.allocation import allocate, spread_key, top_k
from panning.masks.budgets import blended_quotas, fitted_counts, ordered, ranked_by_counts
from panning.masks.layout import Layout
from panning.masks.masks import Masks, n_kept_at
from panning.masks.shape import Shaped
from panning.pruners.balance import dealt
from panning.pruners.told import tell_round
from panning.scoring.mixing import Combination, Normaliser, mix
from panning.scoring.problem import PLAIN, Problem, Scoring
from panning.scoring.schedules import densities
from panning.scoring.signals import Signals

#: No method or episode takes more: published schedules have up to a few hundred.
MAX_ROUNDS = 10_000
#: Whether dead weights' budget is given to others: of any layer, or ``in_layers`` to those of their own.
AllAlive = bool | Literal["in_layers"]


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
        quotas: source of layer counts -> its share in their blend in the log, above 0; the scores' own counts have what is
            left to 1.
        balance: the share of each layer's weights that is dealt out evenly over its units (``panning.pruners.balance``).
        start: of the kept weights if this round is the last: ``none`` or a row of ``STARTS``; None: that is not asked here.
    """

    weights: Mapping[str, float]
    density: float
    spread: float = 0.0
    combination: Combination = "sum"
    normaliser: Normaliser = "mean"
    revive: bool = True
    inverted: bool = False
    quotas: Mapping[str, float] = field(default_factory=dict)
    balance: float = 0.0
    start: str | None = None

    def __post_init__(self) -> None:
        if not self.revive and self.is_placed:
            raise MaskError(
                "Quotas and balance place all weights anew in every round: leave revive on, or both of them out."
            )

    @property
    def is_placed(self) -> bool:
        """Whether counts or places come from elsewhere than from the scores."""
        return bool(self.quotas) or self.balance > 0


@dataclass(frozen=True, eq=False)
class Round:
    """The result of a round: the mask and the scores that ranked its weights, both flat.

    Under quotas or balance the scores rank by the layers' counts (``ranked_by_counts``), so that all-alive pruning, which
    goes on by them, keeps to the counts as far as it can.
    """

    mask: Tensor
    scores: Tensor


def prune_round(signals: Signals, action: RoundAction, counts: Mapping[str, Sequence[int]] | None = None) -> Round:
    """The next mask, with exactly round(density * n_prunable) weights.

    Args:
        counts: of the layers, from each source of the action's quotas. They may be those of another density: their ratios
            count.
    """
    problem = signals.problem
    scores = mix(action.weights, signals, action.combination, action.normaliser)
    if action.inverted:
        scores = -scores
    is_spread = action.spread > 0 and not action.is_placed
    mask = allocate(
        scores,
        n_kept_at(action.density, problem.layout.n_prunable),
        problem.layout,
        candidates=None if action.revive else signals.mask,
        spread=action.spread if is_spread else 0.0,
        noise=problem.noise if is_spread else None,
    )
    return _placed(problem, action, Round(mask, scores), counts or {}) if action.is_placed else Round(mask, scores)


def _placed(problem: Problem, action: RoundAction, own: Round, counts: Mapping[str, Sequence[int]]) -> Round:
    """The round with the counts and the places that the action asks for."""
    layout = problem.layout
    per_layer = layout.counts(own.mask)
    n_kept = sum(per_layer)
    if action.quotas:
        shares, left = dict(action.quotas), 1.0 - sum(action.quotas.values())
        if left > 1e-6:
            shares, counts = {"": left, **shares}, {"": per_layer, **counts}
        per_layer = fitted_counts(blended_quotas(counts, shares), n_kept, layout.sizes)
    orders = []
    for number, part in enumerate(layout.slices()):
        scores = own.scores[part]
        key = spread_key(scores, action.spread, problem.noise[part]) if action.spread > 0 else scores
        n_dealt = int(action.balance * per_layer[number] + 0.5)
        orders.append(ordered(key, dealt(problem, number, key, n_dealt) if n_dealt else None))
    ranking = torch.cat(ranked_by_counts(orders, per_layer))
    return Round(top_k(ranking, n_kept), ranking)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """The result of a pruner.

    Attributes:
        mask: flat bool.
        scores: flat; the ranking that ``all_alive`` revives weights by.
        history: one JSON-able entry a round.
        of_units: weights whose scores have the same whole part go together; the highest whole part always stays.
        ranks_once: the scores rank weights for every density: the mask of another has the best of them.
        start: of the kept weights, where it was chosen with the mask: ``none`` or a row of ``STARTS``.
    """

    layout: Layout
    mask: Tensor
    scores: Tensor
    history: tuple[dict[str, Any], ...] = ()
    of_units: bool = False
    ranks_once: bool = False
    start: str | None = None

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
        known = {"density": target, "weights": dict(action.weights)}
        tell_round(listen, problem, mask, number + 1, len(targets), known)
    return PruneResult(problem.layout, mask, result.scores, tuple(history))


def make_all_alive(problem: Problem, result: PruneResult, how: AllAlive = True) -> PruneResult:
    """The result with as many weights, all of them alive (see ``all_alive``), or as it is if ``how`` is false.

    Args:
        how: ``in_layers`` keeps as many in each layer, too (see ``all_alive_in_layers``).

    Raises:
        DensityError: if no such mask is found.
        ModelError: if the network contains a function whose paths the alive test does not follow exactly.
    """
    if not how:
        return result
    connectivity = Connectivity.of(problem)
    repaired = all_alive_in_layers if how == "in_layers" else all_alive
    mask = repaired(connectivity, result.mask, result.scores)
    if (n_alive := connectivity.n_alive(mask)) != int(mask.sum()):  # no search can do more than the alive test knows
        raise ModelError(
            f"Only {n_alive} of {int(mask.sum())} weights are alive: this network contains a function in which more weights "
            "can cut others off. docs/layers.md says what is followed."
        )
    return _of_single_weights(result, mask)


def ranking_of(result: PruneResult) -> Tensor:
    """The scores by which a method ranks all weights, flat.

    What a method of several rounds has cut ranks last, for its scores there are those of a network without it.
    """
    scores = result.scores
    return scores if len(result.history) < 2 else torch.where(result.mask, scores, scores.min())


def make_shaped(result: PruneResult, shaped: Shaped, density: float | None) -> PruneResult:
    """The result in a shape: the weights that the method ranks highest among those that the shape allows."""
    mask = shaped.mask(ranking_of(result).cpu(), density).to(result.mask.device)
    return _of_single_weights(result, mask)


def _of_single_weights(result: PruneResult, mask: Tensor) -> PruneResult:
    """The result with another mask, in which weights need not go together."""
    return replace(result, mask=mask, of_units=False, ranks_once=False)
