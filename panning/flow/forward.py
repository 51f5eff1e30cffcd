"""Running the user's own network under other rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from panning.errors import ModelError
from panning.seeding import isolated_torch_rng

Rule = Callable[..., Any]  # called as rule(function, *args, **kwargs) in place of function(*args, **kwargs)


class _Flow(TorchFunctionMode):
    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = self.rules.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(func, *args, **(kwargs or {}))


def run(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor, rules: Mapping[Any, Rule], dtype: torch.dtype
) -> Tensor:
    """The output of ``model`` on ``inputs`` with other parameters and under ``rules``; differentiable.

    Buffers are cloned (floating ones cast to ``dtype``), all modules are in evaluation mode during the pass, and what it
    draws at random does not depend on, nor change, the global random state.
    """
    replacements: dict[int, Tensor] = {id(p): parameters[name] for name, p in model.named_parameters()}
    for buffer in model.buffers():
        floating = buffer.is_floating_point()
        replacements[id(buffer)] = buffer.detach().to(dtype, copy=True) if floating else buffer.clone()
    # By slot, every module once: ``functional_call`` would not give back what a module holds that has two names.
    slots = {
        f"{prefix}.{name}" if prefix else name: replacements[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    with (
        _in_evaluation_mode(model),
        isolated_torch_rng(0),
        _Flow(rules),
        torch.autocast(inputs.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),  # the only kernel that can be differentiated twice
    ):
        output = functional_call(model, slots, (inputs.clone(),), tie_weights=False)  # forward may write into them
    if not isinstance(output, Tensor):
        raise ModelError(f"The model returns {type(output).__name__}; a tensor of logits [batch, classes] is needed.")
    return output


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
