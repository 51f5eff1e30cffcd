"""Layer counts as budgets: fitted to bounds, blended in the log, and made into one ranking of all weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from panning.masks.allocation import round_counts
from panning.masks.equals import sorted_evenly

#: The divisor for a layer that is to keep nothing: its best weight then ranks below every weight within the budgets.
NOTHING = 0.25


def fitted_counts(
    quotas: Sequence[float], n_kept: int, sizes: Sequence[int], lows: Sequence[int] | None = None,
    highs: Sequence[int] | None = None,
) -> list[int]:  # fmt: skip
    """Whole counts that sum to exactly ``n_kept``: ``quotas`` times one factor, held within bounds.

    What a bound takes or gives, the other layers share in proportion to their quotas. Layers whose quota is 0 get something
    only where all others are full.

    Args:
        lows, highs: the fewest and the most weights of each layer, with sum(lows) <= n_kept <= sum(highs); None: 0 and its
            size.

    Examples:
        >>> from panning.masks.budgets import fitted_counts
        >>> fitted_counts([2.0, 6.0, 12.0], 10, (4, 8, 100))
        [1, 3, 6]
        >>> fitted_counts([2.0, 6.0, 12.0], 10, (4, 8, 100), lows=[4, 0, 0])
        [4, 2, 4]
    """
    lows = [0] * len(sizes) if lows is None else lows
    highs = sizes if highs is None else highs

    def at(factor: float) -> list[float]:
        bounds = zip(quotas, lows, highs, strict=True)
        return [min(max(factor * quota, float(low)), float(high)) for quota, low, high in bounds]

    least, most = 0.0, 1.0
    while sum(at(most)) < n_kept and most < 1e30:
        most *= 2
    for _ in range(200):
        middle = 0.5 * (least + most)
        least, most = (middle, most) if sum(at(middle)) < n_kept else (least, middle)
    above = [round(wanted - low, 9) for wanted, low in zip(at(most), lows, strict=True)]
    room = tuple(high - low for low, high in zip(lows, highs, strict=True))
    return [low + more for low, more in zip(lows, round_counts(above, n_kept - sum(lows), room), strict=True)]


def blended_quotas(counts: Mapping[str, Sequence[int]], shares: Mapping[str, float]) -> list[float]:
    """Quotas prod_i counts_i^share_i of several sources: their mean in the log. A layer that one source empties is empty.

    Examples:
        >>> from panning.masks.budgets import blended_quotas
        >>> [round(quota, 9) for quota in blended_quotas({"a": [1, 8, 0], "b": [4, 2, 5]}, {"a": 0.5, "b": 0.5})]
        [2.0, 4.0, 0.0]
    """
    columns = zip(*(counts[name] for name in shares), strict=True)
    return [math.prod(n**share for n, share in zip(column, shares.values(), strict=True)) for column in columns]


def ordered(scores: Tensor, first: Tensor | None = None) -> Tensor:
    """Positions of a layer by falling score, those of the mask ``first`` before all others.

    Examples:
        >>> import torch
        >>> from panning.masks.budgets import ordered
        >>> ordered(torch.tensor([3.0, 1.0, 2.0]), first=torch.tensor([False, True, True]))
        tensor([2, 1, 0])
    """
    order = sorted_evenly(scores, (len(scores),))
    return order if first is None else order[(~first[order]).to(torch.uint8).argsort(stable=True)]


def ranked_by_counts(orders: Sequence[Tensor], counts: Sequence[float]) -> list[Tensor]:
    """Keys, a tensor a layer, by which all weights are ranked: the best sum(counts) are the first counts[i] of each layer.

    The weight at place r of a layer of count c has the key -(r + 1/2) / c, so that any other number of best weights divides
    itself over layers in proportion to the counts.

    Args:
        orders: the positions of each layer, the best first.

    Examples:
        >>> import torch
        >>> from panning.masks.budgets import ranked_by_counts
        >>> ranked_by_counts([torch.tensor([1, 0, 2]), torch.tensor([0, 1])], [2, 1])
        [tensor([-0.7500, -0.2500, -1.2500], dtype=torch.float64), tensor([-0.5000, -1.5000], dtype=torch.float64)]
    """
    keys = []
    for order, count in zip(orders, counts, strict=True):
        key = torch.empty(len(order), dtype=torch.float64, device=order.device)
        key[order] = -(torch.arange(len(order), dtype=torch.float64, device=order.device) + 0.5) / (count or NOTHING)
        keys.append(key)
    return keys
