"""Tasks: a model and a data set, made into a ``Problem`` for a seed. What travels to workers is the spec alone."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from panning.data import ImageData, balanced_batch, data_names, load_data
from panning.foundation.config import Config
from panning.foundation.device import check_device_name, find_device, scoring_device
from panning.foundation.errors import ModelError
from panning.foundation.registry import origins, unknown_name_message
from panning.foundation.seeding import torch_generator
from panning.masks.layout import prunable_layout
from panning.models import MODELS, Factory, build_model, factory_name, model_names
from panning.scoring.problem import Problem


class TaskSpec(Config):
    """What to prune: a model and a data set.

    Attributes:
        model: a row of ``MODELS``, a torchvision classification model, or, in Python alone, a factory: a function or class
            that makes a network from ``input_shape`` and ``n_classes``, or from nothing. Configs that name their runs by
            their content (agents, searches, benchmarks) take names.
        data: a row of ``DATASETS``, ``npz:PATH`` or ``folder:PATH``.
        label: what tables call the data; None takes their own name.
        n_train: use only so many training images; None uses all.
        scoring_per_class: samples of each class in a scoring batch.
        include, exclude: name patterns of what is prunable (see ``prunable_layout``).
    """

    model: str | Factory
    data: str
    label: str | None = None
    n_train: Annotated[int, Field(ge=1)] | None = None
    scoring_per_class: Annotated[int, Field(ge=1)] = 10
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    @property
    def model_name(self) -> str:
        """What messages and tables call the model."""
        return self.model if isinstance(self.model, str) else factory_name(self.model)

    @property
    def plugins(self) -> dict[str, str]:
        """The installed package that the model comes from, if it is one's (``registry.origins``)."""
        return origins((MODELS, [self.model] if isinstance(self.model, str) else []))


class DataSource(Config):
    """The place of data sets on this machine and the device that computes with them; no result is named by either.

    Attributes:
        device: as ``find_device`` takes it, found by whoever loads a task: a worker has devices of its own.
    """

    root: str | None = None
    download: bool = False
    device: str = "cpu"

    @property
    def on_cpu(self) -> DataSource:
        """This source on the CPU, for callers that only look at the data."""
        return self.model_copy(update={"device": "cpu"})

    @classmethod
    def at(cls, root: str | Path | None, download: bool = False, device: str = "cpu") -> DataSource:
        """``root`` or else $PANNING_DATA, as an absolute path: workers may run in another folder."""
        root = root or os.environ.get("PANNING_DATA") or None
        return cls(root=str(Path(root).expanduser().absolute()) if root else None, download=download, device=device)


DeviceName = Annotated[str, AfterValidator(check_device_name)]


class RunConfig(Config):
    """Base of all configurations of runs on data.

    Attributes:
        data_root: where data sets lie; None takes $PANNING_DATA.
        download: fetch a torchvision data set that is not there.
        device: where networks are scored, trained and evaluated: auto, cpu, cuda, cuda:N or mps. The default is the one on
            which a seed gives the same result everywhere.
    """

    # Fields that say where a run runs, not which one it is.
    PLACES: ClassVar[set[str]] = {"data_root", "download", "device"}

    data_root: str | None = None
    download: bool = False
    device: DeviceName = "cpu"

    @property
    def source(self) -> DataSource:
        """The place of the data and the device, on this machine."""
        return DataSource.at(self.data_root, self.download, self.device)

    def with_data(self, root: Path | None, download: bool, device: str | None = None) -> Self:
        """This run with the data and the device that a command line names; what it does not name stays."""
        return self.model_copy(
            update={
                "data_root": str(root) if root else self.data_root,
                "download": download or self.download,
                "device": check_device_name(self.device if device is None else device),
            }
        )


def check_task_names(task: TaskSpec) -> TaskSpec:
    """``task``, for validators of configs: model and data must be in the tables; import paths and factories are refused.

    Raises:
        ValueError: with the nearest right name.
    """
    if not isinstance(task.model, str):
        raise ValueError(
            f"model is the factory '{task.model_name}', but results are filed by configs, which hold names"
        )
    if task.model not in model_names() and not task.model.startswith("torchvision:"):
        raise ValueError(unknown_name_message("model", task.model, model_names()))
    if task.data not in data_names() and not task.data.startswith(("npz:", "folder:")):
        raise ValueError(unknown_name_message("data set", task.data, data_names()))
    return task


#: The type of a task in a config that names its results.
NamedTask = Annotated[TaskSpec, AfterValidator(check_task_names)]


@dataclass(frozen=True, eq=False)
class Task:
    """A loaded spec for one seed.

    Attributes:
        problem: with its network where it is scored.
        data: on ``device``, as far as it is held in memory.
        device: where networks are trained and evaluated.
    """

    spec: TaskSpec
    problem: Problem
    data: ImageData
    device: torch.device = torch.device("cpu")

    def network(self) -> nn.Module:
        """A copy of the network at its initial weights, where it is trained."""
        return copy.deepcopy(self.problem.model).to(self.device)


@functools.lru_cache(maxsize=8)
def load_task_data(spec: TaskSpec, source: DataSource) -> ImageData:
    """The data of ``spec``; the last eight data sets stay in memory."""
    if source.device != "cpu":
        return load_task_data(spec, source.on_cpu).to(find_device(source.device))
    data = load_data(spec.data, root=source.root, download=source.download, n_train=spec.n_train)
    return data if spec.label is None else replace(data, label=spec.label)


@functools.lru_cache(maxsize=8)
def data_fingerprint(spec: TaskSpec, source: DataSource) -> str:
    """A hash of the images and labels of train and validation part: two runs with equal ones saw the same data."""
    data = load_task_data(spec, source.on_cpu)
    hashed = hashlib.sha256()
    for split in (data.train, data.validation):
        hashed.update(split.labels.numpy().tobytes())
        for indices in torch.arange(len(split)).split(1000):
            hashed.update(split.images(indices).numpy().tobytes())
    return hashed.hexdigest()[:20]


def make_model(spec: TaskSpec, data: ImageData, seed: int, allow_import: bool = False) -> nn.Module:
    """The network at the initial weights that belong to ``seed``."""
    return build_model(
        spec.model, input_shape=data.input_shape, n_classes=data.n_classes, seed=seed, allow_import=allow_import
    )


def load_task(spec: TaskSpec, seed: int, source: DataSource | None = None, *, allow_import: bool = False) -> Task:
    """Model at the initial weights of ``seed``, with class-balanced scoring batches drawn for ``seed``.

    Raises:
        DeviceError: if the device of ``source`` is not there; before any data are read.
    """
    source = source or DataSource()
    device = find_device(source.device)
    data = load_task_data(spec, source)
    model = make_model(spec, data, seed, allow_import)

    @functools.lru_cache(maxsize=2)
    def batches(number: int) -> tuple[Tensor, Tensor]:
        generator = torch_generator(seed, "scoring", number)
        return balanced_batch(data, data.train, spec.scoring_per_class, generator)

    try:
        layout = prunable_layout(model, spec.include, spec.exclude)
    except ModelError as error:
        raise ModelError(f"Model '{spec.model_name}': {error}") from None
    model.to(scoring_device(device))
    return Task(spec, Problem(model, layout, data.input_shape, batches, seed=seed), data, device)
