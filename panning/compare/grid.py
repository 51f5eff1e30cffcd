"""A grid: models and data sets, densities, methods and seeds, trained under one protocol. What it is; ``grid_run`` runs it.

Every cell is a job of its own, named by its content: a grid can be stopped, extended and merged without repeating one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from panning.episode.policy_net import load_policy
from panning.foundation.config import Config
from panning.foundation.errors import PanningError
from panning.foundation.registry import lookup
from panning.jobs.work import Job, cell_job
from panning.masks.masks import Density
from panning.pruners import PRUNERS
from panning.pruners.controls import CONTROLS
from panning.tasks import DataSource, RunConfig, TaskSpec, check_task_names
from panning.training import DYNAMICS, Recipe, make_dynamic
from panning.training.moving.method import Dynamic
from panning.training.presets import load_recipe


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


class Contender(Config):
    """A way to make masks: a row of the tables.

    Attributes:
        method: a row of ``PRUNERS``; or
        policy: an agent's policy file, from the config's folder; or
        dynamic: a row of ``DYNAMICS``, alone or with other numbers: ``{name: rigl, options: {every: 50}}``. Beside a method
            or policy, that makes the first mask.
        all_alive: give the budget of dead weights back; where masks move, after every move.
        released: the method as its authors' code has it.
        control: a row of ``CONTROLS`` around the method.
        members: so many networks, each of its own weights and masks, that predict together.
    """

    method: str | None = None
    policy: str | None = None
    dynamic: DynamicSpec | None = None
    all_alive: bool = False
    released: bool = False
    control: str | None = None
    members: Annotated[int, Field(ge=1, le=100)] = 1

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"method": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_way(self) -> Contender:
        if self.method is not None and self.policy is not None:
            raise ValueError("name a method or a policy file, not both")
        if self.method is None and self.policy is None and self.dynamic is None:
            raise ValueError("name a method, a policy file or a dynamic method")
        if self.method is None and (self.released or self.control is not None):
            raise ValueError("released and control go with a method")
        if self.dynamic is not None and self.all_alive and self.dynamic.method.prunes_units:
            raise ValueError(f"'{self.dynamic.name}' prunes whole units: all_alive does not go with it")
        if self.dynamic is not None and self.dynamic.method.only_prunes and (self.method or self.policy):
            raise ValueError(
                f"'{self.dynamic.name}' only prunes, and a first mask has the final density here: leave {self._first} out"
            )
        try:
            row = lookup(PRUNERS, self.method, "method") if self.method is not None else None
            if self.control is not None:
                lookup(CONTROLS, self.control, "control")
        except KeyError as error:
            raise ValueError(str(error)) from None
        if row is not None and self.released and row.released is None:
            raise ValueError(f"method '{self.method}' has no released form")
        if row is not None and self.control is not None and CONTROLS[self.control].of_scores and not row.pruner.indices:
            raise ValueError(f"control '{self.control}' turns scores round, and method '{self.method}' draws at random")
        return self

    @property
    def _first(self) -> str:
        """For messages: what makes the first mask."""
        return "the policy" if self.method is None else f"method '{self.method}'"

    @property
    def is_control_of_scores(self) -> bool:
        """Whether a control stands around a method that ranks weights, not one that draws them by quotas."""
        return self.control is not None and self.method is not None and bool(PRUNERS[self.method].pruner.indices)

    @property
    def uncontrolled(self) -> Contender:
        return self.model_copy(update={"control": None})

    def by(self, folder: Path) -> tuple[dict[str, Any], bytes | None]:
        """How a job makes the mask (see ``prune_job``), and the policy's file."""
        extra: dict[str, Any] = {} if self.dynamic is None else {"dynamic": self.dynamic.model_dump(mode="json")}
        if self.members > 1:
            extra["members"] = self.members
        if self.policy is None:
            named = {"method": self.method, "released": self.released, "control": self.control}
            return {**{key: value for key, value in named.items() if value}, **extra}, None
        path = folder / self.policy
        net = load_policy(path)
        agent = {"policy": "agent", "n_rounds": net.n_rounds, "action": net.spec.model_dump(mode="json")}
        return {**agent, **extra}, path.read_bytes()


