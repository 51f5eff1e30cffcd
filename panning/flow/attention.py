"""``F.multi_head_attention_forward`` in its parts, so that a flow's rules reach the layers inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from panning.flow.following import Rule

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_forward(
    linear: Rule, attend: Attend, query: Tensor, key: Tensor, value: Tensor, embed_dim: int, n_heads: int,
    in_proj_weight: Tensor | None, in_proj_bias: Any, bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Any, training: bool = True, key_padding_mask: Any = None,
    need_weights: bool = True, attn_mask: Any = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    *rest: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """The output of multi-head attention on [length, batch, features] (or without the batch), without masks and biases.

    Args:
        linear: replaces F.linear.
        attend: from queries, keys and values [batch, heads, length, features a head] to the mixed values.
    """
    batched = query.dim() == 3
    if not batched:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
    weights: tuple[Tensor | None, ...]
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None  # one of the two forms is always there
        weights = in_proj_weight.chunk(3)
    heads = []
    for x, weight in zip((query, key, value), weights, strict=True):
        projected = linear(F.linear, x, weight)
        length, n_batch, features = projected.shape
        heads.append(projected.reshape(length, n_batch, n_heads, features // n_heads).permute(1, 2, 0, 3))
    mixed = attend(*heads).permute(2, 0, 1, 3).flatten(2)
    output: Tensor = linear(F.linear, mixed, out_proj_weight)
    return output if batched else output.squeeze(1)
