"""A trained agent as a method: what ``panning.prune(policy=...)`` takes, and how it prunes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panning.episode.episode import run_policy
from panning.episode.policy_net import PolicyNet, load_policy
from panning.episode.sb3_policy import policy_of_agent
from panning.foundation.errors import PolicyError
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.scoring.problem import Problem


@dataclass(frozen=True, eq=False)
class AgentPruner:
    """A pruner whose rounds are an episode of a policy. It sees the loss, so it needs data whatever it weighs."""

    net: PolicyNet

    @classmethod
    def of(cls, policy: Any) -> AgentPruner:
        """From the path of a policy file, a ``PolicyNet``, or an agent of Stable-Baselines3's PPO or A2C.

        Raises:
            PolicyError: for any other, or a file that is broken.
        """
        if isinstance(policy, str | Path):
            return cls(load_policy(policy))
        return cls(policy if isinstance(policy, PolicyNet) else policy_of_agent(policy))

    @property
    def indices(self) -> tuple[str, ...]:
        return self.net.spec.indices

    @property
    def n_rounds(self) -> int:
        return self.net.n_rounds

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        problem.source("A policy")  # before any work
        if rounds.schedule is not None:
            raise PolicyError("A policy says itself how much each of its rounds cuts: leave the schedule out.")
        net, n_rounds = self.net, self.rounds_of(rounds)
        return run_policy(problem, density, net, net.spec, n_rounds, inverted=rounds.inverted, listen=rounds.listen)[0]

    def rounds_of(self, rounds: Rounds) -> int:
        """How many rounds it takes at a caller's wishes."""
        return self.n_rounds if rounds.n_rounds is None else rounds.n_rounds
