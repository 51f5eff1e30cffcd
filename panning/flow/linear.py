"""What the positive and the boolean flow share: the network as sums and products of paths from the input.

- A *constant* (what does not depend on the input or on a gate: biases by another name, class tokens, position embeddings,
  attention masks) adds nothing. A tensor is one if it requires no gradient; the flow's input and gates do.
- A *gate* (the result of a sigmoid or softmax) never cuts what it multiplies: g * x becomes open(g) * x. Where a sigmoid is
  an activation and multiplies nothing, it is the identity like the others.
- An embedding is a linear layer on one-hot tokens, all of them present.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from panning.flow import functions as of
from panning.flow.attention import attention_forward
from panning.flow.forward import Rule

Open = Callable[[Tensor, float], Tensor]  # (gate, its mean: 1/2 for a sigmoid, 1/n for a softmax) -> a positive factor


def identity(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``x`` as another tensor: code that goes on to write into the result must not change what it came from."""
    return _as_gate(x.clone(), _gate_mean(x))


def depends(x: Any) -> bool:
    """Whether ``x`` depends on the input or a gate."""
    return isinstance(x, Tensor) and x.requires_grad


def add(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    """a + b, also for a difference; constants add nothing."""
    if not depends(a) and not depends(b):
        return function(a, b, *args, **kwargs)
    first, second = (x if depends(x) else torch.zeros_like(x) if isinstance(x, Tensor) else 0.0 for x in (a, b))
    return first + second


def _add_in_place(function: Any, a: Tensor, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    if not depends(a):
        if not depends(b):
            return function(a, b, *args, **kwargs)
        a.zero_()
    return a.add_(b) if depends(b) else a


def _join(function: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    if any(depends(x) for x in tensors):
        tensors = [x if depends(x) else torch.zeros_like(x) for x in tensors]
    return function(tensors, *args, **kwargs)


def _keep_gate(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _as_gate(function(x, *args, **kwargs), _gate_mean(x))


def _sigmoid(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _as_gate(x.clone(), 0.5)


def _softmax(function: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    n = x.shape[-1 if dim is None else dim]
    return _as_gate(x.clamp(min=0.0), 1.0 / n)  # masked places are -inf


def _as_gate(x: Any, mean: float | None) -> Any:
    if mean is not None and isinstance(x, Tensor):
        x._panning_gate_mean = mean  # type: ignore[attr-defined]
    return x


def _gate_mean(x: Any) -> float | None:
    return getattr(x, "_panning_gate_mean", None)


def product_of_gates(open_gate: Open) -> Rule:
    """Products in which gates are opened."""

    def rule(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        means = _gate_mean(a), _gate_mean(b)
        if means[0] is not None and depends(b):
            a = open_gate(a, means[0])
            return a * b if function in of.PRODUCTS else function(a, b, *args, **kwargs)
        if means[1] is not None and depends(a):
            b = open_gate(b, means[1])
        return function(a, b, *args, **kwargs)

    return rule


def glu(open_gate: Open) -> Rule:
    """F.glu: the first half times a sigmoid of the second."""

    def rule(function: Any, x: Tensor, dim: int = -1) -> Tensor:
        value, gate = x.chunk(2, dim)
        return value * open_gate(gate, 0.5)

    return rule


def rules(linear: Rule, open_gate: Open) -> dict[Any, Rule]:
    """The rules of a flow.

    Args:
        linear: replaces linear layers and convolutions.
        open_gate: what a gate becomes where it multiplies.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = open_gate(q @ k.transpose(-2, -1), 1.0 / k.shape[-2])
        return weights @ v

    def scaled_dot_product_attention(
        function: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if k.shape[-3] != q.shape[-3]:  # grouped queries
            k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
        return attend(q, k, v)

    def multi_head(function: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return attention_forward(linear, attend, *args, **kwargs), None

    def embedding(function: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = x if x.is_floating_point() else torch.ones_like(x, dtype=weight.dtype)
        every_token = torch.ones(1, weight.shape[0], dtype=weight.dtype, device=weight.device)
        row: Tensor = linear(torch.nn.functional.linear, every_token.requires_grad_(weight.requires_grad), weight.t())
        return tokens.unsqueeze(-1) * row[0]

    product = product_of_gates(open_gate)
    F = torch.nn.functional
    return {
        **dict.fromkeys((*of.LINEAR, *of.CONVOLUTIONS), linear),
        **dict.fromkeys((*of.UNSCALED_NORMS, *of.DROPOUTS, *of.ACTIVATIONS, *of.TO_INTEGERS), identity),
        **dict.fromkeys(of.ADDITIONS, add),
        **dict.fromkeys(of.ADDITIONS_IN_PLACE, _add_in_place),
        **dict.fromkeys(of.CONCATENATIONS, _join),
        **dict.fromkeys((*of.PRODUCTS, *of.MATRIX_PRODUCTS), product),
        **dict.fromkeys(of.RESHAPES, _keep_gate),
        **dict.fromkeys(of.SIGMOIDS, _sigmoid),
        **dict.fromkeys(of.SOFTMAXES, _softmax),
        F.glu: glu(open_gate),
        F.embedding: embedding,
        F.scaled_dot_product_attention: scaled_dot_product_attention,
        F.multi_head_attention_forward: multi_head,
    }


def _average_like(pool: Any) -> Rule:
    def rule(function: Any, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Tensor:  # fmt: skip
        # Max-pooling hands the gradient to one tap of a tie only; the average reaches every tap that can win.
        if any(d != 1 for d in (dilation if isinstance(dilation, tuple | list) else (dilation,))):
            return function(x, kernel_size, stride or None, padding, dilation, ceil_mode)
        return pool(x, kernel_size, stride or None, padding, ceil_mode)

    return rule


def _adaptive_average_like(pool: Any) -> Rule:
    return lambda function, x, output_size, return_indices=False: pool(x, output_size)


#: Max-pooling as average-pooling.
AVERAGE_POOLS: dict[Any, Rule] = {
    **{function: _average_like(pool) for function, pool in of.MAX_POOLS.items()},
    **{function: _adaptive_average_like(pool) for function, pool in of.ADAPTIVE_MAX_POOLS.items()},
}
