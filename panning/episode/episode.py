"""An episode: one network pruned in rounds to a target density. Pure functions over a frozen state.

``initial`` and ``transition`` are the dynamics; the Gymnasium environment is a shell around them, and ``run_policy`` runs
them with any policy to prune a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from panning.alive.connectivity import Connectivity
from panning.episode.actions import ActionSpec
from panning.episode.observations import STANDARD, observe
from panning.episode.state import EpisodeState
from panning.foundation.errors import DensityError
from panning.foundation.progress import Listener, silent
from panning.masks.masks import n_kept_at
from panning.masks.selection import n_true
from panning.pruners import source_counts
from panning.pruners.rounds import PruneResult, RoundAction, prune_round
from panning.pruners.told import tell_round
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

#: Episodes of one problem begin at the same dense network: up to this number of weights its signals are remembered.
LARGEST_REMEMBERED = 2_000_000

Observation = NDArray[np.float32]
Action = NDArray[Any]


class Policy:
    """The base of what acts in an episode: called with an observation, a policy gives an action.

    Attributes:
        observations: the rows of ``OBSERVATIONS`` that the policy was made for, in the order of its input.
    """

    observations: tuple[str, ...] = STANDARD

    def reset(self) -> None:
        """A new episode begins: a policy that keeps state forgets the last one."""

    def unseen(self, observation: Observation) -> dict[str, tuple[float, float, float]]:
        """Observations outside of what the policy has seen in its training, where that is known: value, lowest, highest."""
        return {}

    def __call__(self, observation: Observation) -> Action:
        """The action [entries of the action's spec] for an observation, float32 [len(observations)]."""
        raise NotImplementedError


def initial(problem: Problem, target_density: float, n_rounds: int) -> EpisodeState:
    """The dense network before the first round.

    Raises:
        DensityError: if the target is no density, keeps fewer weights than a path needs, or there are no rounds.
    """
    if n_rounds < 1:
        raise DensityError(f"Number of rounds is {n_rounds}, but must be at least 1.")
    n_target = n_kept_at(target_density, problem.layout.n_prunable)
    connectivity = Connectivity.of(problem)
    connectivity.check_reachable(n_target)
    mask = torch.ones_like(problem.weight, dtype=torch.bool)
    signals = Signals(problem, mask, made=problem.at_dense if mask.numel() <= LARGEST_REMEMBERED else None)
    signals.request("loss")
    return EpisodeState(
        problem=problem, connectivity=connectivity, target_density=target_density, n_rounds=n_rounds,
        mask=mask, signals=signals, alive=connectivity.dense.to(mask.device),
        dense_loss=signals.loss, dense_grad_norm=signals.grad_norm,
        previous_loss=signals.loss, previous_grad_norm=signals.grad_norm,
    )  # fmt: skip


def transition(state: EpisodeState, action: RoundAction, listen: Listener = silent) -> EpisodeState:
    """The state after one round.

    NOTE The one impure step: the given state's signals are freed, scalars apart, for on large networks they are most of the
    memory. A second transition from the same state gives the same, but has to compute them again.

    The observation needs the loss at the new mask. An action that mixed a second-order index in is most likely followed by
    one that does again, so its signals come from the same graph: that saves the next round a forward and backward pass.

    Args:
        listen: hears of the rounds of other methods whose quotas the action takes.
    """
    result = prune_round(state.signals, action, {name: _counts(state, name, listen) for name in action.quotas})
    state.signals.free()  # before the next pass
    signals = Signals(state.problem, result.mask)
    reached = n_true(result.mask) <= n_kept_at(state.target_density, result.mask.numel())
    second_order = [name for name in action.weights if INDICES[name].second_order]
    again = {need for name in second_order for need in INDICES[name].needs} if len(action.weights) > 1 else set()
    signals.request("loss", *(set() if reached else again))
    return replace(
        state,
        round_number=state.round_number + 1,
        mask=result.mask,
        scores=result.scores,
        signals=signals,
        alive=state.connectivity.alive(result.mask),
        last_action=action,
        previous_loss=state.signals.loss,
        previous_grad_norm=state.signals.grad_norm,
    )


def _counts(state: EpisodeState, source: str, listen: Listener) -> Sequence[int]:
    """The layers' counts of a source of quotas at the episode's target, found once for all episodes of a problem."""
    known, key = state.problem.at_target, (source, state.target_density)
    if key not in known:
        known[key] = source_counts(state.problem, *key, listen=listen)
    return known[key]


def is_terminated(state: EpisodeState) -> bool:
    """Whether the target is reached or the network is dead."""
    return state.reached_target or state.is_dead


def decode(spec: ActionSpec, action: Action, state: EpisodeState) -> RoundAction:
    """The decisions that an agent's action stands for in this state."""
    return spec.decode(action, state.density, state.target_density, state.rounds_left)


def run_policy(
    problem: Problem,
    target_density: float,
    policy: Policy,
    spec: ActionSpec,
    n_rounds: int,
    *,
    inverted: bool = False,
    listen: Listener = silent,
) -> tuple[PruneResult, list[Action]]:
    """Prune with a policy; also returns the actions taken, which replay the episode on another seed.

    A dead network is pruned on to the target all the same, so that the result has the number of weights asked for
    (``all_alive`` can still mend it).

    Args:
        inverted: keep the lowest scores instead of the highest, the control of score inversion.
    """
    state = initial(problem, target_density, n_rounds)
    policy.reset()
    actions: list[Action] = []
    history: list[dict[str, Any]] = []
    unseen: dict[str, tuple[float, float, float]] = {}
    while not state.reached_target:
        observation = observe(state, policy.observations)
        unseen |= policy.unseen(observation)
        action = policy(observation)
        actions.append(action)
        chosen = replace(decode(spec, action, state), inverted=inverted)
        state = transition(state, chosen, listen)
        history.append(
            {
                "round": state.round_number,
                "density": state.density,
                "effective_density": state.effective_density,
                "weights": dict(chosen.weights),
                "spread": chosen.spread,
                **_levers(chosen),
            }
        )
        known = {**history[-1], "action": [float(part) for part in np.ravel(action)]}
        tell_round(listen, problem, state.mask, state.round_number, n_rounds, known, state.alive)
    if unseen:
        history[-1]["unseen"] = unseen
    return replace(result_of(state), history=tuple(history)), actions


def result_of(state: EpisodeState) -> PruneResult:
    """The mask of a state and the scores that ranked it; before the first round, magnitudes."""
    scores = state.problem.weight.abs() if state.scores is None else state.scores
    start = None if state.last_action is None else state.last_action.start
    return PruneResult(state.problem.layout, state.mask, scores, start=start)


def _levers(action: RoundAction) -> dict[str, Any]:
    """What an action says by levers that are off unless its spec switches them on, for histories."""
    said = {"quotas": dict(action.quotas), "balance": action.balance, "start": action.start}
    return {name: value for name, value in said.items() if value}
