"""A grid: models and data sets, densities, methods and seeds, trained under one protocol. What it is; ``grid_run`` runs it.

Every cell is a job of its own, named by its content: a grid can be stopped, extended and merged without repeating one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from panning.agents.config import Density
from panning.benchmark.presets import load_recipe
from panning.config import Config
from panning.pruners import PRUNERS
from panning.pruners.controls import CONTROLS
from panning.pruners.policy_net import load_policy
from panning.registry import lookup
from panning.search.jobs import Job, cell_job
from panning.tasks import DataSource, TaskSpec, check_task_names
from panning.training import Recipe


class Contender(Config):
    """A way to make masks: a row of the tables.

    Attributes:
        method: a row of ``PRUNERS``; or
        policy: an agent's policy file, from the config's folder.
        all_alive: give the budget of dead weights back.
        released: the method as its authors' code has it.
        control: a row of ``CONTROLS`` around the method.
    """

    method: str | None = None
    policy: str | None = None
    all_alive: bool = False
    released: bool = False
    control: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"method": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_way(self) -> Contender:
        if (self.method is None) == (self.policy is None):
            raise ValueError("name a method or a policy file, not both")
        if self.policy is not None and (self.released or self.control is not None):
            raise ValueError("released and control go with a method, not with a policy")
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

    def by(self, folder: Path) -> tuple[dict[str, Any], bytes | None]:
        """How a job makes the mask (see ``prune_job``), and the policy's file."""
        if self.policy is None:
            variant = {"released": self.released, "control": self.control}
            return {"method": self.method, **{key: value for key, value in variant.items() if value}}, None
        path = folder / self.policy
        net = load_policy(path)
        return {
            "policy": "agent",
            "n_rounds": net.n_rounds,
            "action": net.spec.model_dump(mode="json"),
        }, path.read_bytes()


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

    @field_validator("recipe", mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return load_recipe(given) if isinstance(given, str) else given


class GridConfig(Config):
    """A whole benchmark.

    Attributes:
        tasks: each is a table of its own.
        short: further recipes that every mask is trained by, on the validation part alone: how well they foresee the full
            training is what ``panning bench fidelity`` tells.
    """

    name: str
    tasks: Annotated[tuple[GridTask, ...], Field(min_length=1)]
    densities: Annotated[tuple[Density, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    methods: Annotated[tuple[Contender, ...], Field(min_length=1)]
    short: tuple[Recipe, ...] = ()
    data_root: str | None = None
    download: bool = False
    job_timeout_s: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _with_controls(self) -> GridConfig:
        controls = {contender.control for contender in self.methods}
        missing = [
            *(["erk"] if all(c.method != "erk" for c in self.methods) else []),
            *(["a method with control: shuffle_alive"] if "shuffle_alive" not in controls else []),
            *(["a method with control: reinitialise"] if "reinitialise" not in controls else []),
        ]
        if missing:
            raise ValueError(
                f"a benchmark without controls is not believed; add to methods: {'; '.join(missing)} (see docs/benchmark.md)"
            )
        for name in ("methods", "densities", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"one of the {name} is named twice")
        return self

    @property
    def source(self) -> DataSource:
        """Where the data lie, for this machine."""
        return DataSource.at(self.data_root, self.download)


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
    name = PRUNERS[by["method"]].label if "method" in by else "panning (agent)"
    extra = [*(["released"] if by.get("released") else []), *([CONTROLLED[by["control"]]] if by.get("control") else [])]
    return name + (f" ({'; '.join(extra)})" if extra else "") + (" + all-alive" if config["all_alive"] else "")


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