class GridTask(Config):
    """A network, its data and how it is trained.

    Attributes:
        recipe: for every method and the dense network alike; as text, a preset: ``lenet5-fashion_mnist/short``.
        learning_rates: try these on the validation part, for each method and density on its own, and train with the best.
            A fixed rate favours some masks; this costs as many trainings more as there are rates.
    """

    task: TaskSpec
    recipe: Recipe
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()

    _names = field_validator("task")(check_task_names)

    @field_validator("learning_rates")
    @classmethod
    def _differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(rates)) < len(rates):
            raise ValueError("a rate is named twice")
        return rates

    @field_validator("recipe", mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return load_recipe(given) if isinstance(given, str) else given


class GridConfig(RunConfig):
    """A whole benchmark.

    Attributes:
        name: of its folder; another config of this name goes on there.
        tasks: each is a table of its own.
        short: further recipes that every mask is trained by, on the validation part alone: how well they foresee the full
            training is what ``panning bench fidelity`` tells.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    tasks: Annotated[tuple[GridTask, ...], Field(min_length=1)]
    densities: Annotated[tuple[Density, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    methods: Annotated[tuple[Contender, ...], Field(min_length=1)]
    short: tuple[Recipe, ...] = ()
    job_timeout_s: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _with_controls(self) -> GridConfig:
        """ERK, and of a method that reads the network and stands for itself in the grid its shuffle and its mask for other
        weights."""
        controls = {c.control for c in self.methods if c.is_control_of_scores and c.uncontrolled in self.methods}
        missing = [
            *(["erk"] if Contender(method="erk") not in self.methods else []),
            *(
                f"a method of the grid that scores weights, with control: {control}"
                for control in ("shuffle_alive", "reinitialise")
                if control not in controls
            ),
        ]
        if missing:
            raise ValueError(
                f"a benchmark without controls is not believed; add to methods: {'; '.join(missing)} (see docs/benchmark.md)"
            )
        for name in ("tasks", "methods", "densities", "seeds", "short"):
            if len({repr(value) for value in getattr(self, name)}) < len(getattr(self, name)):
                raise ValueError(f"one of the {name} is named twice")
        return self

    @model_validator(mode="after")
    def _short_is_another(self) -> GridConfig:
        """Records tell trials of learning rates by that alone, that they differ in it."""
        at_no_rate = [_at_no_rate(task.recipe) for task in self.tasks]
        for recipe in self.short:
            if _at_no_rate(recipe) in at_no_rate:
                raise ValueError(
                    "a short recipe differs from its task's in the learning rate alone: list the rate under learning_rates"
                )
        return self

    @model_validator(mode="after")
    def _tried_rates_are_apart(self) -> GridConfig:
        """A fixed rate beside tried ones would be taken for one of them."""
        at_no_rate = [
            task.model_copy(update={"recipe": _at_no_rate(task.recipe), "learning_rates": ()}) for task in self.tasks
        ]
        for task, other in zip(self.tasks, at_no_rate, strict=True):
            if task.learning_rates and at_no_rate.count(other) > 1:
                raise ValueError(
                    "two tasks differ in the learning rate alone, and one of them tries several: make two configs with "
                    "different names"
                )
        return self


def _at_no_rate(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"learning_rate": 1.0})


#: What a control adds to its method's name.
CONTROLLED = {
    "shuffle": "shuffled", "shuffle_alive": "shuffled, as many alive", "reinitialise": "of other weights",
    "invert": "inverted",
}  # fmt: skip


def row_name(config: dict[str, Any]) -> str:
    """What tables call a cell, from its record's config."""
    by = config["by"]
    if by is None:
        return "dense"
    extra = [*(["released"] if by.get("released") else []), *([CONTROLLED[by["control"]]] if by.get("control") else [])]
    first = PRUNERS[by["method"]].label if "method" in by else "panning (agent)" if "policy" in by else ""
    first += f" ({'; '.join(extra)})" if extra else ""
    name = first
    if dynamic := by.get("dynamic"):
        name = DYNAMICS[dynamic["name"]].label + _other_numbers(dynamic) + (f" from {first}" if first else "")
    if (n := by.get("members", 1)) > 1:
        name += f", {n} together"
    return name + (" + all-alive" if config["all_alive"] else "")


def _other_numbers(dynamic: dict[str, Any]) -> str:
    """What makes a dynamic method another than its row, so that two of one row are told apart."""
    own = DYNAMICS[dynamic["name"]].method.model_dump(mode="json")
    other = [f"{key} {value}" for key, value in dynamic["options"].items() if own.get(key) != value]
    return f" ({', '.join(other)})" if other else ""


@dataclass(frozen=True, eq=False)
class Group:
    """Cells of which only the seed differs: one contender, or the dense network, at one density.

    Attributes:
        by, all_alive, policy: as for ``cell_job``.
    """

    task: GridTask
    seeds: tuple[int, ...]
    source: DataSource
    density: float = 1.0
    by: dict[str, Any] | None = None
    all_alive: bool = False
    policy: bytes | None = None

    def jobs(self, recipe: Recipe, *, test: bool) -> list[Job]:
        """A cell for each seed; the test part is read only with ``test``."""
        return [
            cell_job(
                self.task.task, self.source, seed, recipe, density=self.density, by=self.by, all_alive=self.all_alive,
                policy=self.policy, test=test,
            )
            for seed in self.seeds
        ]  # fmt: skip


def groups(config: GridConfig, folder: Path) -> list[Group]:
    """All of a grid, the dense networks first.

    Args:
        folder: of the config, where policy files are looked for.
    """
    found = []
    for task in config.tasks:
        found.append(Group(task, config.seeds, config.source))
        for contender in config.methods:
            by, policy = contender.by(folder)
            found += [
                Group(task, config.seeds, config.source, density, by, contender.all_alive, policy)
                for density in config.densities
            ]
    return found
