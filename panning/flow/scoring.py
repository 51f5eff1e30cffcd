"""Rules for scoring with the loss: everything differentiable twice, BatchNorm by the statistics of the batch, nothing
updated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow.convolutions import convolution, in_torchs_layout
from panning.flow.following import Rule
from panning.flow.functions import BATCH_NORMS, CONVOLUTIONS, LINEAR, NORMS, RECURRENT
from panning.flow.packed import STRAIGHT_THROUGH, unpacked_rules


def _batch_statistics(
    function: Any, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    x = in_torchs_layout(x)
    if x.numel() == x.shape[1]:  # one value per channel has no variance; its normalised value is 0
        x = x.expand(2, *x.shape[1:])
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)[:1]
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def without_bias(function: Any, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """The layer, its bias left out."""
    result: Tensor = function(x, weight, None, *args, **kwargs)
    return result


def _hardsigmoid(function: Any, x: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(x + 3.0) / 6.0


def _norm(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A norm whose second derivative is a number where all that it is taken of is 0, as in a unit without weights.

    Values and first derivatives are torch's: 0 is taken as the derivative at 0.
    """
    result: Tensor = function(x, *args, **kwargs)
    given = dict(zip(("p", "dim", "keepdim"), args, strict=False)) | kwargs
    order = given.get("ord", given.get("p"))
    if order not in (None, 2, "fro") or result.is_complex() or not bool((result == 0).any()):
        return result
    dims = given.get("dim")
    squares = x.square().sum() if dims is None else x.square().sum(dims, keepdim=given.get("keepdim", False))
    nothing = squares == 0
    return squares.masked_fill(nothing, 1.0).sqrt().masked_fill(nothing, 0.0).reshape(result.shape).to(result.dtype)


def _normalize(function: Any, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **kwargs: Any) -> Tensor:
    if p != 2:
        return function(x, p, dim, eps, **kwargs)
    return x / _norm(torch.linalg.vector_norm, x, 2, dim, True).clamp_min(eps)


def _without_cudnn(function: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.backends.cudnn.flags(enabled=False):
        return function(*args, **kwargs)


#: The one activation that torch cannot differentiate twice, and norms, whose second derivative at 0 is NaN, written so that
#: they can be; recurrent layers, which cuDNN differentiates in training mode only, and once; and packed layers.
TWICE_DIFFERENTIABLE: dict[Any, Rule] = {
    F.hardsigmoid: _hardsigmoid,
    F.normalize: _normalize,
    F.conv2d: convolution,
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(RECURRENT, _without_cudnn),
    **STRAIGHT_THROUGH,
}
#: Normalise with the statistics of the batch (as in the first training step) and update no running average.
BATCH_STATISTICS: dict[Any, Rule] = {
    **TWICE_DIFFERENTIABLE,
    **{norm: _batch_statistics for norm in BATCH_NORMS},
}
_WITHOUT_BIAS: dict[Any, Rule] = {function: without_bias for function in (*LINEAR, *CONVOLUTIONS)}
WITHOUT_BIAS: dict[Any, Rule] = {**_WITHOUT_BIAS, **unpacked_rules(_WITHOUT_BIAS)}


# One pass fixes the batch statistics of every norm, in the order of the calls; other passes then run under them.


def recording_statistics(statistics: list[tuple[Tensor, Tensor]]) -> dict[Any, Rule]:
    """Rules that normalise by the batch, and append each norm's mean and variance."""

    def of_the_batch(x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        statistics.append((x.mean(dims), x.var(dims, unbiased=x.numel() > x.shape[1])))
        return statistics[-1]

    return _normalised_by(of_the_batch)


def replaying_statistics(statistics: list[tuple[Tensor, Tensor]]) -> dict[Any, Rule]:
    """Rules that normalise by the statistics of an earlier pass."""
    rest = iter(statistics)
    return _normalised_by(lambda x: next(rest))


def _normalised_by(statistics_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> dict[Any, Rule]:
    def rule(function: Any, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None,
             training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        return F.batch_norm(x, *statistics_of(x), weight, bias, False, 0.0, eps)

    return dict.fromkeys(BATCH_NORMS, rule)
