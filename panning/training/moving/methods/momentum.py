"""SNFS, sparse networks from scratch or sparse momentum (Dettmers and Zettlemoyer 2019, arXiv 1907.04840).

After each epoch every layer loses a share of its weights, the smallest. Their number is given out anew, to each layer in
proportion to the mean momentum of its kept weights, and grown where the momentum of masked weights is largest; the optimizer
follows the whole gradient for this.

NOTE: the released code smooths its rounding errors from epoch to epoch; here every count is exact, and what does not fit
into a layer goes to the others in equal numbers.
"""

from __future__ import annotations

from typing import ClassVar

from panning.masks.allocation import round_counts
from panning.training.moving.abilities import FollowsWholeGradient
from panning.training.moving.method import Dynamic, Move, Share, View
from panning.training.moving.selection import cosine, drop, free_places, regrow, shares


class SparseMomentum(FollowsWholeGradient, Dynamic):
    """Drops the smallest weights, grows where the momentum is largest.

    Attributes:
        fraction: of a layer's weights that the first move takes; falls to 0 along a cosine.
    """

    keeps_count: ClassVar[bool] = True
    defers: ClassVar[bool] = True
    counts_epochs: ClassVar[bool] = True

    fraction: Share = 0.5

    def move(self, view: View) -> Move:
        layout, momentum = view.layout, view.momentum().abs()
        n_before = layout.counts(view.mask)
        counts = shares(cosine(self.fraction, 0.0, view.clock.progress), view.mask, layout)
        kept = drop(view.weight.abs(), view.mask, counts, layout, view.generator)
        free = free_places(kept, layout)
        means = [
            float(momentum[part][view.mask[part]].mean()) if n else 0.0
            for part, n in zip(layout.slices(), n_before, strict=True)
        ]
        n_lost, total = sum(counts), sum(means)
        quotas = [mean / total * n_lost if total > 0 else float(n) for mean, n in zip(means, counts, strict=True)]
        grown = round_counts([min(q, float(room)) for q, room in zip(quotas, free, strict=True)], n_lost, tuple(free))
        return regrow(view, kept, grown, by=momentum)
