"""All-alive pruning: exactly k weights, every one of them alive (after Kim et al. 2021, 2023).

Every method leaves dead weights at high sparsity: kept, but on no path from input to output. The budget they waste is
given back to the highest-ranked weights that can be alive.

Let order be the ranking of all weights (the method's own mask first) and TopK(n) its first n. The alive weights of
nested masks are nested, so a(n) = |alive(TopK(n))| never falls. The largest n with a(n) <= k is found by bisection; the
few weights still missing are taken from the ranking among those whose two ends are alive, each of which adds exactly one.
Where a layer has collapsed its weights are the last of the ranking, and nothing fits until all else is kept: the weights
outside the mask are then ranked by their place in their own layer. Where hardly more than one path fits, the ranking
begins with a shortest path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import DensityError
from panning.masks.equals import sorted_evenly
from panning.masks.layout import Layout
from panning.masks.selection import n_true

#: Limits: alive tests for one mask; of these, for one depth-first search; candidates that such a search tries for one mask.
MAX_PASSES = 500
SEARCH_LIMIT = 100
SEARCH_WIDTH = 64


@dataclass(frozen=True, eq=False)
class _Search(Connectivity):
    """An alive test that gives up after ``MAX_PASSES`` and then says which numbers of alive weights it has seen.

    Attributes:
        n_kept: the number of alive weights that is looked for.
        smallest: the fewest weights of a path.
    """

    n_kept: int
    smallest: int
    sizes: list[int] = field(default_factory=list)

    def connected(self, mask: Tensor) -> Tensor:
        if len(self.sizes) == MAX_PASSES:
            raise self.nothing_found()
        connected = super().connected(mask)
        self.sizes.append(n_true(connected & mask))
        return connected

    def nothing_found(self) -> DensityError:
        larger = [size for size in self.sizes if size > self.n_kept]
        if not larger:
            return DensityError(
                f"{self.n_kept} weights cannot all be alive: at most {max(self.sizes)} of this network's lie on a path."
            )
        smaller = max((size for size in self.sizes if size < self.n_kept), default=0)
        return DensityError(
            f"No set of exactly {self.n_kept} alive weights was found in {len(self.sizes)} tries; {min(larger)} is the next "
            f"number that was{f', {smaller} the one before' if smaller else ''}. A path of this network has at least "
            f"{self.smallest} weights."
        )


def all_alive(connectivity: Connectivity, mask: Tensor, scores: Tensor) -> Tensor:
    """A mask with as many weights as ``mask``, all alive.

    Args:
        mask: flat bool, the method's own choice.
        scores: flat; ranks the weights inside and outside ``mask``.

    Raises:
        DensityError: if no such mask exists or none is found in ``MAX_PASSES`` passes, naming the numbers that can be.
    """
    n_kept = n_true(mask)
    if connectivity.n_alive(mask) == n_kept:
        return mask
    smallest = connectivity.check_reachable(n_kept)
    search = _Search(connectivity.model, connectivity.layout, connectivity.example, n_kept, smallest)
    fits: list[tuple[Tensor, int]] = []
    for order in _rankings(search, mask, scores, smallest):
        fits.append((order, _largest_fitting(search, order, n_kept)))
        filled = _fill(search, search.alive(first(*fits[-1])), order, n_kept)
        if filled is not None:
            return filled
    found = _one_further(search, mask, *fits[-1], n_kept)
    if found is None:
        raise search.nothing_found()
    return found


def _one_further(connectivity: Connectivity, mask: Tensor, order: Tensor, n_fits: int, n_kept: int) -> Tensor | None:
    """For where nothing is connected yet, or the living units have no free places left: go one weight further, which opens
    new paths but too many weights, and take the least of them away again, the last few one by one.
    """
    tried: set[bytes] = set()
    for start in (first(order, n_fits + 1), torch.ones_like(mask)):
        whole = connectivity.alive(start)
        for margin in (0, 8, 32):
            trimmed = trim(connectivity, whole, order, at_least=n_kept + margin)
            if (exact := _exactly(connectivity, trimmed, order, n_kept, tried)) is not None:
                return exact
    return None


def _rankings(connectivity: Connectivity, mask: Tensor, scores: Tensor, smallest: int) -> Iterator[Tensor]:
    n_kept = n_true(mask)
    layout = connectivity.layout
    by_score = ranking(mask, scores, layout)
    if connectivity.n_alive(first(by_score, 2 * n_kept)) > 0:
        yield by_score
    by_place = ranking(mask, place_in_layer(layout, scores), layout)
    if n_kept >= 2 * smallest:
        yield by_place
    # Where hardly more than one path fits, nothing else is likely to.
    path = shortest_path(connectivity, by_place, smallest)
    own = torch.zeros_like(mask) if path is None else path[by_place]
    yield torch.cat([by_place[own], by_place[~own]])


def _exactly(connectivity: Connectivity, alive: Tensor, order: Tensor, n_kept: int, tried: set[bytes]) -> Tensor | None:
    """Exactly ``n_kept`` alive weights below ``alive``: depth first, the lowest-ranked weight off first, with all that dies
    with it; where that is too much, free places between living units are filled. None if the search ends without.

    Args:
        tried: digest of each mask that was looked at; added to.
    """
    stack: list[tuple[Tensor, Tensor | None]] = [(alive, None)]
    n_passes = 0
    while stack and n_passes < SEARCH_LIMIT:
        state, weight = stack.pop()
        if weight is not None:
            n_passes += 1
            state = state.clone()
            state[weight] = False
            state = connectivity.alive(state)
        digest = hashlib.blake2b(state.cpu().numpy().tobytes(), digest_size=16).digest()
        if digest in tried:
            continue
        tried.add(digest)
        if n_true(state) <= n_kept:
            if (filled := _fill(connectivity, state, order, n_kept)) is not None:
                return filled
        else:  # the best first, so that the lowest is popped first
            stack += [(state, candidate) for candidate in order[state[order]][-SEARCH_WIDTH:]]
    return None


def shortest_path(connectivity: Connectivity, order: Tensor, smallest: int) -> Tensor | None:
    """The weights of one shortest path, flat bool, from each layer the best-ranked; None where it cannot be told.

    Args:
        smallest: ``connectivity.smallest_alive()``.
    """
    slices = connectivity.layout.slices()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    path = torch.ones_like(order, dtype=torch.bool)
    if (shares := connectivity.path_shares()) is None:
        return None
    for part in slices:
        path[part] = shares[part].sum() > 1e-3  # a layer beside the shortest paths carries next to nothing
    for part, n_uses in zip(slices, connectivity.n_uses, strict=True):
        if not path[part].any():
            continue
        if (shares := connectivity.path_shares(path)) is None:
            return None
        share = shares[part]
        best = torch.where(share > share.max() / 2, rank[part], order.numel()).argsort()
        # Where the weights of a layer are used several times, not every one of them is enough for all uses.
        for chosen in best[: SEARCH_WIDTH if n_uses > 1 else 1].tolist():
            one = path.clone()
            one[part] = False
            one[part.start + chosen] = bool(share[chosen] > 0)
            if n_uses == 1 or connectivity.alive(one).any():
                path = one
                break
    path = connectivity.alive(path)
    return trim(connectivity, path, order, at_least=smallest) if path.any() else None


def ranking(mask: Tensor, scores: Tensor, layout: Layout) -> Tensor:
    """Flat positions, best first: the weights of ``mask`` by score, then all others by score; equals even over layers."""
    by_score = sorted_evenly(scores, layout.sizes)
    own = mask[by_score]
    return torch.cat([by_score[own], by_score[~own]])


def place_in_layer(layout: Layout, scores: Tensor) -> Tensor:
    """Scores that rank every layer alike: 1 for a layer's best weight, falling to 0 for its worst."""
    places = torch.empty(scores.numel(), dtype=torch.float64, device=scores.device)
    for part, size in zip(layout.slices(), layout.sizes, strict=True):
        order = sorted_evenly(scores[part], (size,))
        places[part][order] = torch.linspace(1.0, 0.0, size, dtype=torch.float64, device=scores.device)
    return places


