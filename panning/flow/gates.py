"""Gates of activations: which units a batch opens, recorded in a pass of real values and put in place of the activations in
a flow."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from panning.flow.factors import depends, gate_of, marked
from panning.flow.following import Rule
from panning.flow.functions import CUTTING
from panning.foundation.errors import ModelError


def recording_gates(gates: list[Tensor]) -> dict[Any, Rule]:
    """Rules that let every activation of ``CUTTING`` run, and append where it is not 0."""

    def rule(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = function(x, *args, **kwargs)
        gates.append(result.detach() != 0)
        return result

    return dict.fromkeys(CUTTING, rule)


def replaying_gates(gates: list[Tensor]) -> dict[Any, Rule]:
    """Rules of a flow in which every activation of ``CUTTING`` multiplies with its gate, in the order of the calls."""
    rest = iter(gates)

    def rule(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gate = next(rest, None)
        if gate is None or gate.shape != x.shape:
            raise ModelError(
                "The forward pass of this network calls other activations when its values are others, so that no unit can "
                "be told to be open or shut. Take a method that needs no gates (synflow_l2)."
            )
        return marked(x * gate.to(x.dtype), gate_of(x)) if depends(x) else function(x, *args, **kwargs)

    return dict.fromkeys(CUTTING, rule)
