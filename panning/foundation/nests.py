"""Nests: tensors in tuples, lists, mappings and objects, as batches and outputs of networks come."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from panning.foundation.torch_private import tree_leaves, tree_map

#: Tensors of a nest that a message describes.
MOST_TOLD = 8


def fields_of(value: Any) -> dict[Any, Any] | None:
    """The entries of a container that torch's pytree does not know; None for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def entry(result: Any, name: str) -> Any:
    """What a network gives under a name, in a mapping or an object; None where there is nothing."""
    return result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)


def logits_of(result: Any) -> Any:
    """The ``logits`` of an output object or mapping that has them; anything else as it is."""
    return result if isinstance(result, Tensor) or (found := entry(result, "logits")) is None else found


def map_tensors(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """The same nest with ``function`` of each tensor in the tensor's place; all else stays."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if (fields := fields_of(leaf)) is None:
            return leaf
        copied = copy.copy(leaf)
        for name, value in fields.items():
            mapped = map_tensors(function, value)
            if isinstance(leaf, Mapping):
                copied[name] = mapped
            else:
                object.__setattr__(copied, name, mapped)  # a frozen dataclass, too
        return copied

    return tree_map(one, nest)


def tensors_in(nest: Any) -> list[Tensor]:
    """All tensors of a nest, in order."""
    found: list[Tensor] = []
    for leaf in tree_leaves(nest):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif (fields := fields_of(leaf)) is not None:
            found += tensors_in(list(fields.values()))
    return found


def n_samples(nest: Any) -> int | None:
    """The length of the first axis, where all tensors of a nest agree on it; numbers by themselves have no say."""
    sizes = {len(tensor) for tensor in tensors_in(nest) if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def samples(nest: Any, chosen: Tensor | slice) -> Any:
    """These samples of a batch whose tensors agree on the first axis."""

    def one(tensor: Tensor) -> Tensor:
        index = chosen.to(tensor.device) if isinstance(chosen, Tensor) else chosen
        return tensor[index] if tensor.dim() else tensor

    return map_tensors(one, nest)


def same_tensors(a: Any, b: Any) -> bool:
    """Whether two nests hold equal tensors."""
    mine, others = tensors_in(a), tensors_in(b)
    return len(mine) == len(others) and all(torch.equal(x, y) for x, y in zip(mine, others, strict=True))


def told(nest: Any) -> str:
    """A nest in words for messages: shapes and types."""
    if isinstance(nest, Tensor):
        return f"{tuple(nest.shape)} of {nest.dtype}"
    if isinstance(nest, Mapping):
        parts = [f"{name!r}: {told(value)}" for name, value in list(nest.items())[:MOST_TOLD]]
        return "{" + ", ".join([*parts, *["..."] * (len(nest) > MOST_TOLD)]) + "}"
    if isinstance(nest, tuple | list):
        parts = [told(value) for value in nest[:MOST_TOLD]]
        return "(" + ", ".join([*parts, *["..."] * (len(nest) > MOST_TOLD)]) + ")"
    return type(nest).__name__
