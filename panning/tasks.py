"""Tasks: a model and a data set, made into a ``Problem`` for a seed. What travels to workers is the spec alone.

A network or data of the caller's own stand in a spec in place of a name (``panning.foundation.own``).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import nn

from panning.data import ImageData, OwnBatches, OwnData, data_names, load_data
from panning.data.image_data import ScoringBatches
from panning.data.kept import KeptData
from panning.data.own import PARTS
from panning.data.shipped import data_name, offered
from panning.data.source import DataSource as DataSource
from panning.flow import Example
from panning.foundation.config import DISTINCT, Config, Grown
from panning.foundation.device import check_device_name, find_device, scoring_device
from panning.foundation.errors import DataError, ModelError
from panning.foundation.own import PREFIX, Own
from panning.foundation.places import placed
from panning.foundation.registry import origins, unknown_name_message
from panning.masks.layout import prunable_layout
from panning.models import (
    MODELS,
    OwnModel,
    build_model,
    import_factory,
    is_known,
    is_of_library,
    is_sized,
    model_names,
    one_name,
)
from panning.models.imported import FROM_FILE
from panning.models.weights import load_weights
from panning.scoring.interface import check_batch, layout_of, problem_of
from panning.scoring.problem import Problem


def _own_model(model: Any) -> Any:
    try:
        if isinstance(model, str):
            return one_name(model)
        return model if isinstance(model, OwnModel) else OwnModel(model)
    except ModelError as error:
        raise ValueError(str(error)) from None


def _own_data(data: Any) -> Any:
    if isinstance(data, str | OwnData | OwnBatches):
        return data
    try:
        return OwnBatches(data) if isinstance(data, Mapping) and not {*data} & {*PARTS} else OwnData(data)
    except DataError as error:
        raise ValueError(str(error)) from None


class TaskSpec(Grown):
    """What to prune: a model and a data set.

    >>> import torch
    >>> from panning.tasks import TaskSpec
    >>> data = (torch.randn(40, 6), torch.arange(40) % 2)
    >>> task = TaskSpec(model=lambda: torch.nn.Linear(6, 2), data=data).settled()
    >>> task.model.label, task.data.label
    ('Linear', 'tensors')

    Attributes:
        model: a row of ``MODELS``, sizes in a name as ``mlp:256-128`` (``panning.models.sized``), ``torchvision:NAME``,
            ``timm:NAME``, or, in Python alone, a module, or a factory: a function or class that makes a network from
            ``input_shape`` and ``n_classes``, or from nothing.
        data: a row of ``DATASETS``, ``npz:PATH`` or ``folder:PATH``, or, in Python alone, data in memory (``OwnData``), or
            batches of any interface, which train nothing (``OwnBatches``).
        label: what tables call the data; None takes their own name.
        n_train: use only so many training images; None uses all.
        side: make the images so many pixels high and wide, which they are at least; None leaves them as they are.
        classes: use only the images of these classes, which are numbered anew in this order; None uses all.
        scoring_per_class: samples of each class in a scoring batch.
        include, exclude: name patterns of what is prunable (see ``prunable_layout``).
    """

    later = frozenset({"side", "classes"})

    model: Annotated[str | OwnModel, BeforeValidator(_own_model)]
    data: Annotated[str | OwnData | OwnBatches, BeforeValidator(_own_data)]
    label: str | None = None
    n_train: Annotated[int, Field(ge=1)] | None = None
    side: Annotated[int, Field(ge=1, le=4096)] | None = None
    classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2), DISTINCT] | None = None
    scoring_per_class: Annotated[int, Field(ge=1, le=2**31)] = 10
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    @property
    def model_name(self) -> str:
        """What messages and tables call the model."""
        return self.model if isinstance(self.model, str) else self.model.label

    def settled(self, source: DataSource | None = None) -> TaskSpec:
        """The same task, whose model and data have names that say their content, so that results can be filed by them.

        Raises:
            ModelError: if a network of the caller's own does not fit the data.
        """
        if isinstance(self.model, str):
            return self
        if isinstance(self.data, OwnBatches):
            return self.model_copy(update={"model": self.model.settled((), 0, None)})
        data = load_task_data(self, (source or DataSource()).on_cpu)
        return self.model_copy(update={"model": self.model.settled(data.input_shape, data.n_classes, data.dtype)})

    def with_network(self, source: DataSource, model: str | None = None, weights: Path | None = None) -> TaskSpec:
        """The same task with the network that a local command line names.

        Args:
            model: a name, or an import path, whose code is run: never one that comes from a file or over the network.
            weights: a file with the weights to start from, for every seed.

        Raises:
            ModelError: if there is no such network, or the weights are not its.
        """
        found: Any = self.model if model is None else model
        if isinstance(found, str) and ":" in found and not (is_of_library(found) or is_sized(found)):
            # A file is called by what it holds, wherever it lies: the same network gives the same results elsewhere.
            made = import_factory(found)
            found = OwnModel(made()) if found.startswith(FROM_FILE) else OwnModel(made, found)
        task = self.model_copy(update={"model": found})
        if weights is None:
            return task.settled(source)
        network = make_model(task, load_task_data(task, source.on_cpu), seed=0)
        load_weights(network, weights)
        return task.model_copy(update={"model": OwnModel(network, task.model_name)})

    @property
    def own(self) -> dict[str, Own]:
        """What is the caller's own in this task, by name."""
        return {thing.name: thing for thing in (self.model, self.data) if isinstance(thing, Own)}

    def by_name(self) -> TaskSpec:
        """The same task with names alone; ``with_own`` puts the things themselves back."""
        return self.model_copy(update={"model": str(self.model), "data": str(self.data)})

    def with_own(self, held: Mapping[str, Own]) -> TaskSpec:
        """The same task with the things themselves in place of their names, as far as they are held."""
        found = {key: held[name] for key in ("model", "data") if (name := str(getattr(self, key))) in held}
        return self.model_copy(update=found)

    @property
    def plugins(self) -> dict[str, str]:
        """The installed package that the model comes from, if it is one's (``registry.origins``)."""
        return origins((MODELS, [self.model] if isinstance(self.model, str) else []))