def first(order: Tensor, n: int) -> Tensor:
    """The flat mask of the first ``n`` positions of a ranking."""
    mask = torch.zeros(order.numel(), dtype=torch.bool, device=order.device)
    mask[order[:n]] = True
    return mask


def _largest_fitting(connectivity: Connectivity, order: Tensor, n_kept: int) -> int:
    """The largest n with a(n) <= n_kept; a(n_kept) <= n_kept always holds.

    Galloping from n_kept, then in turn where a straight line between the ends meets n_kept and half way between them.
    """

    def n_alive(n: int) -> int:
        return connectivity.n_alive(first(order, n))

    total = order.numel()
    low, low_alive, step = n_kept, n_alive(n_kept), max(1, n_kept // 8)
    high = min(low + step, total)
    while (high_alive := n_alive(high)) <= n_kept:
        if high == total:
            return total
        low, low_alive, step = high, high_alive, 2 * step
        high = min(low + step, total)
    halve = False
    while high - low > 1:
        share = 0.5 if halve else (n_kept + 0.5 - low_alive) / (high_alive - low_alive)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        halve = not halve
        if (middle_alive := n_alive(middle)) <= n_kept:
            low, low_alive = middle, middle_alive
        else:
            high, high_alive = middle, middle_alive
    return low


def _fill(connectivity: Connectivity, base: Tensor, order: Tensor, n_kept: int) -> Tensor | None:
    """``base`` with the best-ranked weights between living units added up to ``n_kept``; None if there are too few."""
    missing = n_kept - n_true(base)
    if missing == 0:
        return base
    free = connectivity.connected(base) & ~base
    if not base.any() or n_true(free) < missing:
        return None
    filled = base.clone()
    filled[order[free[order]][:missing]] = True
    return filled


def trim(connectivity: Connectivity, alive: Tensor, order: Tensor, at_least: int, until: int | None = None) -> Tensor:
    """Take the lowest-ranked weights away, with all that dies with them, while ``at_least`` weights stay alive.

    Stops when no single weight can go any more, or at most ``until`` weights are left.
    """
    until = at_least if until is None else until
    candidates = order[alive[order]].flip(0)  # lowest first
    group = max(1, n_true(alive) - at_least)
    position = 0
    while position < candidates.numel() and n_true(alive) > until:
        chosen = candidates[position : position + group]
        trial = alive.clone()
        trial[chosen] = False
        trial = connectivity.alive(trial)
        if n_true(trial) >= at_least:
            alive, position, group = trial, position + group, 2 * group
        elif group > 1:
            group //= 2
            continue
        else:
            position, group = position + 1, 2  # everything hangs on this one: it stays, and the next may go in groups
        group = max(1, min(group, n_true(alive) - at_least))
    return alive
