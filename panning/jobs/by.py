"""Base of the ways to make masks: moving ones by their numbers, and what every way says of itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from panning.episode.policy_net import PolicyNet
from panning.foundation.config import OR_NAME, Config
from panning.foundation.errors import PanningError
from panning.pruners import PLAIN_FORM, AllAlive, Form, PruneResult, Rounds
from panning.scoring.problem import Problem
from panning.training import DYNAMICS, make_dynamic
from panning.training.moving.method import Dynamic

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
            shape = f" in {self.form.shape}" if self.form.shape else ""
            name = self.dynamic.label + shape + (f" from {name}" if name else "")
        return name + (f", {self.members} together" if self.members > 1 else "")

    @property
    @abstractmethod
    def plugins(self) -> dict[str, str]:
        """The installed packages whose rows it uses (``registry.origins``)."""

    @property
    def chooses_start(self) -> bool:
        """Whether the start of the kept weights is chosen with the mask, whose manifest notes it; recipes then have none."""
        return False

    @property
    def form(self) -> Form:
        """What its masks are to have beside their density."""
        return PLAIN_FORM

    @abstractmethod
    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds, all_alive: AllAlive
    ) -> tuple[PruneResult, Actions]:
        """The first mask, and the actions of the episode if it is one."""

    def looks(self, problem: Problem, density: float) -> tuple[tuple[str, float], ...]:
        """What its cells note of the dense network (rows of ``OBSERVATIONS``, in pairs); most note nothing."""
        return ()

    @model_validator(mode="after")
    def _begins_somehow(self) -> By:
        if self.first is None and self.dynamic is None:
            raise ValueError("name a method, a policy file or a dynamic method")
        if self.first is not None and self.dynamic is not None and self.dynamic.method.only_prunes:
            raise ValueError(
                f"'{self.dynamic.name}' only prunes, and a first mask has the final density here: leave {self.first} out"
            )
        return self
