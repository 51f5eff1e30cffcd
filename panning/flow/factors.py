"""What multiplies: which factors cut what they multiply, and which are opened.

A tensor that is not 0 where its own input is 0 carries a mark. As a summand it adds nothing more than others; as a factor
it never cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panning.foundation.torch_private import viewed

Open = Callable[[Tensor, float], Tensor]  # (gate, its mean) -> a positive factor
Multiply = Callable[[Callable[[Any, Any], Any], Any, Any], Any]  # (bilinear function, a, b) -> the product in a flow


@dataclass(frozen=True)
class Gate:
    """The mark.

    Attributes:
        mean: around which the factor opens: 1/2 for a sigmoid, 1/n for a softmax, 1 where a number was added.
        followed: whether the weights that lead to the factor count; False for a mere scale.
    """

    mean: float = 1.0
    followed: bool = True


#: A divisor, an inverse root or a condition.
SCALE = Gate(followed=False)
#: Whole numbers that are inputs of the network: what is looked up by them depends on the input.
TOKENS = Gate(mean=0.0, followed=False)


def depends(x: Any) -> bool:
    """Whether ``x`` depends on the input or a gate."""
    return isinstance(x, Tensor) and x.requires_grad


def gate_of(x: Any) -> Gate | None:
    return getattr(x, "_panning_gate", None)


def without_constant(x: Any) -> Any:
    """``x``, or zeros where it is a constant, which adds nothing."""
    return x if depends(x) else torch.zeros_like(x) if isinstance(x, Tensor) else 0.0


def marked(x: Any, gate: Gate | None) -> Any:
    """``x`` with this mark, or without any mark; a tensor of the user's that needs no mark is left alone."""
    if isinstance(x, Tensor) and gate != gate_of(x):
        x._panning_gate = gate  # type: ignore[attr-defined]
    return x


def is_given(x: Tensor) -> bool:
    """Whether ``x`` is a parameter, a mask or a constant, and not computed from such."""
    of = viewed(x)
    return x.is_leaf or (of is not None and of.is_leaf)


def is_weight(x: Any) -> bool:
    """Whether ``x`` depends on parameters alone: a parameter that is followed, or what is computed of such."""
    return depends(x) and getattr(x, "_panning_weight", False)


def as_weight(x: Any) -> Any:
    """``x``, known as a weight."""
    if depends(x):
        x._panning_weight = True
    return x


def in_place_of(made: Tensor, x: Tensor) -> Tensor:
    """``made`` with all that is known of ``x``, also where it is to depend on something only later."""
    made._panning_weight = is_weight(x)  # type: ignore[attr-defined]
    return marked(made, gate_of(x))


def of_weights(args: Any) -> bool:
    """Whether of all arguments, in lists too, only weights depend on anything; what tokens look up comes from the input."""
    given = [x for arg in args for x in (arg if isinstance(arg, tuple | list) else (arg,))]
    found = [x for x in given if depends(x)]
    return bool(found) and all(is_weight(x) for x in found) and not any(gate_of(x) == TOKENS for x in given)


def is_index(x: Any) -> bool:
    """Whether ``x`` is a tensor of whole numbers that something can be looked up by."""
    return isinstance(x, Tensor) and x.dtype in (torch.int64, torch.int32)


def depending(x: Tensor) -> Tensor:
    """``x``, which depends on nothing yet, as what depends on the input: looked up by tokens."""
    return x * torch.ones((), dtype=x.dtype, device=x.device, requires_grad=True)


def gate_of_sum(a: Any, b: Any) -> Gate | None:
    """The mark of a + b: the mark of a summand, or of the number that opens the other summand, as in 1 + scale(x).

    A constant tensor opens nothing, though it might: it is most often a bias, and biases keep nothing alive.
    """
    gates = [gate for x in (a, b) if depends(x) and (gate := gate_of(x)) is not None]
    if depends(a) and depends(b):
        return next((gate for gate in gates if gate.followed), Gate() if gates else None)
    return gates[0] if gates else Gate() if any(_is_number(x) and x != 0 for x in (a, b)) else None


def _is_number(x: Any) -> bool:
    return x.dim() == 0 and not depends(x) if isinstance(x, Tensor) else isinstance(x, int | float)


def presence(x: Any) -> Any:
    """1 where a constant is not 0."""
    return (x != 0).to(x.dtype) if isinstance(x, Tensor) else float(x != 0)


def scaled_to_one(x: Tensor) -> Tensor:
    """``x`` over its largest entry, which is taken as a constant."""
    top = x.detach().amax()
    return x / top if top > 0 else x


def multiplication(open_gate: Open, magnitude: Callable[[Any], Any], second: Callable[[Tensor], Tensor]) -> Multiply:
    """Products in which gates are opened.

    Args:
        magnitude: what a constant factor becomes.
        second: what the second of two activations becomes.
    """

    def multiply(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        gate_a, gate_b = gate_of(a), gate_of(b)
        if is_weight(a) and is_weight(b):
            return function(a, b)
        if not depends(a) or not depends(b):
            gate, constant = (gate_a, b) if depends(a) else (gate_b, a)
            constant = torch.ones_like(constant) if gate_of(constant) == SCALE else magnitude(constant)
            result = function(a, constant) if depends(a) else function(constant, b)
            # A mask of 0 and 1 shuts the gate that it multiplies.
            return marked(result, gate if gate and bool(torch.as_tensor(constant != 0).all()) else None)
        if gate_a == SCALE:
            return marked(function(torch.ones_like(a), b), gate_b)
        if gate_b == SCALE:
            return marked(function(a, torch.ones_like(b)), gate_a)
        if gate_a and gate_b:  # open in turn, so that the product is a gate itself and 0 where both are
            either = function(open_gate(a, gate_a.mean), b) + function(a, open_gate(b, gate_b.mean))
            return marked(either, Gate(gate_a.mean * gate_b.mean))
        if gate_a:
            return function(open_gate(a, gate_a.mean), b)
        return function(a, open_gate(b, gate_b.mean) if gate_b else second(b))

    return multiply
