"""Rules for scoring with the loss: everything differentiable twice, BatchNorm by the statistics of the batch, nothing
updated."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow.following import Rule
from panning.flow.functions import BATCH_NORMS, CONVOLUTIONS, LINEAR, RECURRENT


def _batch_statistics(
    function: Any, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
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


def _without_cudnn(function: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.backends.cudnn.flags(enabled=False):
        return function(*args, **kwargs)


#: The one activation that torch cannot differentiate twice, written so that it can; and recurrent layers, which cuDNN
#: differentiates in training mode only, and once.
TWICE_DIFFERENTIABLE: dict[Any, Rule] = {F.hardsigmoid: _hardsigmoid, **dict.fromkeys(RECURRENT, _without_cudnn)}
#: Normalise with the statistics of the batch (as in the first training step) and update no running average.
BATCH_STATISTICS: dict[Any, Rule] = {
    **TWICE_DIFFERENTIABLE,
    **{norm: _batch_statistics for norm in BATCH_NORMS},
}
WITHOUT_BIAS: dict[Any, Rule] = {function: without_bias for function in (*LINEAR, *CONVOLUTIONS)}
