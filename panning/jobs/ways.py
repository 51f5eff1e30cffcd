"""Ways to make masks, as values: what the ``by`` and ``all_alive`` of a record's config say."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from panning.episode.actions import ActionSpec
from panning.episode.episode import Policy, run_policy
from panning.episode.policies import POLICIES, Replay, make_policy
from panning.episode.policy_net import PolicyNet
from panning.foundation.config import OR_NAME, Config, Name
from panning.foundation.errors import PanningError
from panning.foundation.records import content_key
from panning.foundation.registry import origins
from panning.foundation.seeding import numpy_rng
from panning.pruners import PRUNERS, PruneResult, Rounds, make_all_alive, plugins_of, prune_problem, variant_of
from panning.pruners.rounds import METHODS_OWN
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem
from panning.training import DYNAMICS, make_dynamic
from panning.training.moving.method import Dynamic

#: What a control adds to its method's name.
CONTROLLED = {
    "shuffle": "shuffled", "shuffle_alive": "shuffled, as many alive", "reinitialise": "of other weights",
    "invert": "inverted",
}  # fmt: skip
Actions = tuple[tuple[float, ...], ...]


class DynamicSpec(Config):
    """A row of ``DYNAMICS`` with all its numbers, which are those of the row where none are given."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        given = {"name": given} if isinstance(given, str) else given
        if not isinstance(given, dict) or set(given) - {"name", "options"} or not isinstance(given.get("name"), str):
            return given
        options = given.get("options") or {}
        if not isinstance(options, dict):
            return given
        try:
            return {"name": given["name"], "options": make_dynamic(given["name"], options).model_dump(mode="json")}
        except PanningError as error:
            raise ValueError(str(error)) from None

    @property
    def method(self) -> Dynamic:
        return make_dynamic(self.name, self.options)

    @property
    def label(self) -> str:
        """As tables call it: with the numbers that make it another than its row."""
        row = DYNAMICS[self.name]
        own = row.method.model_dump(mode="json")
        other = [f"{key} {value}" for key, value in sorted(self.options.items()) if own.get(key) != value]
        return row.label + (f" ({', '.join(other)})" if other else "")


class By(Config):
    """Base of what makes a mask. Its JSON has no field that is as by default.

    Attributes:
        dynamic: moves the mask while the network trains; alone it makes the first mask, too.
        members: so many networks, each of its own weights and masks, that predict together.
    """

    dynamic: Annotated[DynamicSpec, OR_NAME] | None = None
    members: Annotated[int, Field(ge=1, le=100)] = 1

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {name: value for name, value in handler(self).items() if value != fields[name].default}

    @property
    def method_name(self) -> str:
        """What mask files call it."""
        return "panning"

    @property
    @abstractmethod
    def first(self) -> str | None:
        """For messages: what makes the first mask; None if the dynamic method does."""

    @property
    @abstractmethod
    def first_label(self) -> str:
        """What tables call it; empty if the dynamic method makes the first mask."""

    @property
    def label(self) -> str:
        """What tables call it."""
        name = self.first_label
        if self.dynamic is not None:
            name = self.dynamic.label + (f" from {name}" if name else "")
        return name + (f", {self.members} together" if self.members > 1 else "")

    @property
    @abstractmethod
    def plugins(self) -> dict[str, str]:
        """The installed packages whose rows it uses (``registry.origins``)."""

    @abstractmethod
    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds
    ) -> tuple[PruneResult, Actions]:
        """The first mask, and the actions of the episode if it is one."""

    @model_validator(mode="after")
    def _begins_somehow(self) -> By:
        if self.first is None and self.dynamic is None:
            raise ValueError("name a method, a policy file or a dynamic method")
        if self.first is not None and self.dynamic is not None and self.dynamic.method.only_prunes:
            raise ValueError(
                f"'{self.dynamic.name}' only prunes, and a first mask has the final density here: leave {self.first} out"
            )
        return self


