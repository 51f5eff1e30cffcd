"""All-alive pruning inside the layers: exactly as many weights in each layer as before, every one of them alive.

``repair`` gives the budget of dead weights to the best-ranked weights of any layer, so that the layers' counts change. Here
a layer gets back what it has lost. A set of living weights has *room* if no layer has more than its count, and with the free
places between living units none has fewer; the best-ranked free places then make the mask, for they change no unit's life.

All layers' rankings are followed down in step, the same multiple of each count, until a layer has as many living weights as
its count. That layer is then closed at these, and the others go on, until none can. Where a set without room comes out, the
rankings are followed until there are places enough, and of layers with too many weights the lowest-ranked go again, with all
that dies with them, as long as there are; at last the same from the dense network down. Counts that leave hardly any choice
of units may not be met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import DensityError
from panning.masks.budgets import ordered
from panning.masks.layout import Layout
from panning.masks.selection import n_true

#: Limits: alive tests while rankings are followed; sets that are looked at while too many weights are taken away again.
MAX_PASSES, MAX_TRIMS = 300, 300
#: How near the multiple of the counts is found, as a share of it, and by what it grows at first.
NEAR, STRIDE = 0.02, 1.5


@dataclass(frozen=True, eq=False)
class _Living:
    """A set of living weights, flat bool, and the places between living units.

    Attributes:
        surplus: of each layer, how many living weights it has beyond its count, below 0 where fewer.
        lacks: of each layer, how many places it lacks for its count; 0 where there are enough.
    """

    alive: Tensor
    free: Tensor
    surplus: list[int]
    lacks: list[int]

    @classmethod
    def of(cls, connectivity: Connectivity, mask: Tensor, counts: Sequence[int]) -> _Living:
        """The living weights of a mask."""
        layout, alive = connectivity.layout, connectivity.alive(mask)
        free = connectivity.connected(alive) & ~alive if bool(alive.any()) else torch.zeros_like(alive)
        surplus = [n - count for n, count in zip(layout.counts(alive), counts, strict=True)]
        lacks = [max(0, -n - more) for n, more in zip(layout.counts(free), surplus, strict=True)]
        return cls(alive, free, surplus, lacks)

    @property
    def has_places(self) -> bool:
        return not any(self.lacks)


def all_alive_in_layers(connectivity: Connectivity, mask: Tensor, scores: Tensor) -> Tensor:
    """A mask with as many weights in each layer as ``mask``, all alive.

    Args:
        mask: flat bool, the method's own choice.
        scores: flat; ranks the weights of each layer inside and outside ``mask``.

    Raises:
        DensityError: if no such mask is found.
    """
    if connectivity.n_alive(mask) == (n_kept := n_true(mask)):
        return mask
    connectivity.check_reachable(n_kept)
    layout, counts = connectivity.layout, connectivity.layout.counts(mask)
    places = _places(layout, mask, scores, counts)
    living = _Living.of(connectivity, _followed(connectivity, places, counts), counts)
    if not living.has_places:
        living = _trimmed(connectivity, places, counts)
    filled = living.alive.clone()
    for part, surplus in zip(layout.slices(), living.surplus, strict=True):
        free = living.free[part].nonzero().squeeze(-1) + part.start
        filled[free[places[free].argsort(stable=True)][: max(0, -surplus)]] = True
    return filled


def _places(layout: Layout, mask: Tensor, scores: Tensor, counts: Sequence[int]) -> Tensor:
    """For each weight its place in its layer, (r + 1/2) / count: those below s are the best s * count of each layer."""
    places = torch.full(scores.shape, torch.inf, dtype=torch.float64, device=scores.device)
    for part, count in zip(layout.slices(), counts, strict=True):
        if count:
            order = ordered(scores[part], mask[part])
            places[part][order] = (torch.arange(len(order), dtype=torch.float64, device=order.device) + 0.5) / count
    return places


def _last(places: Tensor) -> float:
    """A multiple above which nothing more is kept."""
    return float(places[places.isfinite()].max()) + 1.0


def _followed(connectivity: Connectivity, places: Tensor, counts: Sequence[int]) -> Tensor:
    """Living weights of which no layer has more than its count, each as far down its ranking as that goes."""
    layout, places, multiple, n_passes = connectivity.layout, places.clone(), 1.0, 0
    is_open = [count > 0 for count in counts]
    alive = connectivity.alive(places < multiple)
    while any(is_open) and n_passes < MAX_PASSES:
        low, high, last = multiple, None, _last(places)
        too_many: list[int] = []
        while high is None or high - low > NEAR * low:
            middle = min(STRIDE * low, last) if high is None else 0.5 * (low + high)
            found, n_passes = connectivity.alive(places < middle), n_passes + 1
            over = [i for i, n in enumerate(layout.counts(found)) if n > counts[i]]
            if over:
                high, too_many = middle, over
            else:
                low, alive = middle, found
                if middle == last:
                    return alive
        multiple = low
        for number in too_many:
            part, is_open[number] = layout.slices()[number], False
            places[part] = torch.where(alive[part], 0.0, torch.inf)
    return alive


def _with_places(connectivity: Connectivity, places: Tensor, counts: Sequence[int]) -> _Living:
    """The living weights of the fewest best of all layers, by one multiple of the counts, that have places enough."""
    low, last = 1.0, _last(places)
    high, found = low, _Living.of(connectivity, places < low, counts)
    while not found.has_places:
        if high >= last:
            raise _not_found(connectivity.layout, counts, found)
        low, high = high, min(STRIDE * high, last)
        found = _Living.of(connectivity, places < high, counts)
    while high - low > NEAR * low:
        middle = 0.5 * (low + high)
        if (nearer := _Living.of(connectivity, places < middle, counts)).has_places:
            high, found = middle, nearer
        else:
            low = middle
    return found


def _trimmed(connectivity: Connectivity, places: Tensor, counts: Sequence[int]) -> _Living:
    """Living weights with places enough of which no layer has too many."""
    few = _with_places(connectivity, places, counts)
    living = first = _trimmed_from(connectivity, few, places, counts)
    if max(living.surplus) > 0:
        dense = _Living.of(connectivity, torch.ones_like(few.alive), counts)
        living = _trimmed_from(connectivity, dense, places, counts)
    if max(living.surplus) > 0:
        raise _not_found(connectivity.layout, counts, first)
    return living


def _trimmed_from(connectivity: Connectivity, begin: _Living, places: Tensor, counts: Sequence[int]) -> _Living:
    careful = _trim(connectivity, begin, places, counts, keeps_counts=True)
    return _trim(connectivity, careful, places, counts, keeps_counts=False)


def _trim(
    connectivity: Connectivity, living: _Living, places: Tensor, counts: Sequence[int], *, keeps_counts: bool
) -> _Living:
    """Take the lowest-ranked weights of layers with too many away, in groups first, while there are places enough.

    Args:
        keeps_counts: take none with which others die that a layer needs for its count.
    """
    layout, needed = connectivity.layout, torch.zeros_like(living.alive)
    group = living.alive.numel()
    for _ in range(MAX_TRIMS):
        if max(living.surplus) <= 0:
            break
        chosen = _lowest(layout, living.alive & ~needed, places, living.surplus)[:group]
        if not len(chosen):
            break
        trial = living.alive.clone()
        trial[chosen] = False
        nearer = _Living.of(connectivity, trial, counts)
        needs = zip(nearer.surplus, living.surplus, strict=True)
        if nearer.has_places and not (keeps_counts and any(now < min(0, before) for now, before in needs)):
            living, group = nearer, 2 * group
        elif len(chosen) > 1:
            group = len(chosen) // 2
        else:
            needed[chosen] = True
    return living


def _lowest(layout: Layout, candidates: Tensor, places: Tensor, surplus: Sequence[int]) -> Tensor:
    """Positions of the lowest-ranked candidates, as many of each layer as it has beyond its count, the lowest first."""
    found = []
    for part, more in zip(layout.slices(), surplus, strict=True):
        own = candidates[part].nonzero().squeeze(-1) + part.start
        found.append(own[places[own].argsort(descending=True, stable=True)][: max(more, 0)])
    flat = torch.cat(found)
    return flat[places[flat].argsort(descending=True, stable=True)]


def _not_found(layout: Layout, counts: Sequence[int], living: _Living) -> DensityError:
    off = [max(more, 0) - less for more, less in zip(living.surplus, living.lacks, strict=True)]
    number = max(range(len(off)), key=lambda i: abs(off[i]))
    name, count = layout.names[number], counts[number]
    why = f"'{name}' has {count} weights, and {count + off[number]} came nearest"
    if not living.alive.any() and 0 in counts:
        why = f"'{layout.names[counts.index(0)]}' keeps no weight, and no path gets around it"
    return DensityError(
        f"No mask that is all alive was found with these counts of the layers: {why}. Take other quotas or a higher "
        "density, or plain all-alive pruning, which moves weights between layers."
    )
