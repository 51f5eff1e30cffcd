"""Conditions, and what chooses by them: a mask chooses, a comparison of what flows takes each branch at times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panning.flow import functions
from panning.flow.factors import SCALE, depends, gate_of, marked, without_constant
from panning.flow.following import Rule


def _condition(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    result = function(a, b, *args, **kwargs)
    return marked(result, SCALE) if depends(a) or depends(b) else result


def _where(function: Any, *args: Any, **kwargs: Any) -> Any:
    names = ("input", "condition", "other") if function is Tensor.where else ("condition", "input", "other")
    given = dict(zip(names, args, strict=False)) | kwargs
    if not depends(given.get("input")) and not depends(given.get("other")):
        return function(*args, **kwargs)
    a, b, condition = without_constant(given["input"]), without_constant(given["other"]), given["condition"]
    if gate_of(condition) == SCALE:  # decided by what flows: each branch is taken at times
        return (a + b).expand(torch.broadcast_shapes(condition.shape, (a + b).shape)).clone()
    return torch.where(condition, a, b)


def _masked_fill(function: Any, x: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not depends(x):
        return function(x, mask, *args, **kwargs)
    if gate_of(mask) == SCALE:
        return x if function is Tensor.masked_fill_ else x.clone()
    return function(x, mask, 0.0)


CONDITIONS: dict[Any, Rule] = {
    **dict.fromkeys(functions.COMPARISONS, _condition),
    **dict.fromkeys((torch.where, Tensor.where), _where),
    **dict.fromkeys((torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_), _masked_fill),
}
