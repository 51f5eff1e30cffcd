"""The config of a run from what a Python caller gives: a model and data of any kind, a config, and changes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panning.agents.config import AgentConfig, EnvSpec
from panning.envs.arguments import as_task, listed
from panning.foundation.config import ConfigT, parse_config
from panning.foundation.device import check_device_name
from panning.foundation.errors import ConfigError
from panning.foundation.registry import unknown_name_message
from panning.searches.config import SearchConfig
from panning.searches.kinds import AGENT, SEARCH, ConfigKind, named_config
from panning.tasks import DataSource, load_task_data
from panning.training import Recipe


def search_config(model: Any, data: Any, densities: Any, config: Any, settings: Mapping[str, Any]) -> SearchConfig:
    """The config of a search, whose task is known by its content.

    Raises:
        PanningError: for what is wrong or missing.
    """
    values = {**({} if config is None else _values(SEARCH, config)), **settings}
    values["densities"] = _densities(densities, values)
    task = values.pop("task", None) if model is None and data is None else as_task(model, data)
    if task is None:
        raise ConfigError("Pass a model with its data, a task, or a config that names one.")
    source = _source(values)
    values["task"] = as_task(task).settled(source)
    load_task_data(values["task"], source)  # a search trains networks: not every task has what that needs
    values["agent"] = _settled_agent(values.get("agent", {}), source)
    values.setdefault("recipe", Recipe())
    if "rungs" not in values:
        keep = 0.3 if values.get("order") == "free" else 8
        values["rungs"] = _rungs(values["recipe"], values.get("seeds"), keep)
    return parse_config(SearchConfig, values, "panning.search")


def agent_config(
    asked: tuple[Any, Any, Any, Any], densities: Any, config: Any, settings: Mapping[str, Any]
) -> AgentConfig:
    """The config of an agent's training, whose tasks are known by their content; keys of its environment lie beside the
    others in ``settings``.

    Args:
        asked: model or models, data, forward and loss.

    Raises:
        PanningError: for what is wrong or missing.
    """
    values = {} if config is None else _values(AGENT, config)
    env = values.pop("env", {})
    env = _set_fields(env) if isinstance(env, EnvSpec) else dict(env)
    allowed = {*EnvSpec.model_fields, *AgentConfig.model_fields} - {"env", "tasks", "densities"}
    for name, value in settings.items():
        if name not in allowed:
            raise ConfigError(unknown_name_message("setting", name, allowed | {"densities"}))
        (env if name in EnvSpec.model_fields else values)[name] = value
    env["densities"] = _densities(densities, env)
    source = _source(values)
    model, *how = asked
    given = env.get("tasks", ()) if model is None and how[0] is None else model
    if given is model:
        env.pop("population", None)
    tasks = [as_task(one, *how) for one in (given if isinstance(given, list | tuple) else [given])]
    if not tasks and "population" not in env:
        raise ConfigError("Pass a model with its data, a list of tasks, or a config that names some.")
    env["tasks"] = tuple(task.settled(source) for task in tasks)
    return parse_config(AgentConfig, {**values, "env": env}, "panning.train_agent")


def _values(kind: ConfigKind[ConfigT], config: Any) -> dict[str, Any]:
    """The keys of a config that is named, given as an object or as a mapping."""
    if isinstance(config, str | Path):
        config = named_config(kind, config).config
    if isinstance(config, kind.model):
        return _set_fields(config)
    if isinstance(config, Mapping):
        return dict(config)
    raise ConfigError(
        f"config is a {type(config).__name__}; pass a name, a file, a {kind.model.__name__}, or a mapping of its keys."
    )


def _set_fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def _densities(densities: Any, values: Mapping[str, Any]) -> Any:
    if densities is None and "densities" not in values:
        raise ConfigError("Pass densities, a list of the fractions of weights to keep, like densities=[0.05].")
    return listed("densities", values["densities"] if densities is None else densities, "[0.05]")


def _source(values: Mapping[str, Any]) -> DataSource:
    """Where the data lie that tell what a network of the caller's own must fit."""
    check_device_name(values.get("device", "cpu"))
    return DataSource.at(values.get("data_root"), bool(values.get("download", False)))


def _settled_agent(agent: Any, source: DataSource) -> Any:
    """The agent's part of a search, in which further tasks may hold factories."""
    if not isinstance(agent, Mapping) or "tasks" not in agent:
        return agent
    return {**agent, "tasks": tuple(as_task(task).settled(source) for task in listed("tasks", agent["tasks"], "[...]"))}


def _rungs(recipe: Any, seeds: Any, keep: float) -> tuple[dict[str, Any], ...]:
    """Two rungs of short trainings: a tenth of the recipe's epochs on the first network, and half of them on up to three."""
    whole = recipe if isinstance(recipe, Recipe) else parse_config(Recipe, recipe, "recipe")
    n_seeds = min(3, len(SearchConfig.model_fields["seeds"].default if seeds is None else tuple(seeds)))

    def of(share: float) -> Recipe:
        return whole.model_copy(update={"epochs": max(min(1.0, whole.epochs), whole.epochs * share)})

    return {"keep": keep, "recipe": of(0.1)}, {"keep": 1, "n_seeds": n_seeds, "recipe": of(0.5)}
