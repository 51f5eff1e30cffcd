"""Configurations: frozen pydantic models beside the code they configure, read from YAML by one loader.

Unknown keys are refused with the nearest right name, and every error of a file comes in one message.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from panning.foundation.errors import ConfigError, PanningError
from panning.foundation.files import read_regular
from panning.foundation.places import named
from panning.foundation.registry import lookup, nearest
from panning.foundation.text import half_letter
from panning.foundation.wrong import what_is_wrong

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Refusing(ModelMetaclass):
    """A call of a config's class says what is wrong as a file's reader does, and not as pydantic does."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _refusal(cls, error, cls.__name__) from None  # type: ignore[arg-type]


class Config(BaseModel, metaclass=_Refusing):
    """Base of all configurations: immutable, no unknown keys, no NaN; of conversions only pydantic's own ("3" -> 3).

    Attributes:
        elsewhere: keys that are sought here and stand elsewhere -> where, for the error.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Grown(Config):
    """Base of a configuration that got more fields after its JSON had become part of records and identities.

    Attributes:
        later: these fields. The JSON has one of them only if it is not as by default, so that what exists keeps its keys.
    """

    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        left = {name for name in self.later if getattr(self, name) == fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in left}


def Name(table: Mapping[str, Any], kind: str) -> AfterValidator:
    """The type of a name that must stand in a table: ``Annotated[str, Name(PRUNERS, "method")]``.

    Args:
        kind: what the error calls such a name; it says the nearest and all allowed names.
    """

    def known(name: str) -> str:
        try:
            lookup(table, name, kind)
        except PanningError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(known)


def _distinct(values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    if len({repr(value) for value in values}) < len(values):
        raise ValueError(f"one of the {info.field_name} is named twice")
    return values


#: The type of a tuple in which nothing stands twice: ``Annotated[tuple[int, ...], DISTINCT]``.
DISTINCT = AfterValidator(_distinct)


#: A seed that every generator and every table can hold.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Or:
    """For the schema alone; what reads the shorter form is a validator of the field or of its model."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": self._kind}, handler(core)]}


#: The type of a value for which a text may stand, the name of one: ``Annotated[Recipe, OR_NAME]``.
OR_NAME = _Or("string")
#: The type of a value for which a whole number may stand: how many.
OR_NUMBER = _Or("integer")

#: Ours have 2 KiB; the YAML reader needs a second and more for a hostile megabyte.
MAX_CONFIG_BYTES = 1 << 16
MAX_DEPTH = 50
MAX_NODES = 1 << 15
MAX_INT_BITS = 1024  # Python refuses to print a very long number


class _Loader(yaml.SafeLoader):
    """Plain values only, of bounded depth and size: a few aliases can stand for gigabytes. No key stands twice."""

    depth = 0
    n_nodes = 0  # with aliases written out

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.sizes: dict[yaml.Node | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, before = self.peek_event(), self.n_nodes
        self.depth += 1
        node = super().compose_node(parent, index) if self.depth <= MAX_DEPTH else None
        self.depth -= 1
        is_alias = isinstance(event, yaml.AliasEvent)
        self.n_nodes += self.sizes.get(node, MAX_NODES) if is_alias else 1  # not known yet: an alias within itself
        if node is None or self.n_nodes > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, "nested too deeply or too large", event.start_mark)
        self.sizes.setdefault(node, self.n_nodes - before)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return values

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > MAX_INT_BITS:
            raise yaml.constructor.ConstructorError(None, None, "a number that is too long", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)

ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(kind: type[ConfigT], values: Any, source: str) -> ConfigT:
    """``values`` as a ``kind``.

    Raises:
        ConfigError: with one line for each wrong key or value; ``source`` says where they came from.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected keys and values at the top level, found {type(values).__name__}.")
    if (half := half_letter(values)) is not None:
        raise ConfigError(f"{source}: {half!r} holds half a letter, as a file's name that is no UTF-8 does; rename it.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(kind, error, source) from None


def first_error(error: ValidationError) -> str:
    """Where values are first refused, and why."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"


def _refusal(kind: type[Config], error: ValidationError, source: str) -> ConfigError:
    errors = error.errors(include_url=False)
    # Pydantic counts the right items of a tuple alone: one with a wrong item would be too short besides.
    around = {entry["loc"][:n] for entry in errors for n in range(len(entry["loc"]))}
    lines = [_line(kind, entry) for entry in errors if entry["type"] != "too_short" or entry["loc"] not in around]
    return ConfigError("\n".join([f"{source}: {len(lines)} error(s)", *lines]))


