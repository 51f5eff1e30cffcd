"""The graph of a network as plain values: what stands in a network file, and how arguments are written there.

A value that JSON has stands as it is. All else is an object with one key that says what it is: ``{"node": 3}`` is what node
3 gave, ``{"tuple": [1, 2]}``, ``{"slice": [0, None, 1]}``, ``{"dtype": "float32"}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import fx

from panning.foundation.config import Config

FORMAT = "panning-network"
VERSION = 1
MAX_NODES = 20_000
MAX_LAYERS = 20_000
#: Of one argument: values in it, and how deep they are nested.
MAX_VALUES = 4096
MAX_DEPTH = 8
MAX_TEXT = 200
#: No size, index or stride of a network is larger.
MAX_NUMBER = 2**40

PLAIN_NAME = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
PlainName = Annotated[str, Field(pattern=PLAIN_NAME, max_length=MAX_TEXT)]
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
MEMORY_FORMATS = {
    str(form).removeprefix("torch."): form
    for form in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}


class Given(Config):
    """An input of the network.

    Attributes:
        shape: of the example that the network was written with, its batch included.
    """

    name: PlainName
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_NUMBER)], ...], Field(max_length=8)]
    dtype: str


class Part(Config):
    """A layer of the table ``LAYERS``, with what it is made from."""

    kind: Annotated[str, Field(max_length=MAX_TEXT)]
    fields: dict[str, Any] = {}


class Loose(Config):
    """A parameter or buffer of no layer in the table."""

    role: Literal["parameter", "buffer", "passing buffer"]


class Node(Config):
    """A step of the forward pass. Nodes are numbered in their order, inputs first.

    Attributes:
        op: ``layer``, ``function`` or ``method`` call what ``target`` names; ``tensor`` reads a parameter or buffer.
    """

    op: Literal["layer", "function", "method", "tensor"]
    target: Annotated[str, Field(max_length=MAX_TEXT)]
    args: list[Any] = []
    kwargs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=MAX_TEXT)], Any] = {}


class Graph(Config):
    """A network without its numbers.

    Attributes:
        layers, loose: by name, each in the order of the network's parameters.
        modules: the order of layers and of modules with loose tensors among each other, where there are such.
        tied: name -> the name of the parameter that it shares.
        frozen: parameters that are not trained.
        output: written as arguments are.
        label: the class of the network that it was made from.
    """

    format: Literal["panning-network"] = "panning-network"
    version: Literal[1] = 1
    label: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    inputs: Annotated[tuple[Given, ...], Field(min_length=1, max_length=64)]
    layers: Annotated[dict[PlainName, Part], Field(max_length=MAX_LAYERS)] = {}
    loose: Annotated[dict[PlainName, Loose], Field(max_length=MAX_LAYERS)] = {}
    modules: Annotated[tuple[PlainName, ...], Field(max_length=2 * MAX_LAYERS)] = ()
    tied: dict[PlainName, PlainName] = {}
    frozen: tuple[PlainName, ...] = ()
    nodes: Annotated[tuple[Node, ...], Field(max_length=MAX_NODES)]
    output: Any


@dataclass(frozen=True)
class Ref:
    """What an earlier node gave."""

    number: int


def written(value: Any, number_of: Callable[[fx.Node], int]) -> Any:
    """An argument of a traced call as JSON has it.

    Raises:
        ValueError: for a value that no network file can hold.
    """

    def one(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"node": number_of(value)}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, tuple):
            return {"tuple": [one(item) for item in value]}
        if isinstance(value, list):
            return [one(item) for item in value]
        if isinstance(value, slice):
            return {"slice": [one(value.start), one(value.stop), one(value.step)]}
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {"dict": {name: one(item) for name, item in value.items()}}
        if value is Ellipsis:
            return {"ellipsis": "..."}
        for kind, known in (("dtype", DTYPES), ("memory_format", MEMORY_FORMATS)):
            if (name := str(value).removeprefix("torch.")) in known and value is known[name]:
                return {kind: name}
        raise ValueError(f"a {type(value).__name__} ({value!r:.60}) is no plain value.")

    return one(value)


def read(value: Any, n_nodes: int) -> Any:
    """The argument that JSON stands for, with a ``Ref`` where an earlier node is named.

    Args:
        n_nodes: how many nodes and inputs come before.

    Raises:
        ValueError: if it is none.
    """
    left = MAX_VALUES

    def one(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"an argument is nested too deeply or has more than {MAX_VALUES} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            if not abs(value) <= MAX_NUMBER:
                raise ValueError(f"{value!r:.40} is no size or index of a network")
            return value
        if isinstance(value, str):
            if len(value) > MAX_TEXT or not value.isprintable():
                raise ValueError(f"the text {value[:20]!r} is too long or not plain")
            return value
        if isinstance(value, list):
            return [one(item, depth + 1) for item in value]
        if isinstance(value, dict) and len(value) == 1:
            ((kind, held),) = value.items()
            if kind in _READERS:
                return _READERS[kind](held, lambda item: one(item, depth + 1), n_nodes)
        raise ValueError(f"{value!r:.60} is no argument of a network")

    return one(value, 0)


def _node(held: Any, one: Callable[[Any], Any], n_nodes: int) -> Ref:
    if type(held) is not int or not 0 <= held < n_nodes:
        raise ValueError(f"node {held!r:.20} does not come before")
    return Ref(held)


def _slice(held: Any, one: Callable[[Any], Any], n_nodes: int) -> slice:
    return slice(*_items(held, one, 3))


def _items(held: Any, one: Callable[[Any], Any], n_items: int | None = None) -> list[Any]:
    if not isinstance(held, list) or n_items not in (None, len(held)):
        raise ValueError(f"{held!r:.60} is no list of values")
    return [one(item) for item in held]


def _dict(held: Any, one: Callable[[Any], Any], n_nodes: int) -> dict[str, Any]:
    if not isinstance(held, dict):
        raise ValueError(f"{held!r:.60} is no mapping")
    return {one(name): one(item) for name, item in held.items()}


def _of_table(table: Mapping[str, Any]) -> Callable[[Any, Callable[[Any], Any], int], Any]:
    def reader(held: Any, one: Callable[[Any], Any], n_nodes: int) -> Any:
        if not isinstance(held, str) or held not in table:
            raise ValueError(f"{held!r:.40} is none of {', '.join(table)}")
        return table[held]

    return reader


_READERS: dict[str, Callable[[Any, Callable[[Any], Any], int], Any]] = {
    "node": _node,
    "slice": _slice,
    "tuple": lambda held, one, n_nodes: tuple(_items(held, one)),
    "dict": _dict,
    "ellipsis": _of_table({"...": ...}),
    "float": _of_table({"inf": math.inf, "-inf": -math.inf, "nan": math.nan}),
    "dtype": _of_table(DTYPES),
    "memory_format": _of_table(MEMORY_FORMATS),
}


def filled(value: Any, results: Mapping[int, Any]) -> Any:
    """An argument with what its nodes gave in place of every ``Ref``."""
    if isinstance(value, Ref):
        return results[value.number]
    if isinstance(value, tuple | list):
        return type(value)(filled(item, results) for item in value)
    if isinstance(value, dict):
        return {name: filled(item, results) for name, item in value.items()}
    if isinstance(value, slice):
        return slice(*(filled(item, results) for item in (value.start, value.stop, value.step)))
    return value


def refs(value: Any) -> set[int]:
    """The nodes that an argument names."""
    if isinstance(value, Ref):
        return {value.number}
    if isinstance(value, tuple | list):
        return set().union(*map(refs, value))
    if isinstance(value, dict):
        return refs(list(value.values()))
    return refs([value.start, value.stop, value.step]) if isinstance(value, slice) else set()
