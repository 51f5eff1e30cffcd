"""CHT and CHTs, Cannistraci-Hebb training (Zhang et al., ICLR 2024; in its soft form NeurIPS 2025).

After each epoch every linear layer loses the share ``fraction`` of its weights, the smallest, and what is cut off with them.
As many grow where the layer's own connections foretell them (CH3-L3): X being its mask [outputs, inputs],

    S(u, v) = sum_z X(z, v) / max(1, deg z - |N(u) and N(z)|) + sum_z X(u, z) / max(1, deg z - |N(v) and N(z)|)

over the outputs z that share an input with u, and over the inputs z that share an output with v. Neither data nor gradients
enter. The soft form samples: what is kept in proportion to |w|^T, where T rises from 1 to 3 as training goes on, and what
grows in proportion to S.

NOTE: the paper's first masks (Watts-Strogatz, correlated) are not here; the row begins with ERK's quotas. Convolutions keep
their masks: in the released code they are grown at random or by gradients, not by this rule. What was just dropped may grow.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import MaskError, PanningWarning
from panning.scoring.problem import Problem
from panning.training.moving.method import Clock, Move, Share, View
from panning.training.moving.selection import drop, full_layers, noise_like, regrow, shares
from panning.training.moving.timing import DropAndGrow


class CannistraciHebb(DropAndGrow):
    """Drops the smallest weights of linear layers, grows what their connections foretell.

    Attributes:
        fraction: of a layer's weights that a move drops.
        soft: sample what is kept and what grows.
    """

    defers: ClassVar[bool] = True
    counts_epochs: ClassVar[bool] = True

    fraction: Share = 0.3
    soft: bool = False

    def check(self, clock: Clock, problem: Problem) -> None:
        super().check(clock, problem)
        others = [name for name in problem.layout.names if name not in _matrices(problem)]
        if len(others) == len(problem.layout.names):
            raise MaskError(
                f"CHT moves masks of linear layers, and '{others[0]}' and all others are none: take rigl or set."
            )
        if others:
            warnings.warn(
                f"CHT moves masks of linear layers; all others stay as they are ({', '.join(others)[:200]}).",
                PanningWarning,
                stacklevel=1,  # the same place, whoever asks: shown once
            )

    def move(self, view: View) -> Move:
        layout, moves = view.layout, [name in _matrices(view.problem) for name in view.layout.names]
        lost = zip(shares(self.fraction, view.mask, layout), moves, strict=True)
        kept = drop(self._strength(view), view.mask, [n * moved for n, moved in lost], layout, view.generator)
        alive = Connectivity.of(view.problem).alive(kept)
        foretold = torch.zeros_like(view.weight, dtype=torch.float32)
        for part, shape, moved, is_full in zip(
            layout.slices(), layout.shapes, moves, full_layers(view.mask, layout), strict=True
        ):
            if moved and not is_full:
                kept[part] &= alive[part]
                foretold[part] = ch3_l3(kept[part].view(shape)).flatten()
        return regrow(view, kept, by=_drawn(foretold, view) if self.soft else foretold)

    def _strength(self, view: View) -> Tensor:
        """By what weights are kept: their magnitude, or lots in proportion to a power of it."""
        magnitude = view.weight.abs()
        return _drawn(magnitude, view, power=1.0 + 2.0 * view.clock.progress) if self.soft else magnitude


def ch3_l3(mask: Tensor) -> Tensor:
    """S of every pair of an output and an input, [outputs, inputs], given the bool mask of the layer.

    >>> import torch
    >>> from panning.training.moving.methods.cannistraci_hebb import ch3_l3
    >>> ch3_l3(torch.tensor([[True, True], [True, False]]))[1, 1]
    tensor(2.)
    """
    kept = mask.float()
    return _through(kept) @ kept + kept @ _through(kept.T).T


def _through(kept: Tensor) -> Tensor:
    """[u, z]: 1 / max(1, deg z - |N(u) and N(z)|) for rows u and z of ``kept`` that share a column, else 0."""
    common = kept @ kept.T
    return (common > 0) / (kept.sum(1) - common).clamp(min=1.0)


def _drawn(weights: Tensor, view: View, power: float = 1.0) -> Tensor:
    """Scores whose k highest are k draws without replacement, in proportion to ``weights ** power`` (Gumbel's trick)."""
    gumbel = -torch.log(-torch.log(noise_like(weights, view.generator).double().clamp(1e-12, 1.0 - 1e-12)))
    return (power * weights.double().clamp(min=1e-30).log() + gumbel).float()


def _matrices(problem: Problem) -> set[str]:
    """The layers whose weights are a matrix of outputs by inputs."""
    return {name for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True) if len(shape) == 2}
