"""Episodes as ways to make masks: policies that are fixed, trained or replayed (``panning.jobs.levers``: one action)."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from panning.episode.actions import ActionSpec
from panning.episode.episode import Policy, run_policy
from panning.episode.policies import POLICIES, Replay, make_policy
from panning.episode.policy_net import PolicyNet
from panning.foundation.config import Name
from panning.foundation.errors import PanningError
from panning.foundation.records import content_key
from panning.foundation.seeding import numpy_rng
from panning.jobs.by import Actions, By
from panning.pruners import AllAlive, PruneResult, Rounds, make_all_alive
from panning.pruners.rounds import MAX_ROUNDS
from panning.scoring.problem import Problem


class Episode(By):
    """Base of what prunes in rounds by the actions of a policy."""

    n_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]

    @property
    @abstractmethod
    def spec(self) -> ActionSpec:
        """The form of its actions."""

    @property
    def first(self) -> str:
        return "the policy"

    @property
    def plugins(self) -> dict[str, str]:
        return self.spec.plugins

    @property
    def chooses_start(self) -> bool:
        return self.spec.start

    @abstractmethod
    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        """A fresh policy for one episode on the network of ``seed``."""

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds, all_alive: AllAlive
    ) -> tuple[PruneResult, Actions]:
        result, actions = run_policy(
            problem, density, self.actor(problem.seed, net), self.spec, self.n_rounds, listen=rounds.listen
        )
        result = make_all_alive(problem, result, all_alive)
        return result, tuple(tuple(float(value) for value in action) for action in actions)


class _OfSpec(Episode):
    """Base of episodes that name the form of their actions."""

    action: ActionSpec

    @property
    def spec(self) -> ActionSpec:
        return self.action


class FixedPolicy(_OfSpec):
    """A row of ``POLICIES``."""

    policy: Annotated[str, Name(POLICIES, "policy")]

    @property
    def method_name(self) -> str:
        return f"panning policy {self.policy}"

    @property
    def first_label(self) -> str:
        return f"panning ({self.policy})"

    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        return make_policy(self.policy, self.action)


class Agent(_OfSpec):
    """A trained agent, whose file travels beside the job.

    Attributes:
        sample: number of a sampled episode; None takes the most likely actions.
    """

    policy: Literal["agent"]
    sample: int | None = None

    @property
    def first_label(self) -> str:
        return "panning (agent)" if self.sample is None else f"panning (agent, sample {self.sample})"

    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        if net is None:
            raise PanningError("A job for the agent carries no policy file.")
        if self.sample is None:
            return net
        return dataclasses.replace(net, rng=numpy_rng(seed, "sampled episode", self.sample))


class ReplayedEpisode(_OfSpec):
    """The actions of an earlier episode.

    Attributes:
        drawn_by: the sampler of a search that chose them; None is the agent.
    """

    policy: Literal["actions"]
    actions: Annotated[Actions, Field(min_length=1)]
    drawn_by: Annotated[str, Field(pattern=r"^[\w .+-]{1,60}$")] | None = None

    @property
    def first_label(self) -> str:
        return f"panning ({self.drawn_by or 'agent'}'s episode {content_key(self.actions)[:6]})"

    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        return Replay(self.actions)
