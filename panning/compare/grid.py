"""A grid: models and data sets, densities, methods and seeds, trained under one protocol. ``compare.run`` runs it.

Every cell is a job of its own, named by its content: a grid can be stopped, extended and merged without repeating one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from panning.compare.contenders import IN_TASKS, Contender
from panning.foundation.config import DISTINCT, OR_NAME, Config, Seed
from panning.foundation.errors import ConfigError, PanningError
from panning.jobs.outcome import CellOutcome
from panning.jobs.spec import CellSpec, digest
from panning.jobs.ways import Way
from panning.jobs.work import Job
from panning.masks.masks import Density
from panning.pruners.targets import SharesOf, Target, check_target
from panning.tasks import DataSource, NamedTask, RunConfig, TaskSpec
from panning.training import Recipe
from panning.training.presets import load_recipe
from panning.training.recipe import Start, StartOrNone


class GridTask(Config):
    """A network, its data and how it is trained.

    Attributes:
        recipe: for every method and the dense network alike; as text, a preset: ``lenet5-fashion_mnist/short``.
        learning_rates: try these on the validation part, for each method and density on its own, and train with the best.
            A fixed rate favours some masks; this costs as many trainings more as there are rates.
        starts: of the kept weights, likewise: ``[none, gain]``; with rates, each with each.
        densities: in place of the grid's.
        shares_of: of what the grid's densities are shares: ``weights``, or what every mask is to leave of the dense
            network's ``multiply_adds`` or ``parameters``.
    """

    elsewhere: ClassVar[Mapping[str, str]] = IN_TASKS
    task: NamedTask
    recipe: Annotated[Recipe, OR_NAME]
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], DISTINCT] = ()
    starts: Annotated[tuple[StartOrNone, ...], DISTINCT] = ()
    densities: Annotated[tuple[Density, ...], DISTINCT] = ()
    shares_of: SharesOf = "weights"

    @field_validator("recipe", mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return load_recipe(given) if isinstance(given, str) else given

    @property
    def tries(self) -> bool:
        """Whether anything of the recipe is chosen on the validation part."""
        return bool(self.learning_rates or self.starts)


class GridConfig(RunConfig):
    """A whole benchmark.

    Attributes:
        name: of its folder; another config of this name goes on there.
        tasks: each is a table of its own.
        short: further recipes that every mask is trained by, on the validation part alone: how well they foresee the full
            training is what ``panning bench fidelity`` tells.
        controls: whether controls must be among the methods. A grid without them is allowed with false, and marked in its
            report.
    """

    elsewhere: ClassVar[Mapping[str, str]] = IN_TASKS
    kind: Literal["bench"] = "bench"
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    tasks: Annotated[tuple[GridTask, ...], Field(min_length=1), DISTINCT]
    densities: Annotated[tuple[Density, ...], Field(min_length=1), DISTINCT]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), DISTINCT]
    methods: Annotated[tuple[Annotated[Contender, OR_NAME], ...], Field(min_length=1), DISTINCT]
    short: Annotated[tuple[Recipe, ...], DISTINCT] = ()
    controls: bool = True
    job_timeout_s: Annotated[float, Field(gt=0)] = 3600.0

    def with_tasks(self, change: Callable[[TaskSpec], TaskSpec]) -> GridConfig:
        """This grid with its tasks changed.

        Raises:
            ConfigError: if two tasks become one.
        """
        tasks = tuple(task.model_copy(update={"task": change(task.task)}) for task in self.tasks)
        if len({repr(task) for task in tasks}) < len(tasks):
            raise ConfigError(
                f"The grid '{self.name}' has several models for the same data: one model in place of all makes them equal. "
                "Leave the model to the grid, or give it fewer tasks."
            )
        return self.model_copy(update={"tasks": tasks})

    @model_validator(mode="after")
    def _with_controls(self) -> GridConfig:
        """ERK, and of a method that reads the network and stands for itself in the grid its shuffle and its mask for other
        weights; a grid that says ``controls: false`` may lack them."""
        controls = {c.control for c in self.methods if c.is_control_of_scores and c.uncontrolled in self.methods}
        missing = [
            *(["erk"] if Contender(method="erk") not in self.methods else []),
            *(
                f"a method of the grid that scores weights, with control: {control}"
                for control in ("shuffle_alive", "reinitialise")
                if control not in controls
            ),
        ]
        if missing and self.controls:
            raise ValueError(
                f"a benchmark without controls is not believed; add to methods: {'; '.join(missing)} (see docs/benchmark.md"
                "). To set methods side by side all the same, say controls: false (--no-controls); its report says so, too"
            )
        return self

    @model_validator(mode="after")
    def _shapes_stay(self) -> GridConfig:
        """A start with masks of its own keeps a mask's layer counts, and no shape."""
        shaped = [method for method in self.methods if method.form.shape is not None]
        starts = [start for task in self.tasks for start in (*task.starts, task.recipe.start)]
        for method in shaped:
            if own := [start for start in (*starts, method.start) if start is not None and start.has_own_masks]:
                raise ValueError(
                    f"start '{own[0].text}' finds masks of its own, without the shape '{method.form.shape}': leave out one "
                    "of them"
                )
        return self

    @model_validator(mode="after")
    def _targets_can_be_met(self) -> GridConfig:
        """Only masks that do not move, and without a shape, have as many multiply-adds or parameters as are asked for."""
        for task in self.tasks:
            target = Target.of_share(task.shares_of, 1.0)
            if isinstance(target, float):
                continue
            for method in self.methods:
                if method.dynamic is not None:
                    raise ValueError(
                        f"'{method.dynamic.name}' moves its mask by weights, which changes the number of {target.words}: "
                        "leave dynamic out, or shares_of"
                    )
                try:
                    check_target(target, method.form, method.method)
                except PanningError as error:
                    raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _short_is_another(self) -> GridConfig:
        """Records tell trials of learning rates and starts by that alone, that they differ in them."""
        plain = [_without_choices(task.recipe) for task in self.tasks]
        for recipe in self.short:
            if _without_choices(recipe) in plain:
                raise ValueError(
                    "a short recipe differs from its task's in the learning rate or the start alone: list the rate under "
                    "learning_rates, the start under starts"
                )
        return self

    @model_validator(mode="after")
    def _tried_ones_are_apart(self) -> GridConfig:
        """A fixed rate or start beside tried ones would be taken for one of them."""
        plain = [
            task.model_copy(update={"recipe": _without_choices(task.recipe), "learning_rates": (), "starts": ()})
            for task in self.tasks
        ]
        for task, other in zip(self.tasks, plain, strict=True):
            if task.tries and plain.count(other) > 1:
                raise ValueError(
                    "two tasks differ in the learning rate or the start alone, and one of them tries several: make two "
                    "configs with different names"
                )
        if not any(task.tries for task in self.tasks):
            return self
        if any(task.starts for task in self.tasks) and any(method.start for method in self.methods):
            raise ValueError(
                "starts tries starts for every method: leave start out of the methods, or starts of the tasks"
            )
        as_drawn = [method.model_copy(update={"start": None}) for method in self.methods]
        if any(as_drawn.count(method) > 1 for method in as_drawn):
            raise ValueError(
                "two methods differ in the start alone, and learning rates are tried: list the starts under starts of tasks"
            )
        return self


