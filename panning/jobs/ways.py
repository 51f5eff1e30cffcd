"""Ways to make masks, as values: what the ``by`` and ``all_alive`` of a record's config say."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Tag,
    field_validator,
    model_validator,
)

from panning.episode.policy_net import PolicyNet
from panning.foundation.config import Config
from panning.foundation.errors import PanningError
from panning.jobs.by import Actions, By
from panning.jobs.episodes import Agent, Episode, FixedPolicy, ReplayedEpisode
from panning.jobs.levers import LeverAction
from panning.pruners import (
    METHODS_OWN,
    PLAIN_FORM,
    PRUNERS,
    AllAlive,
    Form,
    PruneResult,
    Rounds,
    check_form,
    name_of,
    plugins_of,
    prune_problem,
    told_form,
    variant_of,
)
from panning.pruners.quotas import QuotaSource
from panning.scoring.problem import Problem
from panning.training.moving.in_shape import check_shape

__all__ = [
    "CONTROLLED", "REPAIRS", "Agent", "Bounds", "Episode", "FixedPolicy", "LeverAction", "MaskSpec", "Method",
    "ReplayedEpisode", "Way",
]  # fmt: skip

#: What repair of dead weights adds to a method's name.
REPAIRS: dict[bool | str, str] = {False: "", True: " + all-alive", "in_layers": " + all-alive in layers"}
#: What a control adds to its method's name.
CONTROLLED = {
    "shuffle": "shuffled", "shuffle_alive": "shuffled, as many alive", "reinitialise": "of other weights",
    "invert": "inverted",
}  # fmt: skip


def _pairs(given: Any) -> Any:
    """Bounds as a config or a record has them, as what can be hashed; none are None."""
    if isinstance(given, dict):
        given = sorted(given.items())
    if not isinstance(given, list):
        return given
    return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in given) or None


#: Bounds of layers' densities by name pattern, in pairs; configs have ``{"fc*": 0.1}``.
Bounds = Annotated[tuple[tuple[str, float], ...] | None, BeforeValidator(_pairs)]


class Method(By):
    """A row of ``PRUNERS``, or only a dynamic method.

    Attributes:
        released: the method as its authors' code has it.
        control: a row of ``CONTROLS`` around the method.
        quotas, place, shape, min_density, max_density: the form of the mask (``panning.pruners.form``); with quotas and
            place no method is named, for it would have no say. A mask that moves has the shape at every step.
    """

    method: str | None = None
    released: bool = False
    control: str | None = None
    quotas: str | None = None
    place: str | None = None
    shape: str | None = None
    min_density: Bounds = None
    max_density: Bounds = None

    @field_validator("quotas")
    @classmethod
    def _one_text(cls, given: str | None) -> str | None:
        """The same quotas are the same text, for records are known by it."""
        try:
            return None if given is None else QuotaSource.parse(given).text
        except PanningError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _is_a_variant(self) -> Method:
        if self.method is None and (self.released or self.control is not None):
            raise ValueError("released and control go with a method")
        try:
            if self.method is not None:
                variant_of(self.method, self.released, self.control)
            if self._first_form != PLAIN_FORM:
                check_form(self.form, self.method)
            if self.dynamic is not None:
                check_shape(self.dynamic.method, self.shape, all_alive=False)
        except PanningError as error:
            raise ValueError(str(error)) from None
        if self.dynamic is not None and self.form.has_bounds:
            raise ValueError("a mask that moves leaves its bounds of density: leave them out, or dynamic")
        return self

    @property
    def form(self) -> Form:
        return Form(self.quotas, self.place, self.shape, dict(self.min_density or ()), dict(self.max_density or ()))

    @property
    def _first_form(self) -> Form:
        """What only the first mask has, where it moves: its shape all of them have."""
        return self.form if self.dynamic is None else dataclasses.replace(self.form, shape=None)

    @property
    def first(self) -> str | None:
        if self.method is None:
            return f"quotas '{self.quotas}' with place '{self.place}'" if self.form.says_all else None
        return f"method '{self.method}'"

    @property
    def first_label(self) -> str:
        extra = [
            *(["released"] if self.released else []), *([CONTROLLED[self.control]] if self.control else []),
            *told_form(self._first_form),
        ]  # fmt: skip
        if self.method is None:
            return "; ".join(extra)
        return PRUNERS[self.method].label + (f" ({'; '.join(extra)})" if extra else "")

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None, rounds: Rounds, all_alive: AllAlive
    ) -> tuple[PruneResult, Actions]:
        assert self.first is not None, "a dynamic method alone makes its first mask itself"
        result = prune_problem(
            problem, density, self.method, form=self.form, all_alive_weights=all_alive, rounds=rounds,
            released=self.released, control=self.control,
        )  # fmt: skip
        return result, ()

    @property
    def method_name(self) -> str:
        return "" if self.first is None else name_of(self.method)

    @property
    def plugins(self) -> dict[str, str]:
        return {} if self.first is None else plugins_of(self.method, self.form)


def _kind(by: Any) -> str:
    """Which of ``MaskSpec`` is meant: its policy says it."""
    policy = by.get("policy") if isinstance(by, dict) else getattr(by, "policy", None)
    return "method" if policy is None else policy if policy in ("agent", "actions", "levers") else "policy"


MaskSpec = Annotated[
    Annotated[Method, Tag("method")]
    | Annotated[FixedPolicy, Tag("policy")]
    | Annotated[Agent, Tag("agent")]
    | Annotated[ReplayedEpisode, Tag("actions")]
    | Annotated[LeverAction, Tag("levers")],
    Discriminator(_kind),
]


class Way(Config):
    """A way to make masks for any network and density.

    Attributes:
        by: None leaves the network dense.
        all_alive: give the budget of dead weights back, to any layer or ``in_layers``; where masks move, to any after every
            move.
    """

    by: MaskSpec | None = None
    all_alive: AllAlive = False

    @property
    def label(self) -> str:
        """What tables call it."""
        return "dense" if self.by is None else self.by.label + REPAIRS[self.all_alive]

    @model_validator(mode="after")
    def _keeps_its_shape(self) -> Way:
        if self.all_alive and self.by is not None and self.by.form.shape is not None:
            raise ValueError(f"all_alive would break the shape '{self.by.form.shape}': leave one of them out")
        if self.all_alive == "in_layers" and self.by is not None and self.by.dynamic is not None:
            raise ValueError("all_alive: in_layers is for masks that do not move: say true, or leave dynamic out")
        return self

    @property
    def chooses_start(self) -> bool:
        """``By.chooses_start``."""
        return self.by is not None and self.by.chooses_start

    @property
    def needs_policy(self) -> bool:
        """Whether a job carries the agent's file."""
        return isinstance(self.by, Agent)

    def prune(
        self, problem: Problem, density: float, net: PolicyNet | None = None, rounds: Rounds = METHODS_OWN
    ) -> tuple[PruneResult, Actions]:
        """The first mask of a network, and the actions of the episode if it is one."""
        assert self.by is not None, "the dense network has no mask"
        return self.by.prune(problem, density, net, rounds, self.all_alive)
