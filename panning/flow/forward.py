"""Running the user's own network under other rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, get_testing_overrides

from panning.flow.factors import TOKENS, gate_of, is_index, marked
from panning.flow.functions import CONSTANT_MAKERS
from panning.foundation.device import device_of
from panning.foundation.modes import in_evaluation_mode
from panning.foundation.nests import map_tensors, tensors_in
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.wrappers import own_parameters

Rule = Callable[..., Any]  # called as rule(function, *args, **kwargs) in place of function(*args, **kwargs)
Forward = Callable[[nn.Module, Any], Any]  # (network, what it is run on) -> what it gives


def call(model: nn.Module, inputs: Any) -> Any:
    """What a network gives for one tensor, positional inputs (a tuple or list), or keyword inputs (a mapping)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


class _Called(nn.Module):
    """A network and the way to call it, as one module that can be run with other parameters."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.network = model
        self.calling = forward

    def forward(self, inputs: Any) -> Any:
        return self.calling(self.network, inputs)


class _Flow(TorchFunctionMode):
    def __init__(self, rules: Mapping[Any, Rule], has_tokens: bool) -> None:
        super().__init__()
        self.rules = rules
        self.has_tokens = has_tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._ruled(func, args, kwargs)
        if self.has_tokens and func not in CONSTANT_MAKERS and any(gate_of(x) == TOKENS for x in _each(args)):
            made = args[0] if func is Tensor.__setitem__ else result
            if is_index(made):  # shifted, joined to others, filled in at masked places: tokens again
                marked(made, TOKENS)
        return result

    def _ruled(self, func: Any, args: Any, kwargs: Any) -> Any:
        if (rule := self.rules.get(func)) is None:
            return func(*args, **kwargs)
        for name in _required(func)[len(args) :] if kwargs else ():  # rules take them by position
            if name not in kwargs:
                break
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
        return rule(func, *args, **kwargs)


def _each(args: Any) -> Iterator[Any]:
    for x in args:
        yield from x if isinstance(x, tuple | list) else (x,)


@cache
def _required(function: Any) -> tuple[str, ...]:
    """The names of the arguments without which a torch function cannot be called, in order."""
    try:
        parameters = inspect.signature(get_testing_overrides().get(function, function)).parameters.values()
    except ValueError:  # some builtins have no signature
        return ()
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)


def run(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any, rules: Mapping[Any, Rule], dtype: torch.dtype,
    forward: Forward = call,
) -> Any:  # fmt: skip
    """What ``forward(model, inputs)`` gives with other parameters and under ``rules``; differentiable.

    Buffers are cloned (floating ones cast to ``dtype``), all modules are in evaluation mode during the pass, and its random
    draws neither depend on nor change the global random state.
    """
    replacements: dict[int, Tensor] = {id(p): parameters[name] for name, p in own_parameters(model).items()}
    for buffer in model.buffers():
        floating = buffer.is_floating_point()
        replacements[id(buffer)] = buffer.detach().to(dtype, copy=True) if floating else buffer.clone()
    # By slot, every module once: ``functional_call`` would not give back what a module holds that has two names.
    slots = {
        f"network.{name}": replacements[id(tensor)]
        for prefix, module in model.named_modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(prefix, recurse=False, remove_duplicate=False)
    }
    with (
        in_evaluation_mode(model),
        isolated_torch_rng(0),
        _deterministic_convolutions(),
        _Flow(rules, any(gate_of(tensor) == TOKENS for tensor in tensors_in(inputs))),
        torch.autocast(device_of(model).type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),  # the only kernel that can be differentiated twice
    ):
        own = map_tensors(_copied, inputs)  # forward may write into them
        return functional_call(_Called(model, forward), slots, (own,), tie_weights=False)


def _copied(tensor: Tensor) -> Tensor:
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