def _without_choices(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"learning_rate": 1.0, "start": None})


@dataclass(frozen=True, eq=False)
class Group:
    """Cells of which only the seed differs: one way to make masks, or the dense network, at one density.

    Attributes:
        policy: the agent's file, where the way asks for it.
        start: of the kept weights, in place of the recipe's.
    """

    task: GridTask
    seeds: tuple[int, ...]
    source: DataSource
    way: Way = Way()
    density: float = 1.0
    policy: bytes | None = None
    start: Start | None = None

    @property
    def _takes_start(self) -> bool:
        """A dense network has no start, and a policy may choose it with the mask."""
        return self.way.by is not None and not self.way.chooses_start

    @property
    def recipe(self) -> Recipe:
        """The task's recipe with the start of this group."""
        recipe = self.task.recipe
        start = (self.start or recipe.start) if self._takes_start else None
        return recipe.model_copy(update={"start": start})

    @property
    def tried(self) -> list[Recipe]:
        """The recipes of which the best is chosen on the validation part; none where nothing is tried."""
        own, rates = self.recipe, self.task.learning_rates
        starts = self.task.starts if self._takes_start else ()
        if not rates and not starts:
            return []
        return [
            own.model_copy(update={"learning_rate": rate, "start": start})
            for rate in rates or (own.learning_rate,)
            for start in starts or (own.start,)
        ]

    def jobs(self, recipe: Recipe, *, test: bool) -> list[Job[CellOutcome]]:
        """A cell for each seed; the test part is read only with ``test``."""
        policy = digest(self.policy)
        return [
            Job(
                CellSpec(
                    task=self.task.task, seed=seed, density=self.density, shares_of=self.task.shares_of, by=self.way.by,
                    all_alive=self.way.all_alive, policy=policy, recipe=recipe, test=test,
                ),
                self.source, self.policy,
            )
            for seed in self.seeds
        ]  # fmt: skip


def groups(config: GridConfig, folder: Path) -> list[Group]:
    """All of a grid, the dense networks first.

    Args:
        folder: of the config, where policy files are looked for.
    """
    ways = [(*way, contender.start) for contender in config.methods for way in contender.ways(folder)]
    found = []
    for task in config.tasks:
        found.append(Group(task, config.seeds, config.source))
        found += [
            Group(task, config.seeds, config.source, way, density, policy, start)
            for way, policy, start in ways
            for density in task.densities or config.densities
        ]
    return found
