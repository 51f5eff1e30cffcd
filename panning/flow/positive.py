"""SynFlow's linearised network: absolute parameters, no biases, norms reduced to their scale, activations the identity.

With a positive input the output is the sum over all paths of the product of |weights| (ReLU is the identity on positive
values; tanh or ReLU6 would saturate).

NOTE Attention and gates are no part of the paper. Softmax and sigmoid are linearised around their middle, with the scale
taken as a constant: mean * (1 + x / max x). So the weights that make them count as those that make the values do, and
no product of attention layers outgrows float64. At uniform attention alone queries and keys would all score 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panning.flow import functions
from panning.flow.factors import presence, scaled_to_one
from panning.flow.following import Rule
from panning.flow.linear import rules, without_gate
from panning.flow.pools import AVERAGE_POOLS
from panning.flow.scoring import without_bias


def _open(gate: Tensor, mean: float) -> Tensor:
    top = gate.detach().amax()
    return mean * (1.0 + gate / top) if top > 0 else mean * (1.0 + gate)


def _scale_channels(x: Tensor, weight: Tensor | None) -> Tensor:
    return x.clone() if weight is None else x * weight.view(1, -1, *[1] * (x.dim() - 2))


def _batch_norm(function: Any, x: Tensor, mean: Any, var: Any, weight: Any = None, *args: Any, **kw: Any) -> Tensor:
    return _scale_channels(x, weight)


def _group_norm(function: Any, x: Tensor, n_groups: int, weight: Any = None, *args: Any, **kw: Any) -> Tensor:
    return _scale_channels(x, weight)


def _layer_norm(function: Any, x: Tensor, shape: Any, weight: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    return x.clone() if weight is None else x * weight


def _closed(gate: Tensor, mean: float) -> Tensor:
    return torch.full_like(gate, mean)


POSITIVE_LINEAR: dict[Any, Rule] = {
    **rules(without_bias, _open, abs, scaled_to_one),
    **dict.fromkeys(functions.BATCH_NORMS, _batch_norm),
    **dict.fromkeys(functions.CHANNEL_NORMS, _group_norm),
    **dict.fromkeys(functions.LAST_NORMS, _layer_norm),
}

#: The same sum over paths with every factor but the weights left out; gates let everything pass, and a product of two
#: activations is as long as its first: a path needs at least that.
SHORTEST: dict[Any, Rule] = {
    **rules(without_bias, _closed, presence, lambda x: scaled_to_one(x.detach())),
    **dict.fromkeys((*functions.BATCH_NORMS, *functions.CHANNEL_NORMS, *functions.LAST_NORMS), without_gate),
    **AVERAGE_POOLS,
}
