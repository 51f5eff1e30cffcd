"""What jobs are asked, as values. The JSON of such a value is a record's config, and its hash the record's key.

- ``PruneSpec``: one network, one density, one way to make masks -> a mask.
- ``TrainSpec``: one network, one mask or none, one recipe -> validation accuracy.
- ``CellSpec``: both in one, with everything a benchmark tells of a row; it needs no other job's outcome.

Masks and policies are named by their hash. Where the data lie is no part of a description: it travels beside (``Job``).
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from panning.episode.actions import ActionSpec
from panning.episode.episode import Policy, run_policy
from panning.episode.policies import POLICIES, Replay, make_policy
from panning.episode.policy_net import PolicyNet
from panning.foundation.config import Config, Name
from panning.foundation.errors import PanningError
from panning.foundation.records import content_key
from panning.foundation.seeding import numpy_rng
from panning.jobs.outcome import CellOutcome, PruneOutcome, TrainOutcome
from panning.masks.masks import Density
from panning.pruners import PRUNERS, PruneResult, Rounds, make_all_alive, prune_problem, variant_of
from panning.pruners.rounds import METHODS_OWN
from panning.scoring.problem import Problem
from panning.tasks import TaskSpec, check_task_names
from panning.training import DYNAMICS, Recipe, make_dynamic
from panning.training.moving.method import Dynamic

#: What a control adds to its method's name.
CONTROLLED = {
    "shuffle": "shuffled", "shuffle_alive": "shuffled, as many alive", "reinitialise": "of other weights",
    "invert": "inverted",
}  # fmt: skip
Actions = tuple[tuple[float, ...], ...]


def digest(data: bytes) -> str:
    """The hash by which a description names a mask or a policy."""
    return hashlib.sha256(data).hexdigest()[:20]


def digest_of_any(data: bytes | None) -> str | None:
    """The same where there may be none."""
    return None if data is None else digest(data)


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

    dynamic: DynamicSpec | None = None
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


class Episode(By):
    """Base of what prunes in rounds by the actions of a policy."""

    n_rounds: Annotated[int, Field(ge=1)]
    action: ActionSpec

    @property
    def first(self) -> str:
        return "the policy"

    @abstractmethod
    def actor(self, seed: int, net: PolicyNet | None) -> Policy:
        """A fresh policy for one episode on the network of ``seed``."""

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds
    ) -> tuple[PruneResult, Actions]:
        result, actions = run_policy(problem, density, self.actor(problem.seed, net), self.action, self.n_rounds)
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
        return f"panning (episode {content_key(self.actions)[:6]})"

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


class _OfOneNetwork(Config):
    """Base of descriptions of jobs.

    Attributes:
        seed: of the network, its batches and its training.
    """

    task: TaskSpec
    seed: int

    _names = field_validator("task")(check_task_names)


class _OfOneMask(Way, _OfOneNetwork):
    """Base of descriptions of jobs that make a mask.

    Attributes:
        policy: hash of the agent's file.
    """

    density: Density = 1.0
    policy: str | None = None

    @model_validator(mode="after")
    def _agent_has_a_file(self) -> _OfOneMask:
        if (self.policy is not None) != self.needs_policy:
            raise ValueError("an agent's row names its policy file, and no other does")
        return self


class PruneSpec(_OfOneMask):
    """Make a mask."""

    kind: ClassVar = "prune"
    outcome: ClassVar = PruneOutcome


class CellSpec(_OfOneMask):
    """Prune, train, and evaluate the last epoch and the one that was best on the validation part.

    Attributes:
        test: read the test part, once, at the end; without it only the validation part is looked at.
    """

    kind: ClassVar = "cell"
    outcome: ClassVar = CellOutcome
    recipe: Recipe
    test: bool = True


class TrainSpec(_OfOneNetwork):
    """Train a network and look at the validation part.

    Attributes:
        mask: hash of a mask file; None trains the dense network.
        test: always false, for the key's sake: the test part is for cells.
    """

    kind: ClassVar = "train"
    outcome: ClassVar = TrainOutcome
    mask: str | None
    recipe: Recipe
    test: Literal[False] = False
