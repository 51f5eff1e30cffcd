"""What the positive and the boolean flow share: the network as sums and products of paths from the input.

- A *constant* (what does not depend on the input or on a gate: biases by another name, class tokens, position embeddings,
  attention masks) adds nothing. A tensor is one if it requires no gradient; the flow's input and gates do.
- A factor that is constant counts by its magnitude, and by being 0 or not where only that matters; a divisor, like the
  inverse root of a mean square, is a scale that cuts nothing.
- A product of two activations keeps its factors; the second is divided by its largest entry, taken as a constant, so that
  products of products do not outgrow the numbers.
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
    if not depends(x):
        return function(x, *args, **kwargs)
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
    if not depends(x):
        return function(x, *args, **kwargs)
    return _as_gate(x.clone(), 0.5)


def _softmax(function: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    if not depends(x):
        return function(x, dim, *args, **kwargs)
    n = x.shape[-1 if dim is None else dim]
    return _as_gate(x.clamp(min=0.0), 1.0 / n)  # masked places are -inf


def _as_gate(x: Any, mean: float | None) -> Any:
    if mean is not None and isinstance(x, Tensor):
        x._panning_gate_mean = mean  # type: ignore[attr-defined]
    return x


def _gate_mean(x: Any) -> float | None:
    return getattr(x, "_panning_gate_mean", None)


#: In place of a gate's mean: a factor that only scales.
SCALE = -1.0


def scaled_to_one(x: Tensor) -> Tensor:
    """``x`` over its largest entry, which is taken as a constant."""
    top = x.detach().amax()
    return x / top if top > 0 else x


def products(open_gate: Open, magnitude: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Rule:
    """Products in which gates are opened.

    Args:
        magnitude: what a constant factor becomes.
        second: what the second of two activations becomes.
    """

    def rule(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        elementwise = function in of.PRODUCTS
        if not depends(a) and not depends(b):
            return function(a, b, *args, **kwargs)
        if depends(a) and depends(b):
            means = _gate_mean(a), _gate_mean(b)
            if means[0] is not None:
                a = _opened(a, means[0], open_gate)
            elif means[1] is not None:
                b = _opened(b, means[1], open_gate)
            else:
                b = second(b)
        elif elementwise:
            a, b = (x if depends(x) else _constant_factor(x, magnitude) for x in (a, b))
        else:
            a, b = (x if depends(x) else magnitude(x) for x in (a, b))
        if not elementwise:
            a = a.to(b.dtype) if depends(b) else a
            b = b.to(a.dtype)
            return function(a, b, *args, **kwargs)
        if function is Tensor.mul_:  # what the product's gradient needs must not be written over
            return a.copy_(a.clone() * b)
        return a * b

    return rule


def _opened(gate: Tensor, mean: float, open_gate: Open) -> Tensor:
    return torch.ones_like(gate) if mean == SCALE else open_gate(gate, mean)


def _constant_factor(x: Any, magnitude: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return magnitude(x)
    return abs(x) or 0.0


def _divide(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    if not depends(a) and not depends(b):
        return function(a, b, *args, **kwargs)
    if function is Tensor.div_:
        return a
    kept, other = (a, b) if depends(a) else (b, a)
    return kept * torch.ones_like(other) if isinstance(other, Tensor) else kept.clone()


def _inverse_root(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _as_gate(x.clone(), SCALE)


def _deviation(function: Any, x: Tensor, dim: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> Tensor:
    dims = None if dim is None or isinstance(dim, bool) else dim
    return x.mean() if dims is None else x.mean(dims, keepdim=keepdim)


def _cast(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return x if depends(x) else function(x, *args, **kwargs)


def _to(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    moved = function(x, *args, **kwargs)
    return x.to(moved.device) if depends(x) else moved  # a flow has a dtype of its own


def glu(open_gate: Open) -> Rule:
    """F.glu: the first half times a sigmoid of the second."""

    def rule(function: Any, x: Tensor, dim: int = -1) -> Tensor:
        value, gate = x.chunk(2, dim)
        return value * open_gate(gate, 0.5)

    return rule


def rules(
    linear: Rule,
    open_gate: Open,
    magnitude: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor] = scaled_to_one,
) -> dict[Any, Rule]:
    """The rules of a flow.

    Args:
        linear: replaces linear layers and convolutions, whose weight it gets in the input's dtype.
        open_gate: what a gate becomes where it multiplies.
        magnitude: what a constant factor becomes, and the weight of a layer that is constant.
        second: what the second of two activations becomes in their product.
    """

    def layer(function: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = weight if depends(weight) else magnitude(weight).to(x.dtype)
        return linear(function, x.to(weight.dtype), weight, *args, **kwargs)

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
        return attention_forward(layer, attend, *args, **kwargs), None

    def embedding(function: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = x if x.is_floating_point() else torch.ones_like(x, dtype=weight.dtype)
        every_token = torch.ones(1, weight.shape[0], dtype=weight.dtype, device=weight.device)
        row: Tensor = layer(torch.nn.functional.linear, every_token.requires_grad_(weight.requires_grad), weight.t())
        return tokens.unsqueeze(-1) * row[0]

    product = products(open_gate, magnitude, second)

    def einsum(function: Any, equation: str, *operands: Any) -> Any:
        if len(operands) == 2 and any(depends(x) for x in operands):
            return product(lambda a, b: function(equation, a, b), *operands)
        return function(equation, *operands)

    F = torch.nn.functional
    return {
        **dict.fromkeys((*of.LINEAR, *of.CONVOLUTIONS), layer),
        **dict.fromkeys((*of.UNSCALED_NORMS, *of.DROPOUTS, *of.ACTIVATIONS, *of.TO_INTEGERS), identity),
        **dict.fromkeys(of.ADDITIONS, add),
        **dict.fromkeys(of.ADDITIONS_IN_PLACE, _add_in_place),
        **dict.fromkeys(of.CONCATENATIONS, _join),
        **dict.fromkeys((*of.PRODUCTS, *of.MATRIX_PRODUCTS), product),
        **dict.fromkeys(of.RESHAPES, _keep_gate),
        **dict.fromkeys((*of.DIVISIONS, Tensor.__rdiv__), _divide),
        **dict.fromkeys(of.INVERSE_ROOTS, _inverse_root),
        **dict.fromkeys(of.DEVIATIONS, _deviation),
        **dict.fromkeys(of.CASTS, _cast),
        Tensor.to: _to,
        **dict.fromkeys(of.SIGMOIDS, _sigmoid),
        **dict.fromkeys(of.SOFTMAXES, _softmax),
        torch.einsum: einsum,
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
