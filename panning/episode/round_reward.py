"""The reward of a round: pure functions of a state, whose normalisers are the dense network's values, fixed at reset.

The terms are the paper's (Kang et al. 2022), each in [-1, 0] and divided by the number of rounds. A dead
network ends the episode and loses 1 for each round that it did not live to see. A new term is a function, a row in
``ROUND_TERMS`` and its weight in ``RewardSpec``; the environment then tells it and the agent's training logs it. A term of
an installed package (entry points ``panning.rewards``) is told where ``RewardSpec.terms`` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from panning.episode.state import EpisodeState
from panning.foundation.errors import NonFiniteError
from panning.foundation.registry import Table

TINY = 1e-12


def alive(state: EpisodeState) -> float:
    """-(kept weights that are dead) / kept weights.

    NOTE The paper takes 100 |target - effective|, which is at most 100 (1 - target sparsity) and so blind exactly where
    sparsity is high; the share of the budget that is lost is not.
    """
    return state.effective_density / state.density - 1.0


def loss(state: EpisodeState) -> float:
    """-|L_m - L| / L, cut at 1, with L of the dense network on the same batch."""
    return -min(1.0, abs(state.signals.loss - state.dense_loss) / max(state.dense_loss, TINY))


def gradient(state: EpisodeState) -> float:
    """-|G_m - G| / G, cut at 1, with G the dense network's squared gradient norm on the same batch."""
    dense_energy = max(state.dense_grad_norm**2, TINY)
    return -min(1.0, abs(state.signals.grad_norm**2 - dense_energy) / dense_energy)


Term = Callable[[EpisodeState], float]
_OWN: dict[str, Term] = {"alive": alive, "loss": loss, "gradient": gradient}
ROUND_TERMS: Table[Term] = Table(
    _OWN, "panning.rewards", "a function of an EpisodeState", lambda found, *_: found if callable(found) else None
)


def round_terms(state: EpisodeState, names: Iterable[str] = tuple(_OWN)) -> dict[str, float]:
    """The terms after a round, unweighted.

    Raises:
        NonFiniteError: if one is NaN or infinite.
    """
    terms = {name: float(ROUND_TERMS[name](state)) for name in names}
    for name, value in terms.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"The reward term '{name}' is {value} in round {state.round_number}.")
    return terms


def round_reward(weights: Mapping[str, float], state: EpisodeState) -> float:
    """The weighted terms of one round; over an episode that loses nothing they add up to 0, else to less.

    Args:
        weights: of rows of ``ROUND_TERMS``.
    """
    reward = sum(weights[name] * value for name, value in round_terms(state, weights).items()) / state.n_rounds
    return reward - state.rounds_left / state.n_rounds if state.is_dead else reward