DeviceName = Annotated[str, AfterValidator(check_device_name)]


class RunConfig(Config):
    """Base of all configurations of runs on data.

    Attributes:
        data_root: where data sets lie; None takes $PANNING_DATA.
        download: fetch a torchvision data set that is not there.
        device: where networks are scored, trained and evaluated: auto, cpu, cuda, cuda:N or mps. The default is the one on
            which a seed gives the same result everywhere.
    """

    #: Fields that say where a run runs, not which one it is.
    PLACES: ClassVar[set[str]] = {"kind", "data_root", "download", "device"}

    data_root: str | None = None
    download: bool = False
    device: DeviceName = "cpu"

    @property
    def source(self) -> DataSource:
        """The place of the data and the device, on this machine."""
        return DataSource.at(self.data_root, self.download, self.device)

    def with_tasks(self, change: Callable[[TaskSpec], TaskSpec]) -> Self:
        """This run with its tasks changed."""
        raise NotImplementedError

    def with_network(self, model: str | None, weights: Path | None) -> Self:
        """This run with the network that a local command line names (``TaskSpec.with_network``)."""
        if model is None and weights is None:
            return self
        return self.with_tasks(lambda task: task.with_network(self.source, model, weights))

    def with_data(self, root: Path | None, download: bool, device: str | None = None) -> Self:
        """This run with the data and the device that a command line names; what it does not name stays."""
        device = check_device_name(self.device if device is None else device)
        there = {"data_root": str(root) if root else self.data_root, "download": download or self.download}
        return self.model_copy(update={**there, "device": device})


def check_task_names(task: TaskSpec) -> TaskSpec:
    """``task``, for validators of configs: model and data must be in the tables, or be the caller's own; import paths are
    refused.

    Raises:
        ValueError: with the nearest right name, or if the name of a factory does not say what it makes.
    """
    model, data = str(task.model), str(task.data)
    if isinstance(task.model, OwnModel) and not task.model.content:
        raise ValueError(
            f"model is the factory '{task.model_name}', but results are filed by content: pass task.settled()"
        )
    if not (is_known(model) or model.startswith(PREFIX)):
        code = "" if ":" not in model else f" Code is named on the command line alone: --model {model}."
        raise ValueError(unknown_name_message("model", model, model_names()) + code)
    if placed(data) not in data_names() and not placed(data).startswith(("npz:", "folder:", PREFIX)):
        raise ValueError(unknown_name_message("data set", data, data_names()))
    return task


#: The type of a task in a config that names its results.
NamedTask = Annotated[TaskSpec, AfterValidator(check_task_names)]


_DATA = KeptData()
_LABELLED = "pass (inputs, labels), a Dataset or a DataLoader of such pairs, or data by name, without forward and loss."


