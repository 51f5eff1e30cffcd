"""What the positive and the boolean flow share: the network as sums and products of paths from the input.

- A *constant* (what does not depend on the input or on a gate: biases by another name, class tokens, position embeddings,
  attention masks) adds nothing. A tensor is a constant if it requires no gradient; the flow's input and gates do.
- A factor that is constant counts by its magnitude, and by being 0 or not where only that matters; a divisor, like the
  inverse root of a mean square or a condition on what flows (x > 0), is a scale that cuts nothing.
- A product of two activations keeps its factors; the second is divided by its largest entry, taken as a constant, so that
  products of products do not outgrow the numbers.
- A *gate* (the result of a sigmoid, softmax or exponential, or a sum with a number, as in 1 + s or 1 - s) never cuts what
  it multiplies: g * x becomes open(g) * x. Where a sigmoid is an activation and multiplies nothing, it is the identity
  like the others, and the number adds nothing.
- An embedding is a linear layer on one-hot tokens, all of them present.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow import functions
from panning.flow.attention import attention_forward
from panning.flow.complex_parts import PARTS
from panning.flow.conditions import CONDITIONS
from panning.flow.factors import (
    SCALE,
    TOKENS,
    Gate,
    Multiply,
    Open,
    gate_of,
    gate_of_sum,
    is_given,
    is_weight,
    marked,
    multiplication,
    without_constant,
)  # fmt: skip
from panning.flow.factors import depends as depends  # a name of this module too
from panning.flow.following import Rule
from panning.flow.hidden import ALONG_PATHS
from panning.flow.packed import unpacked_rules
from panning.flow.recurrent import recurrent_rules


def identity(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``x`` as another tensor: code that goes on to write into the result must not change what it came from."""
    return marked(x.clone(), gate_of(x)) if depends(x) else function(x, *args, **kwargs)


