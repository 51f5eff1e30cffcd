"""Dense weights that lie beside the network's, which runs with what follows from them (``Holds``: feedback)."""

from __future__ import annotations

import torch
from torch import Tensor

from panning.training.moving.flat import FlatParameters


class DenseAside:
    """
    Attributes:
        dense: flat [n_prunable], what the optimizer moves.
        trusts_loads: a state was loaded: until the next step, what the network runs with is its part that is about to be
            loaded, or was, and says nothing of the dense weights.
    """

    def __init__(self, flat: FlatParameters) -> None:
        self._flat = flat
        self.dense = flat.read()
        self.trusts_loads = False
        self._written: Tensor | None = None  # what the network was given last

    def run(self, flat: Tensor) -> None:
        """Let the network run with these weights."""
        self._flat.write(flat)
        self._written = self._flat.read()

    def adopt(self, mask: Tensor | None) -> None:
        """What somebody else has written into the running weights (loaded, clipped, averaged) holds for the dense ones, too.

        One that runs as it is gets the new value; one that runs as something else (quantised, of low rank) moves by as much.

        Args:
            mask: flat bool, of the weights that run; None: all do.
        """
        if self._written is None or self.trusts_loads:
            return
        now = self._flat.read()
        changed = now != self._written  # by value: what is written through ``data`` counts no version
        if mask is not None:
            changed &= mask
        new = torch.where(self._written == self.dense, now, self.dense + (now - self._written))
        self.dense = torch.where(changed, new, self.dense)
        self._written = now
