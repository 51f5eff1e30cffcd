"""SET, sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780).

After each epoch every layer loses the weights nearest to zero, the share ``fraction`` of the positive and of the negative
ones alike, and gains as many at random positions, which those just lost may be among.

NOTE: the paper's network keeps its last layer dense; here all layers are alike. Its layers begin with epsilon (n_in + n_out)
weights, epsilon = 20; the row begins with ERK's quotas, which go with n_in + n_out, too, at the density asked for. It trains
at a constant rate: where the rate falls to 0, weights that are drawn late never learn, and later authors therefore stop
earlier (``until``) and let the share fall along a cosine, as RigL's does (``anneal``).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from panning.training.moving.method import BLOCKS, N_OF_M, Move, Share, View
from panning.training.moving.selection import cosine, drop, full_layers, noise_like, regrow, shares
from panning.training.moving.timing import DropAndGrow


class SET(DropAndGrow):
    """Drops the weights nearest to zero, grows at random.

    Attributes:
        fraction: of the positive and of the negative weights of a layer that a move exchanges.
        anneal: let ``fraction`` fall to 0 along a cosine until ``until``.
    """

    defers: ClassVar[bool] = True
    counts_epochs: ClassVar[bool] = True
    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M, BLOCKS})

    fraction: Share = 0.3
    anneal: bool = False

    def move(self, view: View) -> Move:
        kept = view.mask
        fraction = cosine(self.fraction, 0.0, view.clock.progress / self.until) if self.anneal else self.fraction
        for sign in (view.weight >= 0, view.weight < 0):
            kept = (kept & ~sign) | self._largest(view, view.mask & sign, fraction)
        return regrow(view, kept, by=noise_like(view.weight, view.generator))

    def _largest(self, view: View, some: Tensor, fraction: float) -> Tensor:
        """``some`` weights, all of one sign, without the nearest to zero."""
        parts = zip(shares(fraction, some, view.layout), full_layers(view.mask, view.layout), strict=True)
        counts = [0 if is_full else n for n, is_full in parts]
        return drop(view.weight.abs(), some, counts, view.layout, view.generator)
