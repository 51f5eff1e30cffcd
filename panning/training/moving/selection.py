"""Drop and grow: the parts that methods which move masks are made of. Pure functions on flat tensors [n_prunable].

Counts are exact and never come from comparing with a threshold. Scores that are equal, as those of freshly grown weights,
which are all 0, are drawn among at random: by position, the first inputs of a layer would always win.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from panning.alive.connectivity import Connectivity
from panning.foundation.wrappers import owners
from panning.masks.allocation import top_k
from panning.masks.layout import Layout
from panning.scoring.problem import Problem
from panning.training.moving.method import Move, View


def drop(scores: Tensor, mask: Tensor, counts: list[int], layout: Layout, generator: torch.Generator) -> Tensor:
    """``mask`` without the ``counts[i]`` lowest-scored of its weights in layer i."""
    kept = [n - count for n, count in zip(layout.counts(mask), counts, strict=True)]
    return by_layer(scores.masked_fill(~mask, -torch.inf), kept, layout, generator)


def grow(scores: Tensor, mask: Tensor, counts: list[int], layout: Layout, generator: torch.Generator) -> Tensor:
    """``mask`` with the ``counts[i]`` highest-scored in layer i of the weights that it does not keep."""
    return mask | by_layer(scores.masked_fill(mask, -torch.inf), counts, layout, generator)


def exchange(view: View, counts: list[int], grow_by: Tensor, *, mask: Tensor | None = None) -> Move:
    """Drop the ``counts[i]`` smallest weights of layer i, and grow as many where ``grow_by`` is highest.

    Args:
        mask: drop from this one; None takes the present.
    """
    mask = view.mask if mask is None else mask
    kept = drop(view.weight.abs(), mask, counts, view.layout, view.generator)
    return regrow(view, kept, counts, by=grow_by)


def regrow(view: View, kept: Tensor, counts: list[int] | None = None, *, by: Tensor) -> Move:
    """Grow ``counts[i]`` weights of layer i where ``by`` is highest; None: as many as the mask has and ``kept`` has not."""
    if counts is None:
        before_after = zip(view.layout.counts(view.mask), view.layout.counts(kept), strict=True)
        counts = [before - after for before, after in before_after]
    return Move(grow(by, kept, counts, view.layout, view.generator), revival=by)


def gradient(view: View) -> Tensor:
    """Magnitude of the gradient, of a method that looks at it."""
    assert view.grad is not None
    return view.grad.abs()


def by_layer(scores: Tensor, counts: list[int], layout: Layout, generator: torch.Generator) -> Tensor:
    """The ``counts[i]`` highest-scored weights of layer i."""
    parts = zip(layout.slices(), counts, strict=True)
    return torch.cat([highest(scores[part], count, generator) for part, count in parts])


def highest(scores: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The ``n`` highest scores, drawing lots among equals; flat bool."""
    if n in (0, scores.numel()):
        return torch.full_like(scores, n > 0, dtype=torch.bool)
    return top_k(scores, n, generator)


def noise_like(scores: Tensor, generator: torch.Generator) -> Tensor:
    """One uniform draw in [0, 1) a weight, from a generator of the CPU whatever the device."""
    return torch.rand(scores.numel(), generator=generator).to(scores.device)


def shares(fraction: float, mask: Tensor, layout: Layout, whole: Callable[[float], int] = math.floor) -> list[int]:
    """``fraction`` of each layer's kept weights as a whole number; 0 for a layer that keeps all, which cannot change."""
    counts = zip(layout.counts(mask), full_layers(mask, layout), strict=True)
    return [0 if is_full else whole(fraction * n) for n, is_full in counts]


def full_layers(mask: Tensor, layout: Layout) -> list[bool]:
    """Which layers keep all their weights."""
    return [n == size for n, size in zip(layout.counts(mask), layout.sizes, strict=True)]


def kept_magnitude(view: View) -> Tensor:
    """The magnitude of kept weights, and -inf of the others."""
    return view.weight.abs().masked_fill(~view.mask, -torch.inf)


def free_places(mask: Tensor, layout: Layout) -> list[int]:
    """How many weights of each layer are masked."""
    return [size - n for n, size in zip(layout.counts(mask), layout.sizes, strict=True)]


def cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at 1, along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def hidden_layers(problem: Problem) -> tuple[str, ...]:
    """The layers whose units may go: those that make outputs stay whole, and so do depthwise convolutions.

    A depthwise unit reads one unit alone. Ranked by itself it would seldom be kept together with that one.
    """
    outputs, modules = Connectivity.of(problem).output_layers, owners(problem.model)
    return tuple(name for name in problem.layout.names if name not in outputs and not _is_depthwise(modules[name][1]))


def _is_depthwise(module: nn.Module) -> bool:
    return 1 < getattr(module, "groups", 1) == getattr(module, "in_channels", 1)


def top_units(problem: Problem, weight: Tensor, hidden: Sequence[str], density: float) -> Tensor:
    """A flat mask of whole units (filters, neurons): of each ``hidden`` layer the share ``density`` with the largest norm.

    At least one of each stays; all other layers are kept.
    """
    rows = problem.by_unit(weight)
    norms = {name: rows[name].norm(dim=1) for name in hidden}
    kept = {name: top_k(norm, n_units_at(density, len(norm))) for name, norm in norms.items()}
    return keep_units(problem, torch.ones_like(weight, dtype=torch.bool), kept)


def n_units_at(density: float, n_units: int) -> int:
    """So many of ``n_units`` are the share ``density``; at least one."""
    return max(1, int(density * n_units + 0.5))


def keep_units(problem: Problem, mask: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """The flat ``mask`` without those units of the layers in ``kept`` that are False there, bool [units]."""
    mask = mask.clone()
    views = problem.layout.views(mask)
    for name, units in kept.items():
        # units_of positions, not of the mask: where it is a copy, writing to it would be lost
        view = views[name]
        positions = torch.arange(view.numel(), device=view.device)
        rows = problem.units_of(name, positions.view(view.shape))
        view.view(-1)[rows[~units].flatten()] = False
    return mask
