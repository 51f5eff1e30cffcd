"""DeepR, deep rewiring (Bellec et al. 2018, arXiv 1711.05136, algorithm 1).

Every weight has a sign for good. After each step the kept weights are drawn to zero and shaken; one that has crossed zero is
masked, and one of the masked weights of its layer, drawn at random, is kept in its place and starts next to zero.

NOTE: the paper draws the replacement from the whole network, its released code from the same layer, as here. The noise is
the released script's, too, proportional to the rate; the paper's goes with the root of rate and temperature. Layers that
keep all their weights are left alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat

from panning.training.moving.method import N_OF_M, Clock, Count, Dynamic, Move, View
from panning.training.moving.selection import full_layers, noise_like, regrow

#: In the memory: +1 or -1 for each weight.
SIGN = "sign"
#: What a weight starts with.
TINY = 1e-12


class DeepRewiring(Dynamic):
    """Drops weights whose sign flips, grows at random.

    Attributes:
        l1: at each move a kept weight shrinks by rate * l1.
        noise: and is shaken by rate * noise * N(0, 1).
    """

    keeps_count: ClassVar[bool] = True
    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M})

    every: Count | None = 1
    l1: NonNegativeFloat = 1e-5
    noise: NonNegativeFloat = 1e-5

    def begin(self, view: View) -> Move:
        drawn = torch.where(noise_like(view.weight, view.generator) < 0.5, -1.0, 1.0)
        view.memory[SIGN] = torch.where(view.weight == 0, drawn, view.weight.sign()).to(torch.int8)
        return Move(view.mask)

    def acts(self, clock: Clock) -> bool:
        """After the last step, too: what has crossed zero there has no sign to be shipped with."""
        return clock.is_over or super().acts(clock)

    def move(self, view: View) -> Move:
        layout, sign = view.layout, view.memory[SIGN]
        theta = view.weight * sign - view.learning_rate * self.l1
        if self.noise:
            shaken = torch.randn(view.weight.numel(), generator=view.generator).to(view.weight)
            theta += view.learning_rate * self.noise * shaken
        full = layout.per_layer([float(is_full) for is_full in full_layers(view.mask, layout)], torch.float32)
        in_full = full.to(theta.device) > 0  # nothing could take the place of their weights, which learn freely
        kept = view.mask & ((theta > 0) | in_full)
        weight = torch.where(in_full, view.weight, sign * torch.where(kept, theta, TINY))
        if torch.equal(kept, view.mask):
            return Move(kept, weight)
        # Those just masked come last: they are drawn again only where nothing else is left.
        noise = noise_like(view.weight, view.generator) - view.mask.float()
        return replace(regrow(view, kept, by=noise), weight=weight)
