"""The number of paths from the input to the output: a kept weight counts 1, norms and activations nothing, pools sum.

A gate lets pass what it multiplies, and a path that leads through a gate itself is not counted. Means that a network takes
by hand (``x.mean((2, 3))``) stay means: the count is then over their number of places too small, for every mask alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow import functions
from panning.flow.factors import depends, presence
from panning.flow.following import Rule
from panning.flow.linear import rules, without_gate
from panning.flow.pools import AVERAGE_POOLS
from panning.flow.scoring import without_bias

#: Averages over windows of a size that is given, and over as many windows as are asked for.
WINDOWS = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}
ADAPTIVE = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def _open(gate: Tensor, mean: float) -> Tensor:
    return torch.ones_like(gate)


def _present(x: Tensor) -> Tensor:
    return presence(x.detach())


def _window(average: Rule | None, n_axes: int) -> Rule:
    """An average over windows as a sum."""

    def rule(function: Any, x: Tensor, kernel_size: Any, *args: Any, **kwargs: Any) -> Any:
        pool = function if average is None else average
        result = pool(*(() if average is None else (function,)), x, kernel_size, *args, **kwargs)
        sizes = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size,)
        return _times(result, float(math.prod(sizes) if len(sizes) > 1 else sizes[0] ** n_axes), x)

    return rule


def _adaptive(average: Rule | None) -> Rule:
    def rule(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = function(x, *args, **kwargs) if average is None else average(function, x, *args, **kwargs)
        made = result[0] if isinstance(result, tuple) else result
        return _times(result, x.numel() / max(1, made.numel()), x)

    return rule


def _times(result: Any, factor: float, x: Tensor) -> Any:
    if not depends(x):
        return result
    return (result[0] * factor, *result[1:]) if isinstance(result, tuple) else result * factor


SUM_POOLS: dict[Any, Rule] = {
    **AVERAGE_POOLS,
    **{pool: _window(None, n) for pool, n in WINDOWS.items()},
    **{
        pool: _window(AVERAGE_POOLS[pool], WINDOWS[average])
        for table in (functions.MAX_POOLS, functions.MAX_POOLS_WITH_INDICES)
        for pool, average in table.items()
    },
    **dict.fromkeys(ADAPTIVE, _adaptive(None)),
    **{
        pool: _adaptive(AVERAGE_POOLS[pool])
        for table in (functions.ADAPTIVE_MAX_POOLS, functions.ADAPTIVE_MAX_POOLS_WITH_INDICES)
        for pool in table
    },
}


def counting(linear: Rule = without_bias) -> dict[Any, Rule]:
    """The rules of the count; all parameters are to be ones and zeros.

    Args:
        linear: replaces linear layers and convolutions, as in ``rules``.
    """
    return {
        **rules(linear, _open, presence, _present),
        **dict.fromkeys((*functions.BATCH_NORMS, *functions.CHANNEL_NORMS, *functions.LAST_NORMS), without_gate),
        **SUM_POOLS,
    }
