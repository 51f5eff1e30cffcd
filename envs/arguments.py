"""Checks of the environment's arguments: an argument of the wrong form gets a sentence that shows the right form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from panning.data import OwnBatches
from panning.foundation.config import Config, parse_config
from panning.foundation.errors import ConfigError
from panning.masks.masks import check_density
from panning.tasks import TaskSpec

DEFAULT_TASK = TaskSpec(model="mlp", data="digits")
ConfigT = TypeVar("ConfigT", bound=Config)


def listed(name: str, value: Any, example: str) -> tuple[Any, ...]:
    """The items of a list that must have at least one."""
    if isinstance(value, str | bytes | Mapping | Config) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} is {value!r}; pass a list, like {name}={example}.")
    if not (items := tuple(value)):
        raise ConfigError(f"{name} is empty; the environment needs at least one, like {name}={example}.")
    return items


def densities(given: Any, n_tasks: int) -> tuple[tuple[float, ...], ...]:
    """The targets of each task: one list for all, or a list for each."""
    items = listed("densities", given, "[0.05]")
    if all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        if len(items) != n_tasks:
            raise ConfigError(
                f"densities has {len(items)} lists for {n_tasks} tasks; pass one for each, or one for all."
            )
        return tuple(tuple(map(check_density, listed("densities", item, "[[0.05], [0.1]]"))) for item in items)
    return (tuple(map(check_density, items)),) * n_tasks


def spec(kind: type[ConfigT], value: Any, name: str, example: str) -> ConfigT:
    """A config, or a mapping of its keys."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} is {value!r}; pass a mapping of its keys, like {name}={example}, or {kind.__name__}."
        )
    return parse_config(kind, dict(value), name)


def tasks(given: Any, model: Any, data: Any, forward: Any, loss: Any, trains: bool) -> tuple[TaskSpec, ...]:
    """The tasks of an environment: a list, or one model with its data, or the default.

    Args:
        trains: whether the reward trains networks.
    """
    if model is None and data is None and forward is None and loss is None:
        found = (DEFAULT_TASK,) if given is None else tuple(map(as_task, listed("tasks", given, "['mlp/digits']")))
    elif given is not None:
        raise ConfigError("Pass tasks, or one task as model and data, but not both.")
    elif model is None:
        raise ConfigError("data need a model: a module, a function or class that makes one, or a name.")
    else:
        found = (as_task(model, data, forward, loss),)
    if trains and (scored := [task for task in found if isinstance(task.data, OwnBatches)]):
        raise ConfigError(
            f"The reward's terms training and contest need labelled data to train on, and {scored[0].data} are batches that "
            "score networks alone: set both to 0, or pass (inputs, labels) without forward and loss."
        )
    return found


def as_task(given: Any, data: Any = None, forward: Any = None, loss: Any = None) -> TaskSpec:
    """The task that a caller means: a model with data, a mapping of a task's keys, a task, or "MODEL/DATA" in names.

    >>> from panning.envs.arguments import as_task
    >>> as_task("mlp/digits") == as_task("mlp", "digits") == as_task({"model": "mlp", "data": "digits"})
    True

    Args:
        forward, loss: as for ``panning.prune``; the data are then batches that score networks, and train none.

    Raises:
        ConfigError: if it is none of these, or data are missing or given twice.
    """
    if data is None and (forward is not None or loss is not None):
        raise ConfigError("forward and loss say how a model runs on data: pass data as well.")
    if isinstance(given, TaskSpec | Mapping):
        if data is not None:
            raise ConfigError("A task has data of its own: leave data away, or pass the model alone.")
        return given if isinstance(given, TaskSpec) else parse_config(TaskSpec, dict(given), "task")
    if data is None and isinstance(given, str):
        model, slash, data = given.partition("/")
        if not (model and slash and data):
            raise ConfigError(
                f"The task '{given}' names no data: write 'MODEL/DATA', like 'mlp/digits', or "
                "{'model': 'mlp', 'data': 'digits'}, or pass data as well."
            )
        given = model
    if data is None:
        raise ConfigError(
            f"The model, a {type(given).__name__}, needs data: a name, (inputs, labels), a Dataset, a DataLoader, or a "
            "mapping of such with the keys train, validation and test."
        )
    if forward is not None or loss is not None:
        data = OwnBatches(data, forward, loss)
    return parse_config(TaskSpec, {"model": given, "data": data}, "task")
