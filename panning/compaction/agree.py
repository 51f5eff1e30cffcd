"""Whether a small network computes, and learns, what the masked network does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from panning.compaction.inputs import call, other_batches, outputs_in
from panning.compaction.narrow import Entries, grid, take
from panning.compaction.trace import all_same
from panning.flow import Example
from panning.foundation.modes import as_it_was
from panning.foundation.nests import map_tensors
from panning.foundation.seeding import isolated_global_rngs

_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


class _WithoutDropout(TorchFunctionMode):
    """In a smaller network dropout draws other numbers; everything else drawn is the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, kwargs | {"dropout_p": 0.0}
            kwargs = {key: value for key, value in kwargs.items() if key != "dropout_p" or len(args) <= 4}
        return func(*args, **kwargs)


def computes_the_same(original: nn.Module, small: nn.Module, example: Example) -> bool:
    """Whether both compute the same, up to rounding, in evaluation, and have the same modes in training."""
    results, modes = [], []
    try:
        with as_it_was(original), as_it_was(small), torch.no_grad():
            for model in (original, small):
                modes.append({name: module.training for name, module in model.train().named_modules()})
                with isolated_global_rngs(1):
                    results.append(outputs_in(call(model.eval(), example)))
    except Exception:  # shapes that do not fit
        return False
    if any(mode != modes[1].get(name, mode) for name, mode in modes[0].items()):
        return False
    return all_same(*results)


def difference(
    original: nn.Module,
    small: nn.Module,
    example: Example,
    mapping: Mapping[str, tuple[str, Entries]],
    masks: Mapping[str, Tensor],
    trains: bool = True,
) -> str | None:
    """Say how the small network differs from the masked network; a difference that float64 does not show is rounding."""
    why = _difference(original, small, example, mapping, masks, trains)
    if why is None or why.startswith("its forward"):
        return why
    exact = replace(example, inputs=map_tensors(lambda x: x.double() if x.is_floating_point() else x, example.inputs))
    try:  # a ReLU of a sum that is zero but for rounding has one gradient or the other
        doubles = copy.deepcopy(original).double(), copy.deepcopy(small).double()
        return _difference(doubles[0], doubles[1], exact, mapping, masks, trains) and why
    except Exception:
        return why


def _difference(
    original: nn.Module,
    small: nn.Module,
    example: Example,
    mapping: Mapping[str, tuple[str, Entries]],
    masks: Mapping[str, Tensor],
    trains: bool,
) -> str | None:
    """Say how the small network differs from the masked network; None if the two agree.

    Outputs and gradients in evaluation, outputs for other batches and, where the network ``trains`` on, in training; dropout
    apart. A gradient of a weight that is left out has to be zero.
    """
    try:
        if not _same(original, small, example):
            return "its outputs would be others"
        if trains and not _same_gradients(original, small, example, mapping, masks):
            return "its gradients would be others"
        for others in other_batches(example):
            if _runs(original, others) and not _same(original, small, others):
                return "its outputs for another batch would be others"
        if trains and _runs(original, example, training=True) and not _same(original, small, example, training=True):
            return "its outputs in training would be others"
    except Exception as error:  # shapes that do not fit
        return f"its forward fails on smaller tensors ({type(error).__name__}: {error})".splitlines()[0]
    return None


@torch.no_grad()
def _outputs(model: nn.Module, example: Example, training: bool = False) -> list[Tensor]:
    with as_it_was(model), isolated_global_rngs(1), _WithoutDropout():
        return outputs_in(call(model.train(training), example))


def _runs(model: nn.Module, example: Example, training: bool = False) -> bool:
    try:
        _outputs(model, example, training)
    except Exception:  # one sample is too few for a norm, say
        return False
    return True


def _same(original: nn.Module, small: nn.Module, example: Example, training: bool = False) -> bool:
    a, b = (_outputs(model, example, training) for model in (original, small))
    return bool(a) and all_same(a, b)


def _same_gradients(
    original: nn.Module, small: nn.Module, example: Example, mapping: Mapping[str, tuple[str, Entries]], masks: Any
) -> bool:
    full, own = (_gradients(model, example) for model in (original, small))
    full = {name: grad * masks[name].to(grad.device) if name in masks else grad for name, grad in full.items()}
    compared = []
    for name, grad in own.items():
        origin, entries = mapping[name]
        if origin in masks:
            grad = grad * take(masks[origin].to(grad.device), entries)
        if origin in full:
            compared.append((take(full[origin], entries), grad))
            full[origin][grid(entries, full[origin])] = 0.0
    compared += [(grad, torch.zeros_like(grad)) for grad in full.values()]  # of what is not in the small network
    largest = max((float(a.nan_to_num().abs().max()) for a, _ in compared if a.numel()), default=0.0)
    return all(
        torch.allclose(a, b, 0.0, torch.finfo(a.dtype).eps ** 0.5 * largest, equal_nan=True) for a, b in compared
    )


def _gradients(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """Gradients of a random weighted sum of all outputs, by the name of the parameter."""
    with torch.enable_grad(), as_it_was(model), isolated_global_rngs(1), _WithoutDropout():
        outputs = [tensor for tensor in outputs_in(call(model.eval(), example)) if tensor.requires_grad]
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not outputs or not parameters:
            return {}
        weights = [torch.randn(tensor.shape).to(tensor.device, tensor.dtype) for tensor in outputs]
        grads = torch.autograd.grad(outputs, list(parameters.values()), weights, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), grads, strict=True)
    }
