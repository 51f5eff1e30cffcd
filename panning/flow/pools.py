"""Maxima as averages: a maximum hands the gradient to one place of a tie only, the average reaches all that can win."""

from __future__ import annotations

import itertools
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from panning.flow import functions
from panning.flow.factors import depends
from panning.flow.following import Rule
from panning.flow.linear import add

Axes = tuple[int, ...]


def _average_like(pool: Any, with_indices: bool = False) -> Rule:
    def rule(function: Any, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
        n_axes = int(pool.__name__[-2])
        windows = kernel_size, stride or kernel_size, padding, dilation
        if with_indices or any(d != 1 for d in _each(dilation, n_axes)):
            maxima = function(x.detach(), *windows, ceil_mode)
            shape = (maxima[0] if with_indices else maxima).shape[-n_axes:]
            average = _dilated_average(x, shape, *(_each(option, n_axes) for option in windows))
            return (average, maxima[1]) if with_indices else average
        return pool(x, kernel_size, stride or None, padding, ceil_mode)

    return rule


def _each(option: Any, n_axes: int) -> Axes:
    return tuple(option) * (n_axes // len(option)) if isinstance(option, tuple | list) else (option,) * n_axes


def _dilated_average(
    x: Tensor, shape: Axes, kernel: Axes, stride: Axes, padding: Axes, dilation: Axes
) -> Tensor:  # fmt: skip
    """Sum by windows: a convolution with ones may be off 0 by rounding."""
    n_axes, first = len(kernel), x.dim() - len(kernel)
    spans = [(kernel[i] - 1) * dilation[i] + 1 for i in range(n_axes)]
    missing = [max(0, spans[i] + (shape[i] - 1) * stride[i] - padding[i] - x.shape[first + i]) for i in range(n_axes)]
    x = F.pad(x, list(itertools.chain(*zip(reversed(padding), reversed(missing), strict=True))))
    for i in range(n_axes):
        x = x.unfold(first + i, spans[i], stride[i])[..., :: dilation[i]]
    return x.mean(tuple(range(-n_axes, 0)))


def _adaptive_average_like(pool: Any, with_indices: bool = False) -> Rule:
    def rule(function: Any, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        average = pool(x, output_size)
        return (average, function(x.detach(), output_size)[1]) if with_indices else average

    return rule


def _unpool(function: Any, x: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Every place of a window, since every one can have been the maximum; windows that do not overlap."""
    if not depends(x):
        return function(x, indices, *args, **kwargs)
    shape = function(x.detach(), indices, *args, **kwargs).shape
    return F.interpolate(x, size=shape[2:])


def _reduction(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """x.max(), x.max(dim), x.amax(dim), x.max(other), and the minimum."""
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, Tensor):
        return add(function, x, other)
    if not depends(x):
        return function(x, *args, **kwargs)
    result = function(x.detach(), *args, **kwargs)
    if isinstance(result, Tensor):
        dims = args[0] if args else kwargs.get("dim", ())
        keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
        return x.mean(dims, keepdim=keepdim) if dims != () else x.mean().reshape(result.shape)
    average = x.mean(args[0] if args else kwargs["dim"])
    return type(result)((average.reshape(result.values.shape), result.indices))


AVERAGE_POOLS: dict[Any, Rule] = {
    **{function: _average_like(pool) for function, pool in functions.MAX_POOLS.items()},
    **{function: _average_like(pool, True) for function, pool in functions.MAX_POOLS_WITH_INDICES.items()},
    **{function: _adaptive_average_like(pool) for function, pool in functions.ADAPTIVE_MAX_POOLS.items()},
    **{
        function: _adaptive_average_like(pool, True)
        for function, pool in functions.ADAPTIVE_MAX_POOLS_WITH_INDICES.items()
    },
    **dict.fromkeys(functions.MAX_UNPOOLS, _unpool),
    **dict.fromkeys(functions.EXTREMA, _reduction),
}