@dataclass(frozen=True, eq=False)
class Task:
    """A loaded spec for one seed.

    Attributes:
        problem: with its network where it is scored.
        labelled: the data on ``device``, as far as they are held in memory; None where there are ``OwnBatches``.
        device: where networks are trained and evaluated.
    """

    spec: TaskSpec
    problem: Problem
    labelled: ImageData | None
    device: torch.device = torch.device("cpu")

    @property
    def data(self) -> ImageData:
        """The labelled data.

        Raises:
            DataError: if the task has none.
        """
        if self.labelled is None:
            raise DataError(f"{self.spec.data} are batches that score networks, and train none: {_LABELLED}")
        return self.labelled

    def said(self) -> dict[str, Any]:
        """What manifests say of model and data."""
        said = {"model": str(self.spec.model), "data": str(self.spec.data)}
        return said if self.labelled is None else {**said, "data": self.data.label, "n_classes": self.data.n_classes}

    def network(self) -> nn.Module:
        """A copy of the network at its initial weights, where it is trained."""
        return copy.deepcopy(self.problem.model).to(self.device)


def load_task_data(spec: TaskSpec, source: DataSource) -> ImageData:
    """The data of ``spec``; the last eight data sets stay in memory, and small ones besides (``KeptData``)."""
    if isinstance(spec.data, OwnBatches):
        raise DataError(f"{spec.data} are batches that score networks, and train none: {_LABELLED}")
    place = placed(spec.data) if isinstance(spec.data, str) else spec.data
    key = place, spec.label, spec.n_train, spec.side, spec.classes, source
    if source.device != "cpu":
        return _DATA.get(key, lambda: load_task_data(spec, source.on_cpu).to(find_device(source.device)))
    return _DATA.get(key, lambda: _loaded(spec, source))


def _loaded(spec: TaskSpec, source: DataSource) -> ImageData:
    assert not isinstance(spec.data, OwnBatches)  # refused before
    try:
        data = load_data(
            spec.data, root=source.root, download=source.download, n_train=spec.n_train, side=spec.side,
            classes=spec.classes,
        )  # fmt: skip
    except DataError:
        if (shipped := offered(data_name(spec))) is None:
            raise
        data = shipped
    return data if spec.label is None else replace(data, label=spec.label)


@functools.lru_cache(maxsize=64)
def data_fingerprint(spec: TaskSpec, source: DataSource) -> str:
    """A hash of the images and labels of train and validation part: two runs with equal ones saw the same data."""
    return load_task_data(spec, source.on_cpu).fingerprint


def named_fingerprint(spec: TaskSpec, source: DataSource) -> str | None:
    """``data_fingerprint``; None of the caller's own data, which travel with the task.

    Raises:
        DataError: if the data are not there.
    """
    return None if isinstance(spec.data, Own) else data_fingerprint(spec, source)


def make_model(spec: TaskSpec, data: ImageData, seed: int, allow_import: bool = False) -> nn.Module:
    """The network at the initial weights that belong to ``seed``."""
    return build_model(
        spec.model, input_shape=data.input_shape, n_classes=data.n_classes, seed=seed, allow_import=allow_import,
        dtype=data.dtype,
    )  # fmt: skip


def load_task(spec: TaskSpec, seed: int, source: DataSource | None = None, *, allow_import: bool = False) -> Task:
    """Model at the initial weights of ``seed``, with class-balanced scoring batches drawn for ``seed``.

    Raises:
        DeviceError: if the device of ``source`` is not there; before any data are read.
    """
    source = source or DataSource()
    device = find_device(source.device)
    if isinstance(spec.data, OwnBatches):
        return _scored_task(spec, spec.data, seed, device)
    data = load_task_data(spec, source)
    model = make_model(spec, data, seed, allow_import)

    batches = ScoringBatches(data, spec.scoring_per_class, seed)
    try:
        layout = prunable_layout(model, spec.include, spec.exclude, Example.of_shape(model, data.input_shape))
    except ModelError as error:
        raise ModelError(f"Model '{spec.model_name}': {error}") from None
    model.to(scoring_device(device))
    return Task(spec, Problem(model, layout, data.input_shape, batches, seed=seed), data, device)


def _scored_task(spec: TaskSpec, data: OwnBatches, seed: int, device: torch.device) -> Task:
    """A task on batches of any interface."""
    if isinstance(spec.model, str):
        raise ModelError(
            f"Model '{spec.model}' is made for labelled data: pass a module, or a function that makes one."
        )
    model = spec.model.build((), 0, seed).to(scoring_device(device))
    with_layout = functools.partial(problem_of, model, data=data.data, forward=data.forward, loss=data.loss, seed=seed)
    problem = with_layout(layout_of(model, spec.include, spec.exclude, with_layout))
    check_batch(problem)
    return Task(spec, problem, None, device)