class Method(By):
    """A row of ``PRUNERS``, or only a dynamic method.

    Attributes:
        released: the method as its authors' code has it.
        control: a row of ``CONTROLS`` around the method.
    """

    method: str | None = None
    released: bool = False
    control: str | None = None

    @model_validator(mode="after")
    def _is_a_variant(self) -> Method:
        if self.method is None and (self.released or self.control is not None):
            raise ValueError("released and control go with a method")
        try:
            if self.method is not None:
                variant_of(self.method, self.released, self.control)
        except PanningError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def first(self) -> str | None:
        return None if self.method is None else f"method '{self.method}'"

    @property
    def first_label(self) -> str:
        extra = [*(["released"] if self.released else []), *([CONTROLLED[self.control]] if self.control else [])]
        label = PRUNERS[self.method].label if self.method is not None else ""
        return label + (f" ({'; '.join(extra)})" if extra else "")

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds
    ) -> tuple[PruneResult, Actions]:
        assert self.method is not None, "a dynamic method alone makes its first mask itself"
        result = prune_problem(
            problem, density, self.method, rounds=rounds, released=self.released, control=self.control
        )
        return result, ()

    @property
    def method_name(self) -> str:
        return self.method or ""

    @property
    def plugins(self) -> dict[str, str]:
        return {} if self.method is None else plugins_of(self.method)


class Episode(By):
    """Base of what prunes in rounds by the actions of a policy."""

    n_rounds: Annotated[int, Field(ge=1)]
    action: ActionSpec

    @property
    def first(self) -> str:
        return "the policy"

    @property
    def plugins(self) -> dict[str, str]:
        return origins((INDICES, self.action.indices))

    @abstractmethod
    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        """A fresh policy for one episode on the network of ``seed``."""

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds
    ) -> tuple[PruneResult, Actions]:
        result, actions = run_policy(
            problem, density, self.actor(problem.seed, net), self.action, self.n_rounds, listen=rounds.listen
        )
        return result, tuple(tuple(float(value) for value in action) for action in actions)


class FixedPolicy(Episode):
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


class Agent(Episode):
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


class ReplayedEpisode(Episode):
    """The actions of an earlier episode."""

    policy: Literal["actions"]
    actions: Annotated[Actions, Field(min_length=1)]

    @property
    def first_label(self) -> str:
        return f"panning (agent's episode {content_key(self.actions)[:6]})"

    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        return Replay(self.actions)


def _kind(by: Any) -> str:
    """Which of ``MaskSpec`` is meant: its policy says it."""
    policy = by.get("policy") if isinstance(by, dict) else getattr(by, "policy", None)
    return "method" if policy is None else policy if policy in ("agent", "actions") else "policy"


MaskSpec = Annotated[
    Annotated[Method, Tag("method")]
    | Annotated[FixedPolicy, Tag("policy")]
    | Annotated[Agent, Tag("agent")]
    | Annotated[ReplayedEpisode, Tag("actions")],
    Discriminator(_kind),
]


class Way(Config):
    """A way to make masks for any network and density.

    Attributes:
        by: None leaves the network dense.
        all_alive: give the budget of dead weights back; where masks move, after every move.
    """

    by: MaskSpec | None = None
    all_alive: bool = False

    @property
    def label(self) -> str:
        """What tables call it."""
        return "dense" if self.by is None else self.by.label + (" + all-alive" if self.all_alive else "")

    @property
    def needs_policy(self) -> bool:
        """Whether a job carries the agent's file."""
        return isinstance(self.by, Agent)

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None = None, rounds: Rounds = METHODS_OWN
    ) -> tuple[PruneResult, Actions]:
        """The first mask of a network, and the actions of the episode if it is one."""
        assert self.by is not None, "the dense network has no mask"
        result, actions = self.by.prune(problem, density, net, rounds)
        return (make_all_alive(problem, result) if self.all_alive else result), actions
