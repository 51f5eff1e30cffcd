"""One spelling for every call: rules take by position what callers may give by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch.overrides import get_testing_overrides

#: Torch's compiled functions take NumPy's names, too; and the first argument of some has another name if it is a number.
ALIASES = {
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "a": "input",
    "x1": "input",
    "x2": "other",
    "self": "input",
}
FIRST = ("self", "inputs", "data")


def by_position(
    function: Any, rule: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A call's arguments, those that ``rule`` takes by position in their places."""
    if not inspect.isfunction(function):
        kwargs = {ALIASES.get(name, name): value for name, value in kwargs.items()}
    names = _names(function)
    for name in names[len(args) : _n_taken(rule, len(names))]:
        if name not in kwargs:
            break
        args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


@cache
def _names(function: Any) -> tuple[str, ...]:
    """The names of a torch function's arguments, in order."""
    try:
        signature = inspect.signature(get_testing_overrides().get(function, function))
    except ValueError:  # some builtins have no signature
        return ("input",)
    names = tuple(p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD) or ("input",)
    return ("input", *names[1:]) if names[0] in FIRST else names


def _n_taken(rule: Callable[..., Any], n_names: int) -> int:
    """How many arguments of the function a rule takes by position and cannot do without; all where it names none."""
    n_own = 2 if inspect.ismethod(rule) else 1  # the function itself
    n_taken = rule.__code__.co_argcount - len(rule.__defaults__ or ()) - n_own
    return n_taken or n_names
