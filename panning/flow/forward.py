"""Running the user's own network under other rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from panning.flow.factors import TOKENS, as_weight, gate_of, marked
from panning.flow.failures import explained
from panning.flow.following import Following, Rule
from panning.flow.hidden import in_the_open
from panning.foundation.device import device_of
from panning.foundation.modes import in_evaluation_mode
from panning.foundation.nests import map_tensors, tensors_in
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.torch_private import every_module, slots
from panning.foundation.wrappers import own_parameters

Forward = Callable[[nn.Module, Any], Any]  # (network, what it is run on) -> what it gives


def call(model: nn.Module, inputs: Any) -> Any:
    """What a network gives for one tensor, positional inputs (a tuple or list), or keyword inputs (a mapping)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def run(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any, rules: Mapping[Any, Rule], dtype: torch.dtype,
    forward: Forward = call,
) -> Any:  # fmt: skip
    """What ``forward(model, inputs)`` gives with other parameters and under ``rules``; differentiable.

    Buffers are cloned (floating ones cast to ``dtype``), all modules are in evaluation mode during the pass, and its random
    draws neither depend on nor change the global random state.

    Raises:
        ForwardError: if the network's own code or a rule fails; the message names the module.
        ModelError: if a rule refuses something in the network.
    """
    own = own_parameters(model)
    tensors: dict[int, Tensor] = {id(p): as_weight(parameters[name]) for name, p in own.items()}
    held = [kind for module in every_module(model) for kind in slots(module)[:2] if kind]
    for tensor in (tensor for kind in held for tensor in kind.values() if tensor is not None):
        if id(tensor) not in tensors:  # a buffer
            floating = tensor.is_floating_point()
            tensors[id(tensor)] = tensor.detach().to(dtype, copy=True) if floating else tensor.clone()
    dtypes = {p.dtype for p in own.values() if p.is_floating_point()}
    mixed = len(dtypes) > 1 or any(d.itemsize < 4 for d in dtypes)
    flow = Following(
        rules,
        parameters,
        dtype,
        mixed=mixed,
        has_tokens=any(gate_of(tensor) == TOKENS for tensor in tensors_in(inputs)),
    )
    with (
        explained(model, inputs, flow.paths),
        in_evaluation_mode(model),
        isolated_torch_rng(0),
        _deterministic_convolutions(),
        in_the_open(flow),
        flow,
        torch.autocast(device_of(model).type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),  # the only kernel that can be differentiated twice
    ):
        given = map_tensors(copied, inputs)  # forward may write into them
        with _holding(tensors, held):
            return forward(model, given)


@contextmanager
def _holding(tensors: Mapping[int, Tensor], held: list[dict[str, Any]]) -> Iterator[None]:
    """Put other tensors into a network's slots, by the ids of what is there; what has two names comes back under both,
    where ``torch.func.functional_call`` would give one back."""
    before = [dict(kind) for kind in held]
    try:
        for kind in held:
            kind.update({name: tensors[id(tensor)] for name, tensor in kind.items() if tensor is not None})
        yield
    finally:
        for kind, was in zip(held, before, strict=True):
            kind.update(was)


def copied(tensor: Tensor) -> Tensor:
    """A copy that has the gate of the original."""
    return marked(tensor.clone(), gate_of(tensor))


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    """cuDNN's algorithms fixed, none picked by a timing. TF32 stays the user's choice: it keeps 0 and 1 as they are."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
