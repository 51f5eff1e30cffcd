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

from panning.foundation.errors import ModelError
from panning.foundation.modes import in_evaluation_mode
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.wrappers import own_parameters

Rule = Callable[..., Any]  # called as rule(function, *args, **kwargs) in place of function(*args, **kwargs)


class _Flow(TorchFunctionMode):
    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (rule := self.rules.get(func)) is None:
            return func(*args, **kwargs)
        for name in _required(func)[len(args) :] if kwargs else ():  # rules take them by position
            if name not in kwargs:
                break
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
        return rule(func, *args, **kwargs)


@cache
def _required(function: Any) -> tuple[str, ...]:
    """The names of the arguments without which a torch function cannot be called, in order."""
    try:
        parameters = inspect.signature(get_testing_overrides().get(function, function)).parameters.values()
    except ValueError:  # some builtins have no signature
        return ()
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)


def run(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor, rules: Mapping[Any, Rule], dtype: torch.dtype
) -> Tensor:
    """The output of ``model`` on ``inputs`` with other parameters and under ``rules``; differentiable.

    Buffers are cloned (floating ones cast to ``dtype``), all modules are in evaluation mode during the pass, and its random
    draws neither depend on nor change the global random state.
    """
    replacements: dict[int, Tensor] = {id(p): parameters[name] for name, p in own_parameters(model).items()}
    for buffer in model.buffers():
        floating = buffer.is_floating_point()
        replacements[id(buffer)] = buffer.detach().to(dtype, copy=True) if floating else buffer.clone()
    # By slot, every module once: ``functional_call`` would not give back what a module holds that has two names.
    slots = {
        name: replacements[id(tensor)]
        for prefix, module in model.named_modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(prefix, recurse=False, remove_duplicate=False)
    }
    with (
        in_evaluation_mode(model),
        isolated_torch_rng(0),
        _deterministic_convolutions(),
        _Flow(rules),
        torch.autocast(inputs.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),  # the only kernel that can be differentiated twice
    ):
        output = functional_call(model, slots, (inputs.clone(),), tie_weights=False)  # forward may write into them
    if not isinstance(output, Tensor):
        raise ModelError(f"The model returns {type(output).__name__}; a tensor of logits [batch, classes] is needed.")
    return output


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
