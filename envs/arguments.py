"""What the environment is called with, checked: a wrong form gets a sentence that shows the right one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from panning.foundation.config import Config, parse_config
from panning.foundation.errors import ConfigError
from panning.tasks import TaskSpec, as_task

DEFAULT_TASK = TaskSpec(model="mlp", data="digits")
ConfigT = TypeVar("ConfigT", bound=Config)


def listed(name: str, value: Any, example: str) -> tuple[Any, ...]:
    """The items of a list that must have at least one."""
    if isinstance(value, str | bytes | Mapping | Config) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} is {value!r}; pass a list, like {name}={example}.")
    if not (items := tuple(value)):
        raise ConfigError(f"{name} is empty; the environment needs at least one, like {name}={example}.")
    return items


def spec(kind: type[ConfigT], value: Any, name: str, example: str) -> ConfigT:
    """A config, or a mapping of its keys."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} is {value!r}; pass a mapping of its keys, like {name}={example}, or {kind.__name__}."
        )
    return parse_config(kind, dict(value), name)


def tasks(given: Any, model: Any, data: Any) -> tuple[TaskSpec, ...]:
    """The tasks of an environment: a list, or one model with its data, or the default."""
    if model is None and data is None:
        return (DEFAULT_TASK,) if given is None else tuple(map(as_task, listed("tasks", given, "['mlp/digits']")))
    if given is not None:
        raise ConfigError("Pass tasks, or one task as model and data, but not both.")
    if model is None:
        raise ConfigError("data need a model: a module, a function or class that makes one, or a name.")
    return (as_task(model, data),)
