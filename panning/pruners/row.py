"""A row of ``PRUNERS``: what a method before training is, and what its result must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from panning.foundation.errors import MaskError, NonFiniteError
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem


@runtime_checkable
class Pruner(Protocol):
    """A method that prunes before training. A method without rounds ignores ``rounds``.

    A call gives a ``PruneResult`` with exactly ``n_kept_at(density, problem.layout.n_prunable)`` weights and leaves the
    problem as it was. ``panning.testing.PrunerContract`` says what else holds for every method.

    Attributes:
        indices: the rows of ``INDICES`` that the method scores by; they say whether it needs data.
        n_rounds: the method's own number of rounds.
    """

    @property
    def indices(self) -> tuple[str, ...]: ...

    @property
    def n_rounds(self) -> int: ...

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult: ...


@dataclass(frozen=True)
class PrunerRow:
    """A method that prunes before training, in the form of the paper and in that of the authors' code.

    Attributes:
        label: the name that tables show.
        released: the method as its authors' code has it, where the code departs from the paper's text.
        departure: how the code departs, and what ``released`` leaves out; without ``released``, why there is none.
    """

    pruner: Pruner
    label: str
    paper: str
    released: Pruner | None = None
    departure: str = ""

    def name_of(self, method: str | Pruner) -> str:
        """What messages and manifests call the method that was asked for by this row."""
        return method if isinstance(method, str) else self.label

    def in_form(self, released: bool) -> Pruner:
        """The method as its paper has it, or ``released`` where there is such a form."""
        return self.released if released and self.released is not None else self.pruner

    @property
    def needs_data(self) -> bool:
        """Whether the method scores with a loss, on inputs and their targets."""
        return any(INDICES[name].needs_data for name in self.pruner.indices)

    @property
    def second_order(self) -> bool:
        """Whether the method differentiates a gradient."""
        return any(INDICES[name].second_order for name in self.pruner.indices)


def check_weights(broken: str | None) -> None:
    """Raise NonFiniteError if a layer has weights that are NaN or infinite.

    Args:
        broken: the layer's name; None if there is none.
    """
    if broken is not None:
        raise NonFiniteError(
            f"Layer '{broken}' has NaN or infinite weights: no mask was made. Load weights that are finite."
        )


def checked(result: PruneResult, name: str, problem: Problem, n_kept: int) -> PruneResult:
    """The result of a method, which may be anybody's.

    Raises:
        MaskError, NonFiniteError: if it is not what a method must give.
    """
    if not isinstance(result, PruneResult):
        raise MaskError(f"Method '{name}' gave {type(result).__name__}, but must give a panning.pruners.PruneResult.")
    for part, tensor, allowed in (("mask", result.mask, "bool"), ("scores", result.scores, "numbers")):
        fits = isinstance(tensor, Tensor) and (tensor.dtype == torch.bool) == (part == "mask")
        if not fits or tensor.shape != problem.weight.shape:
            given = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise MaskError(
                f"Method '{name}' gave the {part} {given}, but must give {allowed}, flat [{problem.layout.n_prunable}]."
            )
    if (n_given := int(result.mask.sum())) != n_kept:
        raise MaskError(f"Method '{name}' keeps {n_given} weights, but was asked for exactly {n_kept}.")
    if (layer := problem.layout.first_non_finite(result.scores)) is not None:
        raise NonFiniteError(f"Method '{name}' scored layer '{layer}' with NaN or infinite numbers.")
    return result
