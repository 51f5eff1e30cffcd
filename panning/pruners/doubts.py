"""What makes a mask worth less than it seems: scores that choose nothing, layers that have lost all their weights, outputs
that no path leads to; choices of a policy that has seen nothing like the network.

A scale that starts at zero (the last BatchNorm of a residual block, ReZero, LayerScale, the second factor of LoRA, a head of
zeros) makes every gradient behind it 0, and with it all scores there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from panning.alive.report import MaskReport
from panning.foundation.wrappers import own_parameters
from panning.masks.layout import told_dense
from panning.pruners.rounds import PruneResult
from panning.scoring.problem import Problem

#: The share of kept weights with one score from which a mask is doubtful.
MANY = 0.1
#: Scales that start below this are named as a reason why layers are empty.
NEARLY_ZERO = 1e-3
#: So many names are shown of a list.
SHOWN = 6
#: Parts of names of parameters that are added, not multiplied, and may well start at zero.
ADDED = ("bias", "beta", "token", "pos")


@dataclass(frozen=True)
class Equals:
    """Kept weights with one score, which others have that are masked.

    Attributes:
        counts: how many of each layer.
    """

    score: float
    counts: Sequence[int]


def doubts_of(problem: Problem, result: PruneResult, *, ranked: bool = True) -> tuple[str, ...]:
    """Sentences about the mask of a pruner's result; none where nothing is to be said.

    Args:
        ranked: whether the mask keeps the best of all weights; one in N:M groups keeps the best of each group.
    """
    layout, mask, found = problem.layout, result.mask, None
    if ranked and (equal := equals(result.scores, mask)) is not None:
        found = Equals(float(result.scores[equal][0]), layout.counts(mask & equal))
    return doubts(problem, layout.counts(mask), found, result.history[-1] if result.history else {})


def doubts(problem: Problem, kept: Sequence[int], equal: Equals | None, last: Mapping[str, Any]) -> tuple[str, ...]:
    """The sentences of ``doubts_of``.

    Args:
        kept: how many weights of each layer are.
        last: the last entry of the history.
    """
    layout, n_kept, doubts = problem.layout, sum(kept), list[str]()
    if equal is not None and (n_equal := sum(equal.counts)) > MANY * n_kept:
        layers = [name for name, n, of in zip(layout.names, equal.counts, kept, strict=True) if 2 * n > of]
        doubts.append(
            f"{n_equal} of the {n_kept} kept weights have the same score, {equal.score + 0.0:.4g}, as "
            "others that are masked: the method has not chosen between them, and they lie evenly over what scores alike"
            f"{_where(layers)}. {_reason(problem, 0.0)}"
        )
    if (n_equal := last.get("equal_units", 0)) > MANY * last.get("units", 1):
        doubts.append(
            f"{n_equal} of the {last['units']} units that are kept score as others that are cut: the method has not chosen "
            f"between them. {_reason(problem, 0.0)}"
        )
    if strange := last.get("unseen"):
        said = [
            f"{name} is {value:.2f}, seen were {low:.2f} to {high:.2f}" for name, (value, low, high) in strange.items()
        ]
        doubts.append(
            f"The policy was trained on no network like this one, or on no such mask of one: {'; '.join(said)}. It chooses "
            "as for the nearest that it has seen, which rests on nothing here: compare with fixed methods (erk, synflow), "
            "or train a policy on networks of this kind."
        )
    if empty := [name for name, n in zip(layout.names, kept, strict=True) if n == 0]:
        reason = f"{_reason(problem, NEARLY_ZERO)} " if not doubts and scales(problem, NEARLY_ZERO) else ""
        doubts.append(
            f"{len(empty)} of {len(kept)} layers keep no weight at all: {_list(empty)}. {reason}A higher density, another "
            "method or layer quotas (erk) leave every layer some."
        )
    if layout.dense:
        n_dense = sum(entry.n_weights for entry in layout.dense.values())
        share = n_dense / (n_dense + layout.n_prunable)
        doubts.append(
            f"{share:.1%} of all weights stay dense, beside the density asked for: {told_dense(layout.dense)}"
        )
    return tuple(doubts)


def doubts_of_paths(facts: MaskReport) -> tuple[str, ...]:
    """A sentence if no kept weight is alive, or some of the outputs hang on no input."""
    n_lost = facts.n_outputs - facts.n_reached_outputs
    if facts.n_kept and not facts.effective_density:
        return (
            "No kept weight is alive: no path from the inputs to the outputs leads through one. A higher density, all_alive "
            "or a method that looks at paths (synflow, npb) keeps some.",
        )
    if n_lost and facts.n_reached_outputs:
        return (
            f"No path leads to {n_lost} of the {facts.n_outputs} outputs, which are the same whatever the input is. A "
            "higher density reaches more, and so may a method that looks at paths (synflow, npb).",
        )
    return ()


def equals(scores: Tensor, mask: Tensor) -> Tensor | None:
    """Where scores are the one that most kept entries have, bool; None if no masked entry has this score."""
    values, counts = scores[mask].unique(return_counts=True)
    equal = scores == values[counts.argmax()]
    return equal if bool((equal & ~mask).any()) else None


def scales(problem: Problem, at_most: float) -> list[str]:
    """The scales and prunable weights whose entries are all at most this far from zero."""
    prunable = set(problem.layout.names)
    return [
        name
        for name, parameter in own_parameters(problem.model).items()
        if parameter.numel()
        and (name in prunable or _is_scale(name, parameter))
        and float(parameter.detach().abs().max()) <= at_most
    ]


def _is_scale(name: str, parameter: Tensor) -> bool:
    """Whether a parameter has one number for each channel or in all, and its name speaks of no summand."""
    return parameter.numel() == max(parameter.shape, default=1) and not any(part in name.lower() for part in ADDED)


def _reason(problem: Problem, at_most: float) -> str:
    if found := scales(problem, at_most):
        start = "zero" if at_most == 0 else f"{at_most:g} or less"
        return (
            f"The likely reason is a scale that starts at {start}, for nothing behind a factor of zero has a gradient: "
            f"{_list(found)}. Let it start at 1 while you prune (zero_init_last=False in timm, zero_init_residual=False in "
            "torchvision), leave the layers behind it dense (exclude), or take a method without gradients (magnitude, erk)."
        )
    return "The output or the loss does not depend on them for these data: pass more samples, or take another method."


def _where(layers: list[str]) -> str:
    return f", most of all in {_list(layers)}" if layers else ""


def _list(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
