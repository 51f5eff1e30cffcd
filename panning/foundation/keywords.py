"""Arguments that a call does not take: a sentence with the right word, which is a TypeError still."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from panning.foundation.errors import ArgumentError
from panning.foundation.registry import unknown_name_message

P = ParamSpec("P")
R = TypeVar("R")

#: What other libraries call the fraction of weights that goes or stays, and rounds.
OF_DENSITY = ("sparsity", "sparsities", "amount", "ratio", "pruning_ratio", "keep_ratio", "compression")
OF_ROUNDS = ("rounds", "num_rounds", "iterations", "n_iterations", "num_iterations")
#: What another call does.
ELSEWHERE = {"start": "panning.reinitialise(model, masks, 'gain') starts the kept weights."}


def keywords(
    density: str, rounds: str, rest: Callable[..., object] | None = None, elsewhere: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:  # fmt: skip
    """A decorator of a public call, whose unknown keywords, and what is given by place, get a sentence.

    Args:
        density: the call's argument that says how many weights stay.
        rounds: what the call takes in place of a number of rounds.
        rest: what gets the call's ``**settings``; None where the call checks them itself.
        name: of the call, where it is no function of ``panning``.
        elsewhere: arguments that are sought here and stand elsewhere -> what to do in their place.

    Examples:
        >>> from panning.foundation.errors import ArgumentError
        >>> from panning.foundation.keywords import keywords
        >>> @keywords("density", "n_rounds")
        ... def prune(*, density, n_rounds=1): ...
        >>> try:
        ...     prune(sparsity=0.9)
        ... except ArgumentError as error:
        ...     print(error)
        panning.prune takes no sparsity. Pass density: 0.1 keeps 10 % of the weights (density = 1 - sparsity).
    """

    def around(call: Callable[P, R]) -> Callable[P, R]:
        name_of_call = name or f"panning.{call.__name__}"
        taken = dict(inspect.signature(call).parameters)
        is_method = taken.pop("self", None) is not None
        by_place = [name for name, parameter in taken.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        open_ended = [name for name, parameter in taken.items() if parameter.kind is parameter.VAR_KEYWORD]
        for rest_name in open_ended:
            del taken[rest_name]
        if rest is not None:
            taken |= inspect.signature(rest).parameters

        @functools.wraps(call)
        def checked(*args: P.args, **given: P.kwargs) -> R:
            if len(args) - is_method > len(by_place):
                raise ArgumentError(
                    f"{name_of_call} takes {', '.join(by_place)} by place and all else by name, as {density}=...; "
                    "inputs and targets of a batch are one pair, (inputs, targets)."
                )
            for given_name in given:
                if given_name not in taken and (message := said(given_name)):
                    raise ArgumentError(message)
            return call(*args, **given)

        def said(argument: str) -> str:
            if elsewhere is not None and argument in elsewhere:
                hint = elsewhere[argument]
            elif argument in OF_DENSITY:
                hint = f"Pass {density}: 0.1 keeps 10 % of the weights (density = 1 - sparsity)."
            elif argument in OF_ROUNDS:
                hint = f"Pass {rounds}."
            elif open_ended and rest is None:
                return ""
            elif argument in ELSEWHERE:
                hint = ELSEWHERE[argument]
            else:
                return f"{name_of_call}: {unknown_name_message('argument', argument, taken)}"
            return f"{name_of_call} takes no {argument}. {hint}"

        return checked

    return around
