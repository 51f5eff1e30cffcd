"""A population of drawn tasks: small networks of several families on parts of data sets, which an agent is trained on.

Every draw has random numbers of its own, by the seed and its number alone. So the first tasks stay the first when more are
asked for, and a population without a family has the very tasks of the whole one that are not of it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, field_validator, model_validator

from panning.agents.ranges import KeptRange
from panning.foundation.config import DISTINCT, Config, Grown, Seed
from panning.foundation.errors import ConfigError
from panning.foundation.registry import unknown_name_message
from panning.foundation.seeding import numpy_rng
from panning.models.sized import LayerSize, MLPSizes, PlainSizes, ResidualSizes, Sizes, parse_sizes
from panning.tasks import TaskSpec, check_task_names

#: So often the sizes of a draw are drawn anew; after so many draws in a row without a new task nothing is left to draw.
MAX_REDRAWN, MAX_IN_VAIN = 50, 100
Norm = Literal["none", "batch"]
KINDS: tuple[type[Sizes], ...] = (MLPSizes, PlainSizes, ResidualSizes)
NORMS: tuple[Norm, ...] = ("none", "batch")


def _ascends(given: tuple[Any, Any]) -> tuple[Any, Any]:
    if given[0] > given[1]:
        raise ValueError(f"{given[0]} to {given[1]} is no range: the lower end stands first")
    return given


Whole = Annotated[int, Field(ge=0, le=10**9)]
#: The lowest and the highest of what is drawn, both included.
Range = Annotated[tuple[Whole, Whole], AfterValidator(_ascends)]
Kernels = Annotated[tuple[Literal[1, 3, 5, 7], ...], Field(min_length=1), DISTINCT]


def _whole(rng: np.random.Generator, low_high: Range) -> int:
    return int(rng.integers(low_high[0], low_high[1] + 1))


def _log_whole(rng: np.random.Generator, low_high: Range) -> int:
    """A whole number, in the log."""
    low, high = low_high
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def _stages(rng: np.random.Generator, n: int, widths: Range) -> tuple[int, ...]:
    """Channels of stages, none with less than the one before."""
    return tuple(sorted(_log_whole(rng, widths) for _ in range(n)))


class DrawnMLPs(Config):
    """The sizes of drawn multi-layer perceptrons."""

    layers: Range = (1, 4)
    widths: Range = (16, 256)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"widths": tuple(_log_whole(rng, self.widths) for _ in range(_whole(rng, self.layers)))}


class DrawnPlain(Config):
    """The sizes of drawn plain convolutional networks.

    Attributes:
        layers: convolutions of a stage.
        hidden: linear layers between the maps and the classifier; without, it reads the mean of the last map.
        units: of each of these.
    """

    stages: Range = (1, 4)
    layers: Range = (1, 3)
    widths: Range = (4, 48)
    kernels: Kernels = (3, 5)
    hidden: Range = (0, 2)
    units: Range = (16, 256)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "widths": _stages(rng, _whole(rng, self.stages), self.widths),
            "layers": _whole(rng, self.layers),
            "kernel": int(rng.choice(self.kernels)),
            "hidden": tuple(_log_whole(rng, self.units) for _ in range(_whole(rng, self.hidden))),
        }


class DrawnResidual(Config):
    """The sizes of drawn residual networks."""

    stages: Range = (1, 3)
    blocks: Range = (1, 3)
    widths: Range = (4, 32)
    kernels: Kernels = (3, 5)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "widths": _stages(rng, _whole(rng, self.stages), self.widths),
            "blocks": _whole(rng, self.blocks),
            "kernel": int(rng.choice(self.kernels)),
        }


class DrawnData(Config):
    """A data set of which drawn tasks have parts.

    Attributes:
        data, label: as in a task.
        shape: (channels, height, width) of its images.
        n_classes: that it has.
        sides: of the images; each is drawn alike.
        classes: how many of the classes a task has, which are drawn, too.
        n_train: how many training images, drawn in the log.
    """

    data: str
    label: str | None = None
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=3, max_length=3)]
    n_classes: Annotated[int, Field(ge=2, le=10_000)] = 10
    sides: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], DISTINCT] = ()
    classes: Range | None = None
    n_train: Range | None = None

    @model_validator(mode="after")
    def _fits(self) -> DrawnData:
        check_task_names(TaskSpec(model="mlp", data=self.data))
        if max(self.sides, default=0) > (least := min(self.shape[1:])):
            raise ValueError(f"sides has {max(self.sides)}, and images of {least} pixels are only made smaller")
        if self.classes is not None and not 2 <= self.classes[0] <= self.classes[1] <= self.n_classes:
            raise ValueError(f"classes is {list(self.classes)}, but must lie in 2..{self.n_classes}")
        if self.n_train is not None and self.n_train[0] < self.n_classes:
            raise ValueError(
                f"n_train begins at {self.n_train[0]}, below one image of each of {self.n_classes} classes"
            )
        return self

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """The keys of a task, with draws in an order that no setting changes."""
        side, n_of, train = rng.random(3)
        order = rng.permutation(self.n_classes)
        task: dict[str, Any] = {"data": self.data, "label": self.label}
        if self.sides and (found := self.sides[int(side * len(self.sides))]) != min(self.shape[1:]):
            task["side"] = found
        if self.classes is not None:
            low, high = self.classes
            if (n := low + int(n_of * (high - low + 1))) < self.n_classes:
                task["classes"] = tuple(sorted(order[:n].tolist()))
        if self.n_train is not None:
            low, high = self.n_train
            task["n_train"] = round(low * (high / low) ** train)
        return task


class Population(Grown):
    """So many tasks, each a drawn network on a drawn part of a data set.

    >>> from panning.agents.population import Population
    >>> some = Population(n=3, data=[{"data": "digits", "shape": (1, 8, 8), "classes": (3, 10)}])
    >>> more = some.model_copy(update={"n": 5})
    >>> more.tasks[:3] == some.tasks
    True
    >>> whole = {task.model.partition(":")[0] for task in some.model_copy(update={"n": 20, "without": ("mlp",)}).tasks}
    >>> sorted(whole)
    ['plain', 'residual']

    Attributes:
        n: of the tasks.
        without: what is left out: ``mlp``, ``plain``, ``residual``; ``norm`` or ``no_norm``; names of data.
        mlp, plain, residual: the ranges of the sizes of each family's networks.
        n_weights: the least and the most weights of a network; others are drawn anew.
        most_multiply_adds: of a forward pass of one image, likewise.
        most_layers_without: norm and residual sums; more of them do not train.
        kept_fan_in: targets of each network, as inputs that a unit keeps; without, those of all tasks (``densities``).
        balanced: each family has as many draws with norms as without, and on each data set; else that is drawn, too.
    """

    later = frozenset({"kept_fan_in", "balanced"})

    n: Annotated[int, Field(ge=1, le=2000)]
    seed: Seed = 0
    without: Annotated[tuple[str, ...], DISTINCT] = ()
    data: Annotated[tuple[DrawnData, ...], Field(min_length=1)]
    mlp: DrawnMLPs = DrawnMLPs()
    plain: DrawnPlain = DrawnPlain()
    residual: DrawnResidual = DrawnResidual()
    n_weights: Range = (3_000, 300_000)
    most_multiply_adds: Annotated[float, Field(gt=0)] = 2e6
    most_layers_without: Annotated[int, Field(ge=1, le=100)] = 8
    kept_fan_in: KeptRange | None = None
    balanced: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The words that ``without`` takes: families of networks, networks with or without norms, and data sets."""
        return ("mlp", "plain", "residual", "norm", "no_norm", *(one.data for one in self.data))

    @field_validator("data")
    @classmethod
    def _differ(cls, data: tuple[DrawnData, ...]) -> tuple[DrawnData, ...]:
        if len({one.data for one in data}) < len(data):
            raise ValueError("one data set stands twice: give it ranges")
        return data

    @model_validator(mode="after")
    def _leaves_something(self) -> Population:
        if unknown := [name for name in self.without if name not in self.kinds]:
            raise ValueError(unknown_name_message("part of the population", unknown[0], self.kinds))
        for group in (("mlp", "plain", "residual"), ("norm", "no_norm"), tuple(one.data for one in self.data)):
            if not set(group) - set(self.without):
                raise ValueError(f"without leaves out all of {', '.join(group)}")
        return self

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks.

        Raises:
            ConfigError: if hardly any network fits the bounds.
        """
        return _drawn(self)

    def densities_of(self, task: TaskSpec) -> tuple[float, ...]:
        """The targets of one of the tasks; none where ``kept_fan_in`` does not say them."""
        if self.kept_fan_in is None:
            return ()
        (data,) = (one for one in self.data if one.data == task.data)
        layers = _layers_of(parse_sizes(str(task.model)), data, task.model_dump(exclude_none=True))
        return self.kept_fan_in.densities([layer.fan_in for layer in layers])

    def draw(self, number: int) -> TaskSpec | None:
        """The task of a draw; None if it is left out, or no network of its family fits the bounds.

        Family, norm and data are drawn first, and sizes until they fit: bounds change the sizes, not the families' shares.
        """
        rng = numpy_rng(self.seed, "population", number)
        sizes = [len(KINDS), len(NORMS), len(self.data)]
        drawn = np.unravel_index(number % math.prod(sizes), sizes, "F") if self.balanced else map(rng.integers, sizes)
        of_kind, of_norm, of_data = map(int, drawn)
        kind, norm, data = KINDS[of_kind], NORMS[of_norm], self.data[of_data]
        if {kind.family, "norm" if norm == "batch" else "no_norm", data.data} & set(self.without):
            return None
        for _ in range(MAX_REDRAWN):
            if (task := self._fitting(rng, kind, norm, data)) is not None:
                return task
        return None

    def _fitting(self, rng: np.random.Generator, kind: type[Sizes], norm: Norm, data: DrawnData) -> TaskSpec | None:
        """A network of a family on a part of the data, if it fits the bounds."""
        task = data.draw(rng)
        sizes = kind.model_validate({"norm": norm, **getattr(self, kind.family).draw(rng)})
        layers = _layers_of(sizes, data, task)
        is_trained = norm == "batch" or kind is ResidualSizes or len(layers) <= self.most_layers_without
        fits = self.n_weights[0] <= sum(layer.n_weights for layer in layers) <= self.n_weights[1]
        if not (is_trained and fits and sum(one.n_weights * one.uses for one in layers) <= self.most_multiply_adds):
            return None
        return TaskSpec(model=sizes.text, **task)


def _layers_of(sizes: Sizes, data: DrawnData, part: Mapping[str, Any]) -> list[LayerSize]:
    """The layers of a network on a part of the data, by the keys of a task."""
    shape = (data.shape[0], part["side"], part["side"]) if "side" in part else data.shape
    return sizes.layers_on(shape, len(part.get("classes", range(data.n_classes))))


@functools.lru_cache(maxsize=16)
def _drawn(population: Population) -> tuple[TaskSpec, ...]:
    found: dict[TaskSpec, None] = {}
    in_vain = 0
    for number in itertools.count():
        task = population.draw(number)
        in_vain = in_vain + 1 if task is None or task in found else 0
        if task is not None:
            found[task] = None
        if len(found) == population.n:
            return tuple(found)
        if in_vain == MAX_IN_VAIN:
            raise ConfigError(
                f"Of {MAX_IN_VAIN} drawn tasks in a row none is new and has {population.n_weights[0]} to "
                f"{population.n_weights[1]} weights and at most {population.most_multiply_adds:g} multiply-adds: widen "
                f"n_weights, most_multiply_adds or the sizes, or ask for fewer tasks than {population.n}."
            )
    raise AssertionError("never ends so")
