"""Two-dimensional convolutions of a loss on the CPU: a derivative of the gradient by two calls, and maps channels last.

Torch differentiates a convolution's gradient by four convolutions with swapped axes, whose kernels are as large as maps.
With B(g, x, w) the gradient of <g, conv(x, w)> by x and by w, and a, b the derivatives by its two parts, B's own derivative
is conv(a, w) + conv(x, b) by g, and by x and w the two parts of B(g, a, b).

oneDNN takes less time for maps whose channels lie next to each other. But torch's batch norm adds up such maps in float32,
one entry after the other: a batch's mean is off by 1e-5, and by 1e-7 in torch's own layout, where it adds up in float64. So
networks with norms over maps keep torch's own layout.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.flow.following import Rule
from panning.flow.lazy import Lazy
from panning.foundation.making import making
from panning.foundation.overruns import overruns
from panning.foundation.torch_private import every_module, transforms_are_active

#: Modules that normalise maps, and functions that code calls without them.
NORMS_OVER_MAPS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm)
NORMALISING = (F.group_norm, torch.group_norm, F.instance_norm, torch.instance_norm)


class How(NamedTuple):
    """The arguments of a convolution, both of an axis each, and whether its maps are channels last."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    last: bool


def convolution(
    function: Any, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, last: bool = False,
) -> Tensor:  # fmt: skip
    """The rule of ``F.conv2d``; what it does not fit is left to torch.

    Args:
        last: lay maps channels last, which adds up in another order.
    """
    if isinstance(padding, str) or not _fits(x, weight, bias):
        return function(x, weight, bias, stride, padding, dilation, groups)
    last = last and not overruns(weight, stride)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    how = How(_pair(stride), _pair(padding), _pair(dilation), groups, last)
    result: Tensor = _Convolution.apply(x, weight, bias, how)
    return result


def in_torchs_layout(x: Tensor) -> Tensor:
    """A map as torch's own convolutions leave it in memory."""
    return x.contiguous() if x.dim() == 4 and making() >= 2 else x


def _in_torchs_layout(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return function(in_torchs_layout(x), *args, **kwargs)


#: Rules that lay maps channels last; not for what adds over them in float32, nor for views, which need torch's own layout.
CHANNELS_LAST: dict[Any, Rule] = {
    F.conv2d: partial(convolution, last=True),
    **dict.fromkeys((*NORMALISING, Tensor.view, Tensor.view_as), _in_torchs_layout),
}


def layout_rules(model: nn.Module) -> dict[Any, Rule]:
    """``CHANNELS_LAST`` for a network without norms over maps."""
    if making() < 2 or any(isinstance(module, NORMS_OVER_MAPS) for module in every_module(model)):
        return {}
    return CHANNELS_LAST


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if making() < 2:
        return False
    plain = all(type(y) in (Tensor, nn.Parameter, Lazy) and y.dtype is torch.float32 for y in (x, weight))
    if not plain or x.device.type != "cpu" or x.dim() != 4 or len(x) == 1 or transforms_are_active():
        return False  # torch has its own way for a single sample
    return bias is None or (bias.dtype is torch.float32 and not bias.requires_grad)


def _pair(value: Any) -> Any:
    both = (value,) if isinstance(value, int) else value
    return tuple(both) * (2 // len(both))


def _laid(x: Tensor, weight: Tensor, how: How) -> tuple[Tensor, Tensor]:
    """Map and weight; the weight channels last where the map, of one channel, does not say its layout."""
    if overruns(weight, how.stride):
        return x.contiguous(), weight.contiguous()
    return x, weight.clone(memory_format=torch.channels_last) if how.last and x.shape[1] == 1 else weight


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
    stride, padding, dilation, groups, _ = how
    return torch.convolution(*_laid(x, weight, how), bias, stride, padding, dilation, False, (0, 0), groups)


def _back(grad: Tensor, x: Tensor, weight: Tensor, how: How, by_x: bool, by_weight: bool) -> Any:
    stride, padding, dilation, groups, _ = how
    of = (by_x, by_weight, False)
    return torch.ops.aten.convolution_backward(
        grad, *_laid(x, weight, how), None, stride, padding, dilation, False, (0, 0), groups, of
    )[:2]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return _sums(x, weight, bias, how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return (*_Gradients.apply(grads[0], x, weight, ctx.how, *ctx.needs_input_grad[:2]), None, None)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, how: How, by_x: bool, by_weight: bool) -> Any:
        ctx.save_for_backward(grad, x, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return _back(grad, x, weight, how, by_x, by_weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grad, x, weight = ctx.saved_tensors
        (of_x, of_weight), how = grads, ctx.how
        by_grad, by_x, by_weight = ctx.needs_input_grad[:3]
        found: list[Tensor | None] = [None, None, None]
        if by_grad and of_x is not None:
            found[0] = _sums(of_x, weight, None, how)
        if by_grad and of_weight is not None:
            more = _sums(x, of_weight, None, how)
            found[0] = more if found[0] is None else found[0] + more
        by_x, by_weight = by_x and of_weight is not None, by_weight and of_x is not None
        if by_x or by_weight:
            found[1:] = _back(
                grad, x if of_x is None else of_x, weight if of_weight is None else of_weight, how, by_x, by_weight
            )
        return (*found, None, None, None)
