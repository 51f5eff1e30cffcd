"""What a function does whose code nobody sees, told from its values: an activation, a product, or anything else.

A probe draws from a generator of its own, so that a network's random numbers stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

N_PROBES = 4


def value_at_zero(function: Callable[[Tensor], Any], x: Tensor) -> float | None:
    """At 0, the value of what acts element by element, everywhere alike, and is not linear; None for all else.

    A value that is not a positive number counts as 0: an activation adds nothing where its input is 0.
    """
    draws, seen = _Draws(), []

    def value(x: Tensor) -> Tensor:
        y = function(x.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
            raise TypeError("no activation")
        seen.append(y)
        return y

    if not x.numel():
        return None
    try:
        base, order = draws.like(x), torch.randperm(x.numel(), generator=draws.generator).to(x.device)
        y = value(base)
        if not _same(value(base.flatten()[order].view(x.shape)).flatten(), y.flatten()[order]):
            return None
        for _ in range(N_PROBES):
            kept, other = draws.like(x) > 0, draws.like(x)
            if not _same(value(torch.where(kept, base, other))[kept], y[kept]):
                return None
        if _same(y + value(other), value(base + other)) or all(torch.equal(y, each) for each in seen):
            return None
        at_zero = value(torch.zeros_like(x)).mean().item()
    except Exception:  # it takes no other values
        return None
    return at_zero if 0.0 < at_zero < float("inf") else 0.0


def is_multilinear(function: Callable[..., Any], args: Sequence[Any], numbers: Sequence[int]) -> bool:
    """Whether a function is linear in each of these arguments while the others stay: a layer without a bias, a product."""
    draws = _Draws()
    try:
        given = [draws.like(x) if i in numbers else x for i, x in enumerate(args)]
        y = function(*given)
        for i in numbers:
            other = draws.like(args[i])
            sums = [function(*(z if j == i else x for j, x in enumerate(given))) for z in (other, given[i] + other)]
            if not _same(y + sums[0], sums[1]):
                return False
    except Exception:  # it takes no other values, or gives no tensor
        return False
    return True


class _Draws:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def like(self, x: Tensor) -> Tensor:
        return 3.0 * torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
