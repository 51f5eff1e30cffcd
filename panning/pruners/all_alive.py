"""All-alive pruning: exactly k weights, every one of them alive (after Kim et al. 2021, 2023; METHODS B3).

Every method leaves dead weights at high sparsity: kept, but on no path from input to output. The budget they waste is
given back to the highest-ranked weights that can be alive.

Let order be the ranking of all weights (the method's own mask first) and TopK(n) its first n. The alive weights of
nested masks are nested, so a(n) = |alive(TopK(n))| never falls. The largest n with a(n) <= k is found by bisection; the
few weights still missing are taken from the ranking among those whose two ends are alive, each of which adds exactly one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panning.connectivity import Connectivity
from panning.errors import DensityError
from panning.problem import Problem
from panning.pruners.rounds import PruneResult


def make_all_alive(problem: Problem, result: PruneResult) -> PruneResult:
    """The same number of weights, all alive; see ``all_alive``."""
    mask = all_alive(Connectivity.of(problem), result.mask, result.scores)
    return PruneResult(result.layout, mask, result.scores, result.history)


def all_alive(connectivity: Connectivity, mask: Tensor, scores: Tensor) -> Tensor:
    """A mask with as many weights as ``mask``, all alive.

    Args:
        mask: flat bool, the method's own choice.
        scores: flat; ranks the weights inside and outside ``mask``.

    Raises:
        DensityError: if so few weights cannot reach from input to output, naming the smallest number that can.
    """
    n_kept = int(mask.sum())
    if connectivity.n_alive(mask) == n_kept:
        return mask
    connectivity.check_reachable(n_kept)
    order = ranking(mask, scores)
    n_fits = _largest_fitting(connectivity, order, n_kept)
    base = connectivity.alive(first(order, n_fits))
    if filled := _fill(connectivity, base, order, n_kept):
        return filled[0]
    # Nothing is connected yet, or the living units have no free places left: go one weight further, which opens new
    # paths but too many weights, and take the least of them away again.
    for start in (first(order, n_fits + 1), torch.ones_like(mask)):
        trimmed = trim(connectivity, connectivity.alive(start), order, at_least=n_kept)
        if int(trimmed.sum()) > n_kept:
            trimmed = trim(connectivity, trimmed, order, at_least=1, until=n_kept)
        if int(trimmed.sum()) <= n_kept and (filled := _fill(connectivity, trimmed, order, n_kept)):
            return filled[0]
    raise DensityError(
        f"No set of exactly {n_kept} alive weights was found; at most {connectivity.n_alive(torch.ones_like(mask))} weights "
        f"of this network can be alive, and the shortest path has {connectivity.smallest_alive()}."
    )


def ranking(mask: Tensor, scores: Tensor) -> Tensor:
    """Flat positions, best first: the weights of ``mask`` by score, then all others by score; stable."""
    by_score = scores.argsort(descending=True, stable=True)
    return by_score[mask[by_score].to(torch.int8).argsort(descending=True, stable=True)]


def first(order: Tensor, n: int) -> Tensor:
    """The flat mask of the first ``n`` positions of a ranking."""
    mask = torch.zeros(order.numel(), dtype=torch.bool, device=order.device)
    mask[order[:n]] = True
    return mask


def _largest_fitting(connectivity: Connectivity, order: Tensor, n_kept: int) -> int:
    """The largest n with a(n) <= n_kept, by galloping from n_kept and bisection; a(n_kept) <= n_kept always holds."""
    total = order.numel()
    low, step = n_kept, max(1, n_kept // 8)
    high = min(low + step, total)
    while connectivity.n_alive(first(order, high)) <= n_kept:
        if high == total:
            return total
        low, step = high, 2 * step
        high = min(low + step, total)
    while high - low > 1:
        middle = (low + high) // 2
        if connectivity.n_alive(first(order, middle)) <= n_kept:
            low = middle
        else:
            high = middle
    return low


def _fill(connectivity: Connectivity, base: Tensor, order: Tensor, n_kept: int) -> tuple[Tensor] | None:
    """``base`` with the best-ranked weights between living units added up to ``n_kept``; None if there are too few."""
    missing = n_kept - int(base.sum())
    if missing == 0:
        return (base,)
    free = connectivity.connected(base) & ~base
    if not base.any() or int(free.sum()) < missing:
        return None
    filled = base.clone()
    filled[order[free[order]][:missing]] = True
    return (filled,)


def trim(connectivity: Connectivity, alive: Tensor, order: Tensor, at_least: int, until: int | None = None) -> Tensor:
    """Take the lowest-ranked weights away, with all that dies with them, while ``at_least`` weights stay alive.

    Stops when no single weight can go any more, or at most ``until`` weights are left.
    """
    until = at_least if until is None else until
    candidates = order[alive[order]].flip(0)  # lowest first
    group = max(1, int(alive.sum()) - at_least)
    position = 0
    while position < candidates.numel() and int(alive.sum()) > until:
        chosen = candidates[position : position + group]
        trial = alive.clone()
        trial[chosen] = False
        trial = connectivity.alive(trial)
        if int(trial.sum()) >= at_least:
            alive, position, group = trial, position + group, 2 * group
        elif group > 1:
            group //= 2
            continue
        else:
            position, group = position + 1, 2  # everything hangs on this one: it stays, and the next may go in groups
        group = max(1, min(group, int(alive.sum()) - at_least))
    return alive
