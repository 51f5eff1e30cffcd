"""Allocation: from scores and a number of weights to a mask that keeps exactly that number.

Never by comparing with a threshold: dead weights all score exactly 0, so ties are normal at high sparsity, and
``score >= threshold`` would keep too many, ``>`` too few. Ties go to the lower flat index, which is a stable order:
for nested budgets the masks are nested.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panning.errors import DensityError, NonFiniteError
from panning.layout import Layout


def top_k(scores: Tensor, n_kept: int) -> Tensor:
    """Keep the ``n_kept`` highest scores of a flat tensor; among equals the first.

    Returns:
        bool, the shape of ``scores``, with exactly ``n_kept`` True.
    """
    n = scores.numel()
    if not 0 <= n_kept <= n:
        raise DensityError(f"Cannot keep {n_kept} of {n} weights.")
    if n_kept == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # A selection costs O(n) where a stable sort costs O(n log n): on 20 million weights that is seconds.
    threshold = scores.kthvalue(n - n_kept + 1).values
    mask = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(-1)
    mask[ties[: n_kept - int(mask.sum())]] = True
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
            weighted with it (METHODS A13: quotas and concentration are two different levers).
        noise: flat, one uniform draw per weight; needed if ``spread`` > 0.

    Raises:
        NonFiniteError: for a NaN or infinite score, with the layer's name.
        DensityError: if there are fewer candidates than ``n_kept``.
    """
    check_finite(scores, layout)
    if not 0.0 <= spread <= 1.0:
        raise DensityError(f"Spread is {spread}, but must be in [0, 1].")
    if candidates is not None:
        if (n_candidates := int(candidates.sum())) < n_kept:
            raise DensityError(f"Cannot keep {n_kept} weights: only {n_candidates} are left without revival.")
        scores = scores.masked_fill(~candidates, -torch.inf)
    mask = top_k(scores, n_kept)
    if spread == 0.0:
        return mask
    if noise is None:
        raise DensityError("A spread above 0 places weights at random and needs noise.")
    for part in layout.slices():
        mask[part] = _spread_layer(scores[part], int(mask[part].sum()), spread, noise[part])
    return mask


def _spread_layer(scores: Tensor, n_kept: int, spread: float, noise: Tensor) -> Tensor:
    if n_kept in (0, scores.numel()):
        return torch.full_like(scores, n_kept > 0, dtype=torch.bool)
    key = noise.double()
    if spread < 1.0:
        rank = torch.empty_like(key)
        order = scores.argsort(stable=True)
        rank[order] = torch.arange(scores.numel(), dtype=key.dtype, device=key.device) / scores.numel()
        key = (1.0 - spread) * rank + spread * key
    return top_k(key.masked_fill(scores == -torch.inf, -torch.inf), n_kept)


def allocate_by_layer(scores: Tensor, counts: list[int], layout: Layout) -> Tensor:
    """A flat mask that keeps ``counts[i]`` highest scores of layer i."""
    check_finite(scores, layout)
    return torch.cat([top_k(scores[part], count) for part, count in zip(layout.slices(), counts, strict=True)])


def check_finite(scores: Tensor, layout: Layout) -> None:
    """Raise NonFiniteError with the first layer that has a NaN or infinite score."""
    if torch.isfinite(scores).all():
        return
    layer = next(name for name, part in layout.views(scores).items() if not torch.isfinite(part).all())
    raise NonFiniteError(f"Layer '{layer}' has NaN or infinite scores; no mask was made.")


def round_counts(quotas: list[float], n_kept: int, sizes: tuple[int, ...]) -> list[int]:
    """Whole numbers near ``quotas`` that sum to exactly ``n_kept``, each within [0, size] (largest remainders first)."""
    counts = [min(int(quota), size) for quota, size in zip(quotas, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], -sizes[i]))
    while (missing := n_kept - sum(counts)) > 0:
        open_layers = [i for i in by_remainder if counts[i] < sizes[i]][:missing]
        if not open_layers:
            raise DensityError(f"Cannot keep {n_kept} of {sum(sizes)} weights.")
        for i in open_layers:
            counts[i] += 1
    for i in reversed(by_remainder):
        surplus = max(0, sum(counts) - n_kept)
        counts[i] -= min(surplus, counts[i])
    return counts


def uniform_counts(layout: Layout, n_kept: int) -> list[int]:
    """The same density in every layer."""
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
