"""Quantised layers whose weights are packed for a kernel, as ``torch.ao.quantization`` makes them.

No gradient passes through such a kernel. In a flow it is the plain function of the dequantised weights that it holds. Along
paths, where only weights count, that is exact. Where a loss is taken, values stay the kernel's and gradients are the plain
function's, as if the kernel did not round its inputs: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).
Layers between which activations are quantised, too, have paths, but no gradient of a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow.factors import depends, gate_of, marked
from panning.flow.following import Rule
from panning.foundation.errors import ModelError
from panning.foundation.nests import tensors_in
from panning.foundation.torch_private import PACKED_TYPE, tree_map, unpacked, unpacked_cell

Call = Callable[..., Any]  # call(function, *args): a plain function, or the rule that stands in its place
Plain = Callable[..., Any]  # plain(call, *args): what an operator computes, but for rounding

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _linear(call: Call, x: Tensor, packed: Any, *args: Any, **kwargs: Any) -> Any:
    return call(F.linear, x, *unpacked(packed))


def _behind(plain: Plain) -> Plain:
    """With a ReLU behind it."""

    def with_relu(call: Call, *args: Any, **kwargs: Any) -> Any:
        return call(F.relu, plain(call, *args, **kwargs))

    return with_relu


def _sum(call: Call, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Any:
    return call(torch.add, a, b)


def _product(call: Call, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Any:
    return call(torch.mul, a, b)


def _concatenation(call: Call, tensors: Any, dim: int, *args: Any, **kwargs: Any) -> Any:
    return call(torch.cat, tensors, dim)


def _convolution(n_axes: int) -> Plain:
    function = getattr(F, f"conv{n_axes}d")

    def plain(call: Call, x: Tensor, packed: Any, *args: Any, **kwargs: Any) -> Any:
        weight, bias = unpacked(packed)
        numbers = (list(each())[-n_axes:] for each in (packed.stride, packed.padding, packed.dilation))
        weight = weight.reshape(*weight.shape[:2], *weight.shape[-n_axes:])  # one axis is packed as two
        return call(function, x, weight, bias, *numbers, packed.groups())

    return plain


def _recurrent(name: str) -> Plain:
    """Of a stack of layers, whose cells are one list among the arguments."""

    def plain(call: Call, *args: Any, **kwargs: Any) -> Any:
        return call(getattr(torch, name), *(_flat(x) for x in args))

    return plain


def _cell(name: str) -> Plain:
    def plain(call: Call, x: Tensor, hx: Any, packed_ih: Any, packed_hh: Any, *biases: Tensor) -> Any:
        (w_ih, b_ih), (w_hh, b_hh) = unpacked(packed_ih), unpacked(packed_hh)
        return call(getattr(torch, f"{name}_cell"), x, hx, w_ih, w_hh, b_ih, b_hh)  # the kernel reads no other biases

    return plain


def _flat(x: Any) -> Any:
    """Weights and biases of packed cells, in the order of torch's own layers; anything else as it is."""
    if not isinstance(x, list | tuple) or not x or not isinstance(x[0], PACKED_TYPE):
        return x
    return [tensor for cell in x for tensor in unpacked_cell(cell)]


def _operator(name: str) -> Any:
    return getattr(torch.ops.aten if name in ("quantized_lstm", "quantized_gru") else torch.ops.quantized, name)


#: Operators on real activations -> what they compute.
DYNAMIC: dict[Any, Plain] = {
    _operator(name): plain
    for name, plain in {
        **dict.fromkeys(("linear_dynamic", "linear_dynamic_fp16"), _linear),
        **dict.fromkeys(("linear_relu_dynamic", "linear_relu_dynamic_fp16"), _behind(_linear)),
        **{f"conv{n}d_dynamic": _convolution(n) for n in (1, 2, 3)},
        **{f"quantized_{name}": _recurrent(name) for name in ("lstm", "gru")},
        **{f"quantized_{name}_cell_dynamic": _cell(name) for name in _RECURRENT},
    }.items()
}
_ON_QUANTISED = {
    "linear": _linear, "add": _sum, "mul": _product, **{f"conv{n}d": _convolution(n) for n in (1, 2, 3)},
}  # fmt: skip
#: Operators on quantised activations.
STATIC: dict[Any, Plain] = {
    **{_operator(name): plain for name, plain in _ON_QUANTISED.items()},
    **{_operator(f"{name}_relu"): _behind(plain) for name, plain in _ON_QUANTISED.items()},
    _operator("cat"): _concatenation,
}
PLAIN = {**DYNAMIC, **STATIC}
#: What makes quantised activations of real ones.
QUANTISE = (torch.quantize_per_tensor, torch.quantize_per_channel, torch.quantize_per_tensor_dynamic)


def unpacked_rules(rules: Mapping[Any, Rule]) -> dict[Any, Rule]:
    """Rules for packed operators that call the rules of the plain functions.

    Args:
        rules: the rules of the plain functions; a function without one runs as it is.
    """

    def call(function: Any, *args: Any) -> Any:
        return rules[function](function, *args) if function in rules else function(*args)

    def rule(function: Any, *args: Any, **kwargs: Any) -> Any:
        if any(x.is_quantized for x in tensors_in(args[0])):  # by code that the flow does not follow
            return function(*args, **kwargs)
        return PLAIN[function](call, *args, **kwargs)

    return {
        **dict.fromkeys(PLAIN, rule),
        **dict.fromkeys((*QUANTISE, torch.dequantize, Tensor.dequantize), _as_it_is),
    }


def _as_it_is(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return marked(x.clone(), gate_of(x)) if depends(x) else function(x, *args, **kwargs)


def _refused(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not depends(x):
        return function(x, *args, **kwargs)
    raise ModelError(
        "Activations are quantised here, and no gradient of a loss passes quantised activations. Prune the network before "
        "you quantise it, or take a method without a loss (magnitude, synflow)."
    )


def _straight_through(function: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        values = function(*args, **kwargs)
    plain = DYNAMIC[function](lambda f, *given: f(*given), *args, **kwargs)
    return tree_map(lambda value, y: value + (y - y.detach()), values, plain)


#: Where a loss is taken.
STRAIGHT_THROUGH: dict[Any, Rule] = {
    **dict.fromkeys(DYNAMIC, _straight_through),
    **dict.fromkeys(QUANTISE, _refused),
}
