"""The kinds of configs, and a config of a kind: from a file or by its name, with what the caller changes of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic

from panning.agents.config import AgentConfig
from panning.compare.grid import GridConfig
from panning.episode.shelf import located
from panning.foundation.config import Config, ConfigT, overridden, parse_config, read_yaml, replaced
from panning.foundation.errors import ConfigError
from panning.foundation.packaged import packaged_configs, packaged_name
from panning.foundation.records import content_key
from panning.foundation.registry import lookup, nearest
from panning.jobs.prune import PruneConfig
from panning.jobs.train import TrainConfig, expanded
from panning.searches.config import SearchConfig
from panning.tasks import DataSource, RunConfig, TaskSpec
from panning.training.presets import DynamicPresets, Preset


@dataclass(frozen=True)
class ConfigKind(Generic[ConfigT]):
    """A kind of config.

    Attributes:
        folders: of ``panning.configs`` with files of this kind.
        used: what takes such a config.
        expand: writes out what the values of a file name, before anything in them is changed.
    """

    model: type[ConfigT]
    folders: tuple[str, ...]
    used: str
    expand: Callable[[Any], Any] = lambda values: values

    @property
    def command(self) -> str:
        """The command alone."""
        return self.used.removesuffix(" CONFIG")


PRUNE = ConfigKind(PruneConfig, ("prune",), "panning prune CONFIG")
TRAIN = ConfigKind(TrainConfig, ("train",), "panning train CONFIG", expanded)
SEARCH = ConfigKind(SearchConfig, ("search", "demo"), "panning search CONFIG")
AGENT = ConfigKind(AgentConfig, ("agent",), "panning train-agent CONFIG")
BENCH = ConfigKind(GridConfig, ("bench",), "panning bench CONFIG")
#: By what a config of a run says as its ``kind``; presets say none.
KINDS: dict[str, ConfigKind[Any]] = {
    "prune": PRUNE,
    "train": TRAIN,
    "search": SEARCH,
    "train-agent": AGENT,
    "bench": BENCH,
    "recipe": ConfigKind(Preset, ("recipes",), "panning train --recipe MODEL-DATA/FORM"),
    "dynamic": ConfigKind(DynamicPresets, ("dynamics",), "panning train --dynamic METHOD/MODEL-DATA/FORM"),
}


@dataclass(frozen=True)
class Named(Generic[ConfigT]):
    """A config that was found.

    Attributes:
        path: its file; what the file names relatively lies beside it.
        stem: names the folder of its run: the file's, with a hash of what the caller changed.
    """

    config: ConfigT
    path: Path
    stem: str


def named_config(
    kind: ConfigKind[ConfigT],
    given: str | Path,
    changes: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    model: str | None = None,
) -> Named[ConfigT]:
    """The config that ``given`` names, a file or a packaged one, with ``changes`` like ``agent.ppo.n_rollouts=5``.

    Args:
        options: more changes, as values (``replaced``); they go over the others.
        model: in place of that of the config's one task: a name, or an import path, whose code is run: for the local
            command line alone.

    Raises:
        ConfigError: if there is none, it is of another kind, or not well-formed: all errors at once, with the nearest names.

    Examples:
        >>> from panning.searches.kinds import SEARCH, named_config
        >>> named_config(SEARCH, "fashion-lenet5", ["agent.ppo.n_rollouts=5"]).config.agent.ppo.n_rollouts
        5
    """
    path = config_path(given, kind)
    source = str(path) + (f" with {' '.join(changes)}" if changes else "")
    values = read_yaml(path)
    _check_kind(kind, values, path)
    config = made_config(kind, values, source, changes, options, model)
    return Named(
        _beside(config, path.parent), path, path.stem + (f"-{content_key(sorted(changes))[:8]}" if changes else "")
    )


def any_config(given: str | Path | Mapping[str, Any] | RunConfig) -> Named[RunConfig]:
    """The config of a run, of whatever kind: a file or a name, keys with their ``kind``, or an object.

    Raises:
        ConfigError: as ``named_config``; also for a config that does not run, as a recipe.
    """
    if isinstance(given, RunConfig):
        return Named(given, Path("config.yaml"), "config")
    if isinstance(given, Mapping):
        kind = KINDS[name := kind_of(given)]
        if not issubclass(kind.model, RunConfig):
            raise ConfigError(f"This is a config of the kind '{name}', which does not run.")
        return Named(made_config(kind, dict(given), "config"), Path("config.yaml"), "config")
    path = config_path(given)
    kind = KINDS[name := kind_of(read_yaml(path))]
    if not issubclass(kind.model, RunConfig):
        raise ConfigError(f"{path} is a config of the kind '{name}', which does not run.")
    return named_config(kind, path)


def _beside(config: ConfigT, folder: Path) -> ConfigT:
    """The config with the files that it names looked for where it lies; a policy may be named by its name on the shelf."""
    paths = {name: path for name in getattr(config, "FILES", ()) if (path := getattr(config, name)) is not None}
    found = {name: located(path, folder) if name == "policy" else folder / path for name, path in paths.items()}
    return config.model_copy(update={name: str(path.absolute()) for name, path in found.items()})


def made_config(
    kind: ConfigKind[ConfigT],
    values: Any,
    source: str,
    changes: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    model: str | None = None,
) -> ConfigT:
    """The config of values, as ``named_config`` makes it of a file's.

    Args:
        source: says where the values came from.

    Raises:
        ConfigError: as ``named_config``.
    """
    if not isinstance(values, dict):
        return parse_config(kind.model, values, source)  # says what it is instead
    inner = {name: value for name, value in options.items() if "." in name}
    try:
        values = overridden(kind.expand(values), changes)
        values = kind.expand(replaced(values, {name: options[name] for name in options if name not in inner}))
    except ConfigError:
        raise
    except ValueError as error:  # no such preset
        raise ConfigError(f"{source}: {error}") from None
    values = replaced(values, inner)
    if model is not None:
        values = {**values, "task": _with_model(values, model, source)}
    return parse_config(kind.model, values, source)


def _with_model(values: Mapping[str, Any], model: str, source: str) -> TaskSpec:
    """The task of a config with another model."""
    task = parse_config(TaskSpec, replaced(values.get("task"), {"model": model}), source)
    return task.with_network(DataSource.at(values.get("data_root"), bool(values.get("download"))), model)


def config_path(given: str | Path, kind: ConfigKind[Any] | None = None) -> Path:
    """The file that ``given`` names: its path, or a packaged config's name, with or without the folder before it.

    Args:
        kind: of these alone; None takes all kinds.

    Raises:
        ConfigError: if there is none, or it names several.
    """
    if Path(given).is_file():
        return Path(given)
    if Path(given).is_dir():
        held = Path(given) / "config.yaml"
        raise ConfigError(f"'{given}' is a folder: name a config file" + (f", as {held}." if held.is_file() else "."))
    kinds = KINDS.values() if kind is None else (kind,)
    known = packaged_configs(*(folder for one in kinds for folder in one.folders))
    name = packaged_name(str(given))
    found = [path for full, path in known.items() if name in (full, path.stem)]
    if len(found) == 1:
        return found[0]
    if found:
        several = " or ".join(full for full, path in known.items() if path in found)
        raise ConfigError(f"Several configs are called '{given}': name one of them with its folder, {several}.")
    raise ConfigError(_absent(str(given), name, kind, known))


def kind_of(values: Any) -> str:
    """The name of the kind that the values of a file say, or whose keys they have most of.

    Examples:
        >>> from panning.searches.kinds import kind_of
        >>> kind_of({"env": {}, "seed": 0}), kind_of({"kind": "bench"})
        ('train-agent', 'bench')
    """
    said = values.get("kind") if isinstance(values, dict) else None
    if isinstance(said, str) and said in KINDS:
        return said
    return max(KINDS, key=lambda name: _n_keys(values, KINDS[name]))


def checked_kind(given: str | Path) -> str:
    """The name of the kind of a config that is well-formed.

    Raises:
        ConfigError: with all that is wrong with it.

    Examples:
        >>> from panning.searches.kinds import checked_kind
        >>> checked_kind("dynamics/dpf")
        'dynamic'
    """
    path = config_path(given)
    values = read_yaml(path)
    name = kind_of(values)
    made_config(KINDS[name], values, str(path))
    return name


def _n_keys(values: Any, kind: ConfigKind[Any]) -> int:
    return len(set(values) & set(kind.model.model_fields)) if isinstance(values, dict) else 0


@dataclass(frozen=True)
class Listed:
    """A config of the package.

    Attributes:
        kind: a row of ``KINDS``.
        about: the first sentence of the file.
    """

    name: str
    kind: str
    used: str
    about: str


def listed() -> list[Listed]:
    """Every config of the package."""
    return [
        Listed(
            name,
            kind,
            _used(row, path.stem),
            _first_sentence(path.read_text()),
        )
        for kind, row in KINDS.items()
        for name, path in packaged_configs(*row.folders).items()
    ]


def _used(kind: ConfigKind[Any], stem: str) -> str:
    return re.sub("CONFIG|MODEL-DATA|METHOD(?=/)", stem, kind.used, count=1)


def _first_sentence(text: str) -> str:
    """Of the comment that a file begins with; full stops within names and numbers end nothing."""
    lines = itertools.takewhile(lambda line: line.startswith("# ") and line.strip("# "), text.splitlines())
    text = " ".join(line[2:].strip() for line in lines)
    return re.split(r"(?<!\bal)\.(?: |$)", text)[0] + "."


def schema(kind: str) -> Mapping[str, Any]:
    """The JSON schema of a kind of config, which editors complete and check by.

    Raises:
        UnknownNameError: if there is no such kind.
    """
    title = f"panning {kind} config"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema_of(kind), "title": title}


def _schema_of(kind: str) -> dict[str, Any]:
    model: type[Config] = lookup(KINDS, kind, "kind of config").model
    return model.model_json_schema()


def _check_kind(kind: ConfigKind[Any], values: Any, path: Path) -> None:
    """Of a config of another kind, one sentence says more than what every key of it lacks."""
    other = KINDS[name := kind_of(values)]
    says = isinstance(values, dict) and values.get("kind") == name
    if other is not kind and (says or _n_keys(values, other) > _n_keys(values, kind)):
        takes = other.used.replace("CONFIG", str(path))
        raise ConfigError(f"{path} is a config of the kind '{name}': '{takes}' takes it, '{kind.command}' does not.")


def _absent(given: str, name: str, kind: ConfigKind[Any] | None, known: Mapping[str, Path]) -> str:
    message = f"No configuration file '{given}', and the package has none of this name."
    for other in KINDS.values() if kind is not None else ():
        for full, path in packaged_configs(*other.folders).items():
            if kind is not None and name in (full, path.stem):
                return f"'{given}' is no config for '{kind.command}': '{_used(other, path.stem)}' takes it."
    names = list(known) if kind is None or "/" in name else [path.stem for path in known.values()]
    near = nearest(name, names)
    return message + (f" Did you mean '{near}'?" if near else "") + f" It has: {', '.join(names)}."
