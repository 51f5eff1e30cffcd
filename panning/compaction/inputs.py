"""Example inputs, on which compaction runs a network to follow and compare it, and the tensors in the network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from panning.flow import Example
from panning.foundation.errors import ModelError
from panning.foundation.modes import as_it_was
from panning.foundation.nests import map_tensors, tensors_in, told

#: What a language model keeps for its own next call.
CACHES = ("past_key_values", "cache")


def call(model: nn.Module, example: Example) -> Any:
    """What the network gives for a copy of the inputs."""
    return example.forward(model, map_tensors(lambda tensor: tensor.clone(), example.inputs))


def outputs_in(value: Any) -> list[Tensor]:
    """All tensors in what a network gives: in lists, mappings and objects, caches apart."""
    return list(_outputs(value, set()))


def _outputs(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, type | nn.Module | str | Callable):
        seen.add(id(value))
        if isinstance(value, list | tuple | set):
            parts = list(value)
        else:
            fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
            parts = [part for name, part in fields.items() if name not in CACHES]
        for part in parts:
            yield from _outputs(part, seen)


def other_batches(example: Example) -> list[Example]:
    """One sample alone, and twice as many: tensors with as many rows as the first one are cut and doubled."""
    n = next((len(tensor) for tensor in tensors_in(example.inputs) if tensor.dim()), 0)

    def with_rows(change: Callable[[Tensor], Tensor]) -> Example:
        changed = map_tensors(lambda x: change(x) if x.dim() and len(x) == n else x, example.inputs)
        return replace(example, inputs=changed)

    return [with_rows(lambda x: x[:1]), with_rows(lambda x: torch.cat([x.flip(0), x]))]


def shape_of(example: Example) -> tuple[int, ...]:
    """The shape of one sample, if one tensor is all that the network takes; else nothing."""
    return tuple(example.inputs.shape[1:]) if isinstance(example.inputs, Tensor) else ()


def given_example(model: nn.Module, example: Example) -> Example:
    """An example, if the network runs on it.

    Raises:
        ModelError: if there is no tensor in it, or the network does not run on it.
    """
    if not tensors_in(example.inputs):
        raise ModelError(
            f"example_inputs has no tensor ({told(example.inputs)}). Pass what the network is called with: a tensor, batch "
            "included, a tuple of positional inputs, or a dict of keyword inputs."
        )
    try:
        return _run(model, example)
    except Exception as error:  # whatever a forward may raise
        raise ModelError(
            f"{type(model).__name__} does not run on these example_inputs, {told(example.inputs)} ({type(error).__name__}: "
            f"{error}). They are what it is called with, batch included."
        ) from error


def example_of_shape(model: nn.Module, shape: Sequence[int]) -> Example:
    """Random numbers of the weights' type; indices, as those of tokens, for a network that does not run on numbers."""
    reference = next(model.parameters())
    numbers = torch.randn(2, *shape, device="cpu").to(reference.device, reference.dtype)
    try:
        return _run(model, Example(numbers))
    except Exception as error:  # whatever a forward may raise
        try:
            return _run(model, Example((numbers > 0).long()))
        except Exception:
            raise ModelError(
                f"{type(model).__name__} does not run on a batch of shape {tuple(numbers.shape)} and {numbers.dtype} "
                f"({type(error).__name__}: {error}), nor on one of the integers 0 and 1. input_shape is the shape of one "
                "input, without the batch; pass example_inputs for a network that takes something else."
            ) from error


def _run(model: nn.Module, example: Example) -> Example:
    with torch.no_grad(), as_it_was(model):
        call(model.eval(), example)
    return example
