"""One action by the names of its levers, taken in every round, as a way to make masks."""

from __future__ import annotations

from typing import Literal

from panning.episode.episode import initial
from panning.episode.levers import Levers
from panning.episode.observations import OF_NETWORKS, observe
from panning.episode.policies import Constant
from panning.episode.policy_net import PolicyNet
from panning.jobs.episodes import Episode
from panning.scoring.problem import Problem


class LeverAction(Levers, Episode):
    """An episode that takes one action in every round, said by its levers.

    >>> from panning.jobs.levers import LeverAction
    >>> LeverAction(policy="levers", mix="snip + synflow", quotas="0.7 erk + 0.3 own", start="gain").first_label
    'levers (snip + synflow; quotas 0.7 erk + 0.3 own; gain start)'
    """

    policy: Literal["levers"]

    @property
    def method_name(self) -> str:
        return "panning levers"

    @property
    def first(self) -> str:
        return "the levers"

    @property
    def first_label(self) -> str:
        return f"levers ({self.text})"

    def actor(self, seed: int, net: PolicyNet | None) -> Constant:
        return self.constant

    def looks(self, problem: Problem, density: float) -> tuple[tuple[str, float], ...]:
        state = initial(problem, density, self.n_rounds)
        values = (round(float(value), 6) for value in observe(state, OF_NETWORKS))
        return tuple(zip(OF_NETWORKS, values, strict=True))
