"""Allocation: from scores and a number of weights to a mask that keeps exactly that number.

Scores are never compared with a threshold: dead weights all score exactly 0, so ties are normal at high sparsity, and
``score >= threshold`` would keep too many, ``>`` too few. Among equals every layer keeps the same share, scattered over the
layer: a scale that starts at zero makes all scores behind it 0, and the order in which layers were registered must not
decide between them. The order of equals is fixed (``panning.masks.equals``), so that masks of nested budgets are nested.
Methods that move masks while a network trains draw lots instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from panning.foundation.errors import DensityError, NonFiniteError
from panning.masks.equals import first_evenly
from panning.masks.layout import Layout
from panning.masks.selection import in_memory, kth_largest, n_true, spread_mask


def top_k(
    scores: Tensor, n_kept: int, generator: torch.Generator | None = None, *, sizes: Sequence[int] | None = None
) -> Tensor:
    """Keep the ``n_kept`` highest scores of a flat tensor; among equals the first.

    Args:
        generator: a generator on the CPU; if given, lots decide among equals.
        sizes: of the layers that lie one after the other in ``scores``; if given, each keeps the same share of its equals.

    Returns:
        bool, the shape of ``scores``, with exactly ``n_kept`` True.
    """
    n = scores.numel()
    if not 0 <= n_kept <= n:
        raise DensityError(f"Cannot keep {n_kept} of {n} weights.")
    if n_kept == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    memory = in_memory(scores)
    threshold = kth_largest(scores if memory is None else memory, n_kept)
    mask = scores >= threshold
    n_surplus = n_true(mask) - n_kept
    if n_surplus == 0 and generator is None:
        return mask
    ties = (scores == threshold).nonzero().squeeze(-1)
    if generator is not None:
        ties = ties[torch.randperm(len(ties), generator=generator).to(ties.device)]
    elif sizes is not None:
        mask[ties] = False
        mask[first_evenly(ties, sizes, len(ties) - n_surplus)] = True
        return mask
    mask[ties[len(ties) - n_surplus :]] = False
    return mask


def allocate(
    scores: Tensor,
    n_kept: int,
    layout: Layout,
    *,
    candidates: Tensor | None = None,
    spread: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """A flat mask with exactly ``n_kept`` weights.

    The global ranking sets how many weights each layer keeps; ``spread`` says where they lie inside the layer.

    Args:
        scores: flat [n_prunable], finite; higher is kept.
        candidates: flat bool; only these may be kept (a method without revival passes its previous mask). None: all.
        spread: 0 places a layer's weights by score, 1 by ``noise`` alone; between, by the mean of the two ranks
            weighted with it (quotas and concentration are two different levers).
        noise: flat, one uniform draw per weight; needed if ``spread`` > 0.

    Raises:
        NonFiniteError: for a NaN or infinite score, with the layer's name.
        DensityError: if there are fewer candidates than ``n_kept``.
    """
    check_finite(scores, layout)
    if not 0.0 <= spread <= 1.0:
        raise DensityError(f"Spread is {spread}, but must be in [0, 1].")
    if candidates is not None:
        if (n_candidates := n_true(candidates)) < n_kept:
            raise DensityError(f"Cannot keep {n_kept} weights: only {n_candidates} are left without revival.")
        scores = scores.masked_fill(~candidates, -torch.inf)
    mask = top_k(scores, n_kept, sizes=layout.sizes)
    if spread == 0.0:
        return mask
    if noise is None:
        raise DensityError("A spread above 0 places weights at random and needs noise.")
    for part in layout.slices():
        mask[part] = _spread_layer(scores[part], n_true(mask[part]), spread, noise[part])
    return mask


def _spread_layer(scores: Tensor, n_kept: int, spread: float, noise: Tensor) -> Tensor:
    if n_kept in (0, scores.numel()):
        return torch.full_like(scores, n_kept > 0, dtype=torch.bool)
    if spread < 1.0 and (memory := in_memory(scores)) is not None:
        return torch.from_numpy(spread_mask(memory, n_kept, spread, noise.double().numpy()))
    key = spread_key(scores, spread, noise)
    return top_k(key.masked_fill(scores == -torch.inf, -torch.inf), n_kept)


def spread_key(scores: Tensor, spread: float, noise: Tensor) -> Tensor:
    """What places the weights of a layer under a spread: the mean of rank and noise, weighted with it; float64."""
    key = noise.double()
    if spread == 1.0:
        return key
    rank = torch.empty_like(key)
    order = scores.argsort(stable=True)
    rank[order] = torch.arange(scores.numel(), dtype=key.dtype, device=key.device) / scores.numel()
    return (1.0 - spread) * rank + spread * key


def allocate_by_layer(scores: Tensor, counts: list[int], layout: Layout) -> Tensor:
    """A flat mask that keeps the ``counts[i]`` highest scores of layer i."""
    check_finite(scores, layout)
    parts = zip(layout.slices(), layout.sizes, counts, strict=True)
    return torch.cat([top_k(scores[part], count, sizes=(size,)) for part, size, count in parts])


def check_finite(scores: Tensor, layout: Layout) -> None:
    """Raise NonFiniteError with the first layer that has a NaN or infinite score."""
    if (layer := layout.first_non_finite(scores)) is None:
        return
    raise NonFiniteError(f"Layer '{layer}' has NaN or infinite scores; no mask was made.")


def round_counts(quotas: list[float], n_kept: int, sizes: tuple[int, ...]) -> list[int]:
    """Whole numbers near ``quotas`` that sum to exactly ``n_kept``, each within [0, size] (largest remainders first)."""
    counts = [min(int(quota), size) for quota, size in zip(quotas, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], -sizes[i]))
    if n_kept > sum(sizes):
        raise DensityError(f"Cannot keep {n_kept} of {sum(sizes)} weights.")
    if (missing := n_kept - sum(counts)) > 0:
        # One more for each layer with room, as often as that fits; then one more for the first of those still open.
        room = [size - count for size, count in zip(sizes, counts, strict=True)]
        times = range(max(room) + 1)
        fits = bisect_right(times, missing, key=lambda n: sum(min(n, free) for free in room)) - 1
        counts = [count + min(fits, free) for count, free in zip(counts, room, strict=True)]
        for i in [i for i in by_remainder if counts[i] < sizes[i]][: n_kept - sum(counts)]:
            counts[i] += 1
    for i in reversed(by_remainder):
        surplus = max(0, sum(counts) - n_kept)
        counts[i] -= min(surplus, counts[i])
    return counts


def uniform_counts(layout: Layout, n_kept: int) -> list[int]:
    """Uniform quotas: the same density in every layer."""
    density = n_kept / layout.n_prunable
    return round_counts([density * size for size in layout.sizes], n_kept, layout.sizes)


def erk_counts(layout: Layout, n_kept: int) -> list[int]:
    """Erdos-Renyi-Kernel quotas (Evci et al. 2020): density of a layer proportional to sum(shape) / prod(shape).

    Layers whose density would exceed 1 stay dense, the layers with the largest raw score first, and the budget of the
    rest is solved again.
    """
    sizes = layout.sizes
    raw = [sum(shape) / size for shape, size in zip(layout.shapes, sizes, strict=True)]
    dense: set[int] = set()
    scale = 0.0
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        budget = n_kept - sum(sizes[i] for i in dense)
        if not rest or budget <= 0:
            break
        scale = budget / sum(raw[i] * sizes[i] for i in rest)
        largest = max(raw[i] for i in rest)
        if scale * largest <= 1.0:
            break
        dense |= {i for i in rest if raw[i] == largest}
    quotas = [float(size) if i in dense else scale * raw[i] * size for i, size in enumerate(sizes)]
    return round_counts(quotas, n_kept, sizes)


def uniform_plus_counts(layout: Layout, n_kept: int) -> list[int]:
    """Uniform+ (Gale et al. 2019): the first convolution dense, the classifier at least 0.2 dense, the rest uniform.

    Raises:
        DensityError: if there is no convolution, or the first one and the classifier alone exceed the budget.
    """
    sizes, last = layout.sizes, len(layout.sizes) - 1
    first = next((i for i, shape in enumerate(layout.shapes) if len(shape) > 2), None)
    if first is None or last == first:
        raise DensityError("Uniform+ keeps the first convolution dense: it is not defined for a network without one.")
    rest = [i for i in range(len(sizes)) if i != first]
    density = (n_kept - sizes[first]) / sum(sizes[i] for i in rest)
    quotas = [density * size for size in sizes]
    quotas[first] = float(sizes[first])
    if density < 0.2:  # the classifier's surplus is taken from the layers between
        quotas[last] = 0.2 * sizes[last]
        between = [i for i in rest if i != last]
        left = n_kept - quotas[first] - quotas[last]
        for i in between:
            quotas[i] = left * sizes[i] / sum(sizes[j] for j in between)
    if min(quotas) < 0:
        raise DensityError(
            f"Uniform+ keeps the first convolution dense and a fifth of the classifier: {int(quotas[first] + quotas[last])} "
            f"weights, more than the {n_kept} asked for. The smallest density is "
            f"{(quotas[first] + quotas[last]) / layout.n_prunable:.3g}."
        )
    return round_counts(quotas, n_kept, sizes)


def igq_counts(layout: Layout, n_kept: int) -> list[int]:
    """Ideal-gas quotas (Vysogorets and Kempe 2023): density of layer l is 1 / (1 + F n_l), F found by bisection."""
    sizes = layout.sizes
    if n_kept == layout.n_prunable:
        return list(sizes)
    low, high = 1e-20, 1e20
    for _ in range(200):
        middle = (low * high) ** 0.5
        if sum(size / (1 + middle * size) for size in sizes) > n_kept:
            low = middle
        else:
            high = middle
    return round_counts([size / (1 + high * size) for size in sizes], n_kept, sizes)


#: Density of the classifier under smart ratio quotas.
SMART_CLASSIFIER = 0.3


def smart_ratio_counts(layout: Layout, n_kept: int, depth_power: float = 0.0) -> list[int]:
    """Smart ratio quotas (Su et al. 2020): density of layer i of L proportional to k^2 + k, k = L - i + 1, and of the
    classifier 0.3; what exceeds a layer goes to the ones after it.

    Args:
        depth_power: also divide by i to this power; the paper takes 2 for VGG.

    Raises:
        DensityError: if the classifier alone exceeds the budget.
    """
    sizes = layout.sizes
    n_layers = len(sizes)
    classifier = SMART_CLASSIFIER * sizes[-1] if n_kept < layout.n_prunable else float(sizes[-1])
    left = n_kept - classifier
    if left < 0:
        raise DensityError(
            f"Smart ratio keeps {SMART_CLASSIFIER} of the classifier: {int(classifier)} weights, more than the {n_kept} "
            f"asked for. The smallest density is {classifier / layout.n_prunable:.3g}."
        )
    raw = [((n_layers - i) ** 2 + (n_layers - i)) / (i + 1) ** depth_power for i in range(n_layers - 1)]
    total = sum(ratio * size for ratio, size in zip(raw, sizes, strict=False))
    quotas = [left * ratio * size / total for ratio, size in zip(raw, sizes, strict=False)]
    surplus = 0.0
    for i, size in enumerate(sizes[:-1]):
        quotas[i], surplus = min(quotas[i] + surplus, size), max(0.0, quotas[i] + surplus - size)
    return round_counts([*quotas, classifier], n_kept, sizes)
