"""Tasks: a model and a data set by name, made into a ``Problem`` for a seed. What travels to workers is the spec alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from panning.config import Config
from panning.data import ImageData, balanced_batch, load_data
from panning.errors import ModelError
from panning.models import build_model
from panning.problem import Problem
from panning.seeding import torch_generator


class TaskSpec(Config):
    """What to prune, by name.

    Attributes:
        model: a row of ``MODELS`` or a torchvision classification model.
        data: a row of ``DATASETS``, ``npz:PATH`` or ``folder:PATH``.
        n_train: use only so many training images; None uses all.
        scoring_per_class: samples of each class in a scoring batch.
    """

    model: str
    data: str
    n_train: Annotated[int, Field(ge=1)] | None = None
    scoring_per_class: Annotated[int, Field(ge=1)] = 10


class DataSource(Config):
    """Where data sets lie on this machine; not part of what a result depends on."""

    root: str | None = None
    download: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """A loaded spec for one seed."""

    spec: TaskSpec
    problem: Problem
    data: ImageData


@functools.lru_cache(maxsize=8)
def load_task_data(spec: TaskSpec, source: DataSource) -> ImageData:
    """The data of ``spec``, kept for the next call."""
    return load_data(spec.data, root=source.root, download=source.download, n_train=spec.n_train)


def make_model(spec: TaskSpec, data: ImageData, seed: int, allow_import: bool = False) -> nn.Module:
    """The network at the initial weights that belong to ``seed``."""
    return build_model(
        spec.model, input_shape=data.input_shape, n_classes=data.n_classes, seed=seed, allow_import=allow_import
    )


def load_task(spec: TaskSpec, seed: int, source: DataSource | None = None, *, allow_import: bool = False) -> Task:
    """Model at the initial weights of ``seed``, with class-balanced scoring batches drawn for ``seed``."""
    data = load_task_data(spec, source or DataSource())
    model = make_model(spec, data, seed, allow_import)

    @functools.lru_cache(maxsize=2)
    def batches(number: int) -> tuple[Tensor, Tensor]:
        generator = torch_generator(seed, "scoring", number)
        return balanced_batch(data, data.train, spec.scoring_per_class, generator)

    try:
        problem = Problem.of(model, data.input_shape, batches, seed=seed)
    except ModelError as error:
        raise ModelError(f"Model '{spec.model}': {error}") from None
    return Task(spec, problem, data)
