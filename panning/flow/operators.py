"""Operators called by their own names (``torch.ops.NAMESPACE.NAME``) where paths are followed.

Torch's own (``aten``) have the rule of the function of the same name. What a user or another library has registered has
code that nobody sees: what acts element by element is an activation, what is linear in each argument is a layer or a
product and runs as it is, all else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow.factors import depends
from panning.flow.probes import is_multilinear, value_at_zero
from panning.foundation.errors import ModelError
from panning.foundation.torch_private import OPERATORS

#: Whose operators run as they are where no rule knows them, like torch's functions.
KNOWN = ("aten", "prims", "prim", "torchvision", "higher_order")
#: What takes its arguments in another order than the function of its name.
OTHERWISE = ("batch_norm", "instance_norm", "embedding")
#: (operator, its arguments in words) -> the value at 0 of an activation, or whether it is linear in each argument.
_told: dict[Any, float | bool] = {}


def is_operator(function: Any) -> bool:
    return isinstance(function, OPERATORS)


def twin(operator: Any, rules: Mapping[Any, Any]) -> Any:
    """What has a rule: the operator without its overload, or the torch function of its name; else the operator itself."""
    name = operator.__name__.partition(".")[0]
    if (packet := getattr(operator, "overloadpacket", None)) in rules:
        return packet
    if _namespace(operator) == "aten" and name not in OTHERWISE:
        for home in (torch, F, Tensor):
            if (function := getattr(home, name, None)) in rules:
                return function
    return operator


def registered(operator: Callable[..., Any], args: Any, kwargs: dict[str, Any], activation: Callable[..., Any]) -> Any:
    """The result of an operator that no rule knows.

    Raises:
        ModelError: if panning cannot tell what it does to what flows.
    """
    numbers = [i for i, x in enumerate(args) if depends(x)]
    if _namespace(operator) in KNOWN or not (numbers or any(depends(x) for x in kwargs.values())):
        return operator(*args, **kwargs)
    key = (operator, *(tuple(x.shape) if isinstance(x, Tensor) else repr(x) for x in (*args, *kwargs.items())))
    if key not in _told:
        _told[key] = _tell(operator, args, kwargs, numbers)
    told = _told[key]
    if told is True:
        return operator(*args, **kwargs)
    if told is False:
        raise ModelError(
            f"The operator '{operator}' is registered by code that panning cannot look into, and acts neither element by "
            "element nor linearly: no path can be followed through it. Use torch functions in its place while masks are "
            "found."
        )
    return activation(operator, args[numbers[0]], told)


def _tell(operator: Callable[..., Any], args: Any, kwargs: dict[str, Any], numbers: list[int]) -> float | bool:
    args = [
        x.detach().float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args
    ]  # kernels take these
    with torch.no_grad():
        if len(numbers) == 1:
            i = numbers[0]
            found = value_at_zero(lambda x: operator(*args[:i], x, *args[i + 1 :], **kwargs), args[i])
            if found is not None:
                return found
        plain = not any(depends(x) for x in kwargs.values())
        return plain and is_multilinear(lambda *given: operator(*given, **kwargs), args, numbers)


def _namespace(operator: Any) -> str:
    return operator.__module__.rpartition(".")[2]
