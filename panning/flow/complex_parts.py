"""Complex numbers along paths: a flow is real, and one of its numbers stands for both parts of a complex one.

A path leads to both parts of what it leads to, and from either part on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panning.flow.factors import depends, gate_of, marked
from panning.flow.following import Rule


def _both_parts(function: Any, x: Tensor) -> Tensor:
    return function(x) if x.is_complex() else marked(torch.stack([x, x], -1), gate_of(x))


def _either_part(function: Any, x: Tensor) -> Tensor:
    return function(x) if x.is_complex() else marked(x.clone(), gate_of(x))


def _joined(function: Any, x: Tensor) -> Tensor:
    return x.sum(-1) if depends(x) else function(x)


PARTS: dict[Any, Rule] = {
    torch.view_as_real: _both_parts,
    **dict.fromkeys((torch.imag, Tensor.imag.__get__, torch.angle, Tensor.angle), _either_part),  # type: ignore[attr-defined]
    torch.view_as_complex: _joined,
}
