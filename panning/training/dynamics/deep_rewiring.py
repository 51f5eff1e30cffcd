"""DeepR, deep rewiring (Bellec et al. 2018, arXiv 1711.05136, algorithm 1).

Every weight has a sign for good. After each step the kept weights are drawn to zero and shaken; one that has crossed zero is
masked, and one of the masked weights of its layer, drawn at random, is kept in its place and starts next to zero.

NOTE: the paper draws the replacement from the whole network, its released code from the same layer, as here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from panning.training.dynamic import Dynamic, Move, View
from panning.training.moves import grow, noise_like

#: In the memory: +1 or -1 for each weight.
SIGN = "sign"
#: What a weight starts with.
TINY = 1e-12


class DeepRewiring(Dynamic):
    """
    Attributes:
        l1: a kept weight shrinks by rate * l1 each step.
        noise: and is shaken by rate * noise * N(0, 1).
    """

    keeps_count: ClassVar[bool] = True

    every: Annotated[int, Field(ge=1)] | None = 1
    l1: Annotated[float, Field(ge=0)] = 1e-5
    noise: Annotated[float, Field(ge=0)] = 1e-5

    def begin(self, view: View) -> Move:
        drawn = torch.where(noise_like(view.weight, view.generator) < 0.5, -1.0, 1.0)
        view.memory[SIGN] = torch.where(view.weight == 0, drawn, view.weight.sign()).to(torch.int8)
        return Move(view.mask)

    def move(self, view: View) -> Move:
        layout, sign = view.layout, view.memory[SIGN]
        shaken = torch.randn(view.weight.numel(), generator=view.generator).to(view.weight)
        theta = view.weight * sign + view.learning_rate * (self.noise * shaken - self.l1)
        kept = view.mask & (theta > 0)
        full = [n == size for n, size in zip(layout.counts(view.mask), layout.sizes, strict=True)]
        kept |= view.mask & layout.per_layer([float(f) for f in full], torch.float32).bool().to(kept.device)
        counts = [before - after for before, after in zip(layout.counts(view.mask), layout.counts(kept), strict=True)]
        noise = noise_like(view.weight, view.generator)
        mask = self._grown(view, kept, counts, noise)
        return Move(mask, weight=sign * torch.where(kept, theta.clamp(min=TINY), TINY), revival=noise)

    def _grown(self, view: View, kept: Tensor, counts: list[int], noise: Tensor) -> Tensor:
        """Those just masked come last: they are drawn again only where nothing else is left."""
        return grow(noise - view.mask.float(), kept, counts, view.layout, view.generator)