def without_gate(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The identity, for norms and logarithms: they take away what keeps a gate from being 0."""
    return x.clone() if depends(x) else function(x, *args, **kwargs)


def _gate(mean: float) -> Rule:
    def rule(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return marked(x.clone(), Gate(mean)) if depends(x) else function(x, *args, **kwargs)

    return rule


def _softmax(function: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    if not depends(x):
        return function(x, dim, *args, **kwargs)
    return marked(x.clamp(min=0.0), Gate(1.0 / x.shape[-1 if dim is None else dim]))  # masked places are -inf


def add(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    """a + b, also for a difference; constants add nothing."""
    if not depends(a) and not depends(b):
        return function(a, b, *args, **kwargs)
    return marked(without_constant(a) + without_constant(b), gate_of_sum(a, b))


def _add_in_place(function: Any, a: Tensor, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    if not depends(a) and not depends(b):
        return function(a, b, *args, **kwargs)
    gate = gate_of_sum(a, b)
    if not depends(a):
        a.zero_()
    return marked(a.add_(b) if depends(b) else a, gate)


def _join(function: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    if any(depends(x) for x in tensors):
        tensors = [without_constant(x) for x in tensors]
    return function(tensors, *args, **kwargs)


def _keep_gate(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    result = function(x, *args, **kwargs)
    return result if gate_of(x) is None else marked(result, gate_of(x))


def _compared(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The sum of what a loss compares: to a flow it is one more output, wherever its minimum lies."""
    outputs = [x for x in args[: functions.LOSSES[function]] if depends(x)] or [x for x in args if depends(x)]
    if not outputs:
        return function(*args, **kwargs)
    return torch.stack([x.sum() for x in outputs]).sum()


def _power(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    if not depends(a) and not depends(b):
        return function(a, b, *args, **kwargs)
    base, exponent = (b, a) if function is Tensor.__rpow__ else (a, b)
    if not depends(base):
        return marked(exponent.clone(), Gate())  # like exp
    if depends(exponent):
        return base + exponent
    if function is Tensor.pow_:
        return base
    negative = isinstance(exponent, int | float) and exponent < 0
    return marked(base.clone(), SCALE if negative else gate_of(base))


def _divide(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    if not depends(a) and not depends(b):
        return function(a, b, *args, **kwargs)
    if function is Tensor.div_:
        return a
    top, bottom = (b, a) if function is Tensor.__rdiv__ else (a, b)
    kept, other, gate = (top, bottom, gate_of(top)) if depends(top) else (bottom, top, SCALE)
    return marked(kept * torch.ones_like(other) if isinstance(other, Tensor) else kept.clone(), gate)


def _inverse(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return marked(x.clone(), SCALE) if depends(x) else function(x, *args, **kwargs)


def _deviation(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The mean, in the shape of the deviation; x.std(unbiased), x.std(dim, unbiased, keepdim)."""
    if not depends(x):
        return function(x, *args, **kwargs)
    given = dict(zip(("dim", "unbiased", "keepdim"), args, strict=False)) | kwargs
    dims = given.get("dim")
    return x.mean() if dims is None or isinstance(dims, bool) else x.mean(dims, keepdim=given.get("keepdim", False))


def _cast(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return x if depends(x) else _keep_gate(function, x, *args, **kwargs)


def _to(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    moved = function(x, *args, **kwargs)
    return marked(x.to(moved.device) if depends(x) else moved, gate_of(x))  # a flow has a dtype of its own


def _in_one_dtype(function: Any) -> Any:
    def in_one_dtype(a: Tensor, b: Tensor) -> Any:
        dtype = b.dtype if depends(b) else a.dtype
        return function(a.to(dtype), b.to(dtype))

    return in_one_dtype


def _products(multiply: Multiply, layer: Rule) -> dict[Any, Rule]:
    """Rules for everything that multiplies two tensors. A product with a weight is a linear layer, whoever writes it."""

    def product(function: Any, a: Any, b: Any) -> Any:
        if is_weight(a) == is_weight(b):
            return multiply(_in_one_dtype(function), a, b)
        if is_weight(b):
            return layer(lambda x, weight, *_: function(x, weight), a, b)
        return layer(lambda x, weight, *_: function(weight, x), b, a)

    def elementwise(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        if not depends(a) and not depends(b):
            return function(a, b, *args, **kwargs)
        if function is not Tensor.mul_:
            return multiply(operator.mul, a, b)
        product = multiply(operator.mul, marked(a.clone(), gate_of(a)), b)  # its gradient needs a as it was
        return marked(a.copy_(product), gate_of(product))

    def matrix(function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        if not depends(a) and not depends(b):
            return function(a, b, *args, **kwargs)
        return product(function, a, b)

    def einsum(function: Any, equation: str, *operands: Any) -> Any:
        operands = tuple(operands[0]) if isinstance(operands[0], tuple | list) else operands
        if len(operands) == 2 and any(depends(x) for x in operands):
            return product(lambda a, b: function(equation, a, b), *operands)
        return function(equation, *operands)

    def fused(function: Any, x: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(depends(y) for y in (x, a, b)):
            return function(x, a, b, *args, **kwargs)
        return add(torch.add, x, matrix(functions.FUSED[function], a, b))

    def divided(function: Any, x: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        return add(torch.add, x, _divide(torch.div, a, b))

    def lerp(function: Any, a: Any, b: Any, weight: Any) -> Any:
        both = add(torch.add, a, b)
        return multiply(operator.mul, both, marked(weight.clone(), Gate())) if depends(weight) else both

    return {
        **dict.fromkeys(functions.PRODUCTS, elementwise),
        **dict.fromkeys(functions.MATRIX_PRODUCTS, matrix),
        **dict.fromkeys(functions.FUSED, fused),
        **dict.fromkeys((torch.addcdiv, Tensor.addcdiv), divided),
        **dict.fromkeys((torch.lerp, Tensor.lerp), lerp),
        torch.einsum: einsum,
    }


def glu(open_gate: Open) -> Rule:
    """F.glu: the first half times a sigmoid of the second."""

    def rule(function: Any, x: Tensor, dim: int = -1) -> Tensor:
        value, gate = x.chunk(2, dim)
        return value * open_gate(gate, 0.5)

    return rule


def _layer(linear: Rule, magnitude: Callable[[Any], Any]) -> Rule:
    """The rule of a linear layer, whose weight may be a constant."""

    def layer(function: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = weight if depends(weight) else magnitude(weight).to(x.dtype)
        return linear(function, x.to(weight.dtype), weight, *args, **kwargs)

    return layer


def _layers(layer: Rule, open_gate: Open, multiply: Multiply) -> dict[Any, Rule]:
    """Rules for everything with a weight of its own, and for attention."""

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
        follows = weight.requires_grad or gate_of(x) == TOKENS
        row: Tensor = layer(F.linear, every_token.requires_grad_(follows), weight.t())
        return tokens.unsqueeze(-1) * row[0]

    def look_up(function: Any, x: Tensor, index: Any) -> Any:
        if gate_of(index) == TOKENS and x.dim() == 2 and is_given(x):
            return embedding(F.embedding, index, x)
        return _keep_gate(function, x, index)

    def bilinear(function: Any, a: Tensor, b: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not depends(a) and not depends(b):
            return function(a, b, weight, *args, **kwargs)
        pairs = multiply(operator.mul, a.unsqueeze(-1), b.unsqueeze(-2))
        return layer(F.linear, pairs.flatten(-2), weight.flatten(1))

    return {
        **dict.fromkeys((*functions.LINEAR, *functions.CONVOLUTIONS), layer),
        F.embedding: embedding,
        Tensor.__getitem__: look_up,
        **dict.fromkeys((F.bilinear, torch.bilinear), bilinear),
        F.scaled_dot_product_attention: scaled_dot_product_attention,
        F.multi_head_attention_forward: multi_head,
        **recurrent_rules(layer, open_gate),
    }


#: The rules that are the same in every flow.
COMMON_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (*functions.UNSCALED_NORMS, *functions.DROPOUTS, *functions.ACTIVATIONS, *functions.TO_INTEGERS), identity
    ),
    **dict.fromkeys((*functions.ADDITIONS, *functions.EXTREMA_OF_TWO, torch.complex, torch.polar), add),
    **PARTS,
    **dict.fromkeys(functions.ADDITIONS_IN_PLACE, _add_in_place),
    **dict.fromkeys(functions.CONCATENATIONS, _join),
    **dict.fromkeys(functions.RESHAPES, _keep_gate),
    **dict.fromkeys(functions.LOSSES, _compared),
    **dict.fromkeys((*functions.DIVISIONS, Tensor.__rdiv__), _divide),
    **dict.fromkeys(functions.INVERSES, _inverse),
    **dict.fromkeys(functions.POWERS, _power),
    **CONDITIONS,
    **dict.fromkeys(functions.DEVIATIONS, _deviation),
    **dict.fromkeys(functions.CASTS, _cast),
    Tensor.to: _to,
    **dict.fromkeys(functions.SIGMOIDS, _gate(0.5)),
    **dict.fromkeys(functions.POSITIVE_AT_ZERO, _gate(1.0)),
    **dict.fromkeys(functions.LOGARITHMS, without_gate),
    **dict.fromkeys(functions.SOFTMAXES, _softmax),
    **ALONG_PATHS,
}


def rules(
    linear: Rule,
    open_gate: Open,
    magnitude: Callable[[Any], Any],
    second: Callable[[Tensor], Tensor],
) -> dict[Any, Rule]:
    """The rules of a flow.

    Args:
        linear: replaces linear layers and convolutions, whose weight it gets in the input's dtype.
        open_gate: what a gate becomes where it multiplies.
        magnitude: what a constant factor becomes, and the weight of a layer that is constant.
        second: what the second of two activations becomes in their product.
    """
    multiply, layer = multiplication(open_gate, magnitude, second), _layer(linear, magnitude)
    found = {
        **COMMON_RULES,
        **_products(multiply, layer),
        **_layers(layer, open_gate, multiply),
        F.glu: glu(open_gate),
    }
    return {**found, **unpacked_rules(found)}
