"""Equals: which of equal scores come first, so that any first part of them is even over layers and scattered inside each.

The j-th of a layer's n equals stands at (j + 1/2) / n, whatever the layer; inside it they are scattered by the multiples of
the golden ratio.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from panning.masks.selection import Array, kth_largest

#: 2^32 over the golden ratio: its multiples modulo 2^32 cover the circle more evenly than those of any other number.
GOLDEN, CIRCLE = 2_654_435_769, 2**32
PlacesT = TypeVar("PlacesT", Tensor, Array)


def sorted_evenly(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Flat positions, the highest score first; equals in an order of which any first part is even over layers.

    Args:
        sizes: of the layers that lie one after the other in ``scores``.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = scores[order]
    equal = functional.pad(ranked[1:] == ranked[:-1], (1, 1))  # each to the one before; the ends to none
    tied = (equal[:-1] | equal[1:]).nonzero().squeeze(-1)
    if len(tied) == 0:
        return order
    ties = order[tied]
    order[tied] = ties[even_order(ties, sizes, (~equal[:-1]).cumsum(0)[tied])]
    return order


def even_order(positions: Tensor, sizes: Sequence[int], group: Tensor | None = None) -> Tensor:
    """In which order equals are kept: indices into ``positions``, of which any first part is even over layers.

    A layer's equals are scattered by the multiples of the golden ratio; the j-th of n of them stands at (j + 1/2) / n.

    Args:
        sizes: of the layers that lie one after the other.
        group: of equals, for each position, ascending; None: all are equal.
    """
    group = torch.zeros_like(positions) if group is None else group
    starts = torch.tensor([0, *sizes], device=positions.device).cumsum(0)
    layer = torch.bucketize(positions, starts[1:], right=True)
    cell = group * len(sizes) + layer
    order = scatter(positions - starts[layer]).argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    _, number, counts = cell[order].unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(positions), device=positions.device) - (counts.cumsum(0) - counts)[number]
    order = order[((place.double() + 0.5) / counts[number]).argsort(stable=True)]
    return order[group[order].argsort(stable=True)]


def first_evenly(positions: Tensor, sizes: Sequence[int], n_kept: int) -> Tensor:
    """The first of equals in the order of ``even_order``, by selection, which takes a twentieth of the time.

    Args:
        positions: of the equals, ascending.
        sizes: of the layers that lie one after the other.

    Returns:
        ``n_kept`` of the positions.
    """
    starts = list(accumulate(sizes, initial=0))
    bounds = torch.searchsorted(positions, torch.tensor(starts, device=positions.device)).tolist()
    shares = even_shares([end - begin for begin, end in pairwise(bounds)], n_kept)
    parts = zip(pairwise(bounds), starts, shares, strict=False)
    return torch.cat([scattered(positions[begin:end] - start, n) + start for (begin, end), start, n in parts])


def even_shares(counts: Sequence[int], n_kept: int) -> list[int]:
    """How many of each layer's equals are kept: the j-th of n of them stands at (j + 1/2) / n, as in ``even_order``."""
    total = sum(counts)
    if n_kept == total:
        return list(counts)
    sure = max(0.0, (n_kept - len(counts)) / total)  # what stands before is kept, whatever the layer
    shares = [max(0, math.ceil(sure * n - 0.5) - 1) for n in counts]
    waiting = [
        ((share + 0.5) / n, layer) for layer, (share, n) in enumerate(zip(shares, counts, strict=True)) if n > share
    ]
    heapq.heapify(waiting)
    for _ in range(n_kept - sum(shares)):
        _, layer = heapq.heappop(waiting)
        shares[layer] += 1
        if shares[layer] < counts[layer]:
            heapq.heappush(waiting, ((shares[layer] + 0.5) / counts[layer], layer))
    return shares


def scattered(places: PlacesT, n_kept: int) -> PlacesT:
    """Which of a layer's equals are kept: the first ``n_kept`` in the order of ``even_order``."""
    n = len(places)
    if n_kept in (0, n):
        return places[:n_kept]
    keys = scatter(places)  # no two are equal in a layer of up to 2^32 weights
    return places[keys <= kth_largest(keys, n - n_kept + 1)]


def scatter(place: PlacesT) -> PlacesT:
    """A key for every place in a layer; sorting by it scatters neighbours."""
    return place * GOLDEN % CIRCLE
