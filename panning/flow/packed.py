"""Quantised layers whose weights are packed for a kernel, as ``torch.ao.quantization.quantize_dynamic`` makes them.

No gradient passes through such a kernel. In a flow it is the plain function of the dequantised weights that it holds. Along
paths, where only weights count, that is exact. Where a loss is taken, values stay the kernel's and gradients are the plain
function's, as if the kernel did not round its inputs: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow.following import Rule
from panning.foundation.torch_private import PACKED_TYPE, tree_map, unpacked, unpacked_cell

Call = Callable[..., Any]  # call(function, *args): a plain function, or the rule that stands in its place
Plain = Callable[..., Any]  # plain(call, *args): what an operator computes, but for rounding

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _linear(call: Call, x: Tensor, packed: Any, *args: Any, **kwargs: Any) -> Any:
    return call(F.linear, x, *unpacked(packed))


def _linear_relu(call: Call, x: Tensor, packed: Any, *args: Any, **kwargs: Any) -> Any:
    return call(F.relu, call(F.linear, x, *unpacked(packed)))


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


#: Packed operator -> what it computes.
PLAIN: dict[Any, Plain] = {
    _operator(name): plain
    for name, plain in {
        **dict.fromkeys(("linear_dynamic", "linear_dynamic_fp16"), _linear),
        **dict.fromkeys(("linear_relu_dynamic", "linear_relu_dynamic_fp16"), _linear_relu),
        **{f"conv{n}d_dynamic": _convolution(n) for n in (1, 2, 3)},
        **{f"quantized_{name}": _recurrent(name) for name in ("lstm", "gru")},
        **{f"quantized_{name}_cell_dynamic": _cell(name) for name in _RECURRENT},
    }.items()
}


def unpacked_rules(rules: Mapping[Any, Rule]) -> dict[Any, Rule]:
    """Rules for packed operators that call the rules of the plain functions.

    Args:
        rules: the rules of the plain functions; a function without one runs as it is.
    """

    def call(function: Any, *args: Any) -> Any:
        return rules[function](function, *args) if function in rules else function(*args)

    def rule(function: Any, *args: Any, **kwargs: Any) -> Any:
        return PLAIN[function](call, *args, **kwargs)

    return dict.fromkeys(PLAIN, rule)


def _straight_through(function: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        values = function(*args, **kwargs)
    plain = PLAIN[function](lambda f, *given: f(*given), *args, **kwargs)
    return tree_map(lambda value, y: value + (y - y.detach()), values, plain)


#: Where a loss is taken.
STRAIGHT_THROUGH: dict[Any, Rule] = dict.fromkeys(PLAIN, _straight_through)