def load_config(kind: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a YAML file as a ``kind``; see ``parse_config``."""
    return parse_config(kind, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        ConfigError: if there is no such file, it is larger than a configuration may be, or it is not YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"No configuration file '{path}'.")
    try:
        text = read_regular(path, MAX_CONFIG_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: bytes, source: str) -> Any:
    """The plain values of a text of YAML, of which JSON is a part.

    Args:
        source: says where the text came from.

    Raises:
        ConfigError: if it is larger than a configuration may be, or it is not YAML.

    Examples:
        >>> from panning.foundation.config import parse_yaml
        >>> parse_yaml(b"density: 0.1", "what was sent")
        {'density': 0.1}
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{source} has over {MAX_CONFIG_BYTES:,} bytes.")
    try:
        return yaml.load(text.decode(), _Loader)
    except Exception as error:  # PyYAML raises whatever a broken tag led to
        raise ConfigError(f"{source} is not valid YAML: {error}") from None


def overridden(values: Any, changes: Sequence[str]) -> Any:
    """The values of a file with changes like ``agent.ppo.n_rollouts=5``, whose values are YAML. Lists are counted from 0.

    A key that is not there is added, so that what checks the values says whether it may be.

    Raises:
        ConfigError: if a change is no such thing, or leads through a value that has no keys inside.

    Examples:
        >>> from panning.foundation.config import overridden
        >>> overridden({"rungs": [{"keep": 5}], "seeds": [0]}, ["rungs.0.keep=3", "seeds=[0, 1]", "agent.seed=4"])
        {'rungs': [{'keep': 3}], 'seeds': [0, 1], 'agent': {'seed': 4}}
    """
    for change in changes:
        place, equals, text = change.partition("=")
        keys = place.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"'{change}' changes nothing: give KEY=VALUE, as seeds=[0,1] or agent.ppo.n_rollouts=5.")
        values = _changed(values, keys, yaml_value(text, change), f"'{change}'")
    return values


def yaml_value(text: str, change: str) -> Any:
    """The value of a command line's ``KEY=VALUE``, of bounded depth and size; ``change`` is all of it, for the error.

    Raises:
        ConfigError: if it is not YAML.
    """
    try:
        return yaml.load(text[: MAX_CONFIG_BYTES + 1], _Loader)
    except Exception as error:  # PyYAML raises whatever a broken tag led to
        raise ConfigError(f"'{reprlib.repr(change)[1:-1]}': the value is not valid YAML: {error}") from None


def replaced(values: Any, given: Mapping[str, Any]) -> Any:
    """The values of a file with others in place of those that dotted keys lead to, as ``overridden`` has them.

    Examples:
        >>> from panning.foundation.config import replaced
        >>> replaced({"recipe": {"epochs": 3}}, {"recipe.epochs": 5, "seed": 1})
        {'recipe': {'epochs': 5}, 'seed': 1}
    """
    for place, value in given.items():
        values = _changed(values, place.split("."), value, f"'{place}'")
    return values


def _changed(values: Any, keys: Sequence[str], new: Any, said: str) -> Any:
    """``values`` with ``new`` where ``keys`` lead."""
    if not keys:
        return new
    key, *rest = keys
    if values is None or isinstance(values, dict):
        values = values or {}
        return {**values, key: _changed(values.get(key), rest, new, said)}
    if not isinstance(values, list):
        raise ConfigError(
            f"{said}: there is no '{key}' in {reprlib.repr(values)}; give the whole value, as {{{key}: ...}}."
        )
    if not key.isdecimal() or int(key) >= len(values):
        raise ConfigError(f"{said}: '{key}' is no place in a list of {len(values)}; they are numbered from 0.")
    return [_changed(value, rest, new, said) if n == int(key) else value for n, value in enumerate(values)]


def dump_config(config: Config) -> str:
    """The configuration as YAML that ``load_config`` reads back to an equal object; places that have names are named."""
    return yaml.safe_dump(named(config.model_dump(mode="json")), sort_keys=False)


def _line(kind: type[BaseModel], entry: Any) -> str:
    where = ".".join(map(str, entry["loc"])) or "(top level)"
    if entry["type"] == "extra_forbidden":
        owner = _owner(kind, entry["loc"][:-1])
        if place := getattr(owner, "elsewhere", {}).get(entry["loc"][-1]):
            return f"  {where}: {place}"
        allowed = sorted(owner.model_fields) if owner else []
        near = nearest(str(entry["loc"][-1]), allowed)
        hint = f" Did you mean '{near}'?" if near else f" Allowed: {', '.join(allowed)}." if allowed else ""
        return f"  {where}: unknown key.{hint}"
    if entry["type"] == "missing":
        return f"  {where}: this key is needed."
    if entry["type"] == "value_error" and isinstance(entry["input"], dict):
        # It names the keys that do not go together; the others say nothing.
        return f"  {where}: {entry['msg'].removeprefix('Value error, ')}"
    return f"  {where}: {what_is_wrong(entry)}"


def _owner(kind: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model class that the keys at ``location`` belong to; None where it is not a plain model field."""
    owner: type[BaseModel] = kind
    for key in location:
        if isinstance(key, int):
            continue
        field = owner.model_fields.get(key)
        if field is None:
            continue  # a union's tag stands in the location too
        models = [arg for arg in _leaves(field.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        if len(models) != 1:
            return None
        owner = models[0]
    return owner


def _leaves(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [annotation]
