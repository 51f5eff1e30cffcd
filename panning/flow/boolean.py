"""Boolean reachability: every value is 0 (no unmasked path from the input arrives) or positive; gradients likewise from
the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panning.flow import functions
from panning.flow.factors import is_given, presence, scaled_to_one
from panning.flow.following import Rule
from panning.flow.linear import rules, without_gate
from panning.flow.pools import AVERAGE_POOLS

#: Scale computed weights by 2^40, so that a mean over many of them still exceeds the 0.5 threshold in backward.
LOUD = 2.0**40


class _Boolean(torch.autograd.Function):
    """1 where above a threshold, else 0; the same for the gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_above: float, backward_above: float) -> Tensor:
        ctx.backward_above = backward_above
        return (x > forward_above).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (grads[0] > ctx.backward_above).to(grads[0].dtype), None, None


def _product(function: Any, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    # Between the two gates there are only sums of products of 0 and 1, which are integers: one half parts 0 from the
    # rest whatever the rounding of the convolution algorithm.
    x = _Boolean.apply(x, 0.0, 0.5)
    weight = weight if is_given(weight) else _Boolean.apply(weight * LOUD, 0.0, 0.5)
    result: Tensor = _Boolean.apply(function(x, weight, None, *args, **kwargs), 0.5, 0.0)
    return result


def _open(gate: Tensor, mean: float) -> Tensor:
    reached = _Boolean.apply(gate, 0.0, 0.0)
    return 1.0 + reached - reached.detach()  # always 1, or long products would grow


BOOLEAN: dict[Any, Rule] = {
    **rules(_product, _open, presence, scaled_to_one),
    **dict.fromkeys((*functions.BATCH_NORMS, *functions.CHANNEL_NORMS, *functions.LAST_NORMS), without_gate),
    **AVERAGE_POOLS,
}
