"""DSR, dynamic sparse reparameterization (Mostafa and Wang 2019, arXiv 1902.05967, algorithm 1).

Every so many steps all weights below one threshold go, whatever their layer. The threshold doubles or halves where this took
much less or more than the wanted number. As many weights grow at zero, in each layer in proportion to what it has kept, at
random positions other than those just lost. So layers that lose little grow.

NOTE: the paper names the number of weights to move, 20,000 for its wide ResNet; here it is a share of the kept ones unless
``n_moved`` is given, so that one setting serves networks of all sizes. What does not fit into a layer goes to the others in
equal numbers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveFloat
from torch import Tensor

from panning.masks.allocation import round_counts
from panning.training.moving.method import Clock, Count, Move, Share, ShareAboveZero, View
from panning.training.moving.selection import free_places, full_layers, highest, noise_like, regrow
from panning.training.moving.timing import DropAndGrow

#: In the memory.
THRESHOLD = "threshold"


class Reparameterization(DropAndGrow):
    """Drops weights below one adaptive threshold, grows at random in layers that keep much.

    Attributes:
        every: steps from move to move at first; twice as many after each of ``slower_at``.
        threshold: the first.
        n_moved: how many weights a move shall take; None: the share ``fraction`` of the kept ones.
        slower_at: shares of the training.
    """

    every: Count | None = 100
    threshold: PositiveFloat = 1e-3
    n_moved: Count | None = None
    fraction: Share = 0.05
    slower_at: tuple[Share, ...] = (0.125, 0.4, 0.7)
    until: ShareAboveZero = 0.95

    def acts(self, clock: Clock) -> bool:
        period = (self.every or clock.epoch) * 2 ** sum(clock.progress >= share for share in self.slower_at)
        return clock.progress < self.until and clock.step % period == 0

    def begin(self, view: View) -> Move:
        view.memory[THRESHOLD] = torch.tensor(self.threshold, dtype=torch.float64)
        return Move(view.mask)

    def move(self, view: View) -> Move:
        layout, mask = view.layout, view.mask
        threshold = float(view.memory[THRESHOLD])
        kept = self._above(view, threshold)
        n_lost = int(mask.sum()) - int(kept.sum())
        wanted = self.n_moved or self.fraction * int(mask.sum())
        if n_lost > 1.1 * wanted:
            view.memory[THRESHOLD] = torch.tensor(threshold / 2, dtype=torch.float64)
        elif n_lost < 0.9 * wanted:
            view.memory[THRESHOLD] = torch.tensor(threshold * 2, dtype=torch.float64)
        noise = noise_like(view.weight, view.generator)
        free = free_places(mask, layout)
        if sum(free) < n_lost:  # hardly anything is masked: those just lost must do
            free = free_places(kept, layout)
            lost = torch.zeros_like(mask)
        else:
            lost = mask & ~kept
        n_kept = layout.counts(kept)
        counts = round_counts([n * n_lost / sum(n_kept) for n in n_kept], n_lost, tuple(free))
        return replace(regrow(view, kept, counts, by=noise - lost.float()), revival=noise)

    def _above(self, view: View, threshold: float) -> Tensor:
        """The kept weights above the threshold, of each layer the largest at least; of a layer that keeps all, all."""
        kept = view.mask & (view.weight.abs() >= threshold)
        for part, is_full in zip(view.layout.slices(), full_layers(view.mask, view.layout), strict=True):
            if is_full:
                kept[part] = True
            elif not kept[part].any() and view.mask[part].any():
                magnitude = view.weight[part].abs().masked_fill(~view.mask[part], -torch.inf)
                kept[part] = highest(magnitude, 1, view.generator)
        return kept
