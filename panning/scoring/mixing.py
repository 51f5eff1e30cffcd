"""Mixing indices into one score: a sum of normalised indices or a product of their powers (Kang et al. 2022, sec. 3).

Indices live on scales that differ by many orders of magnitude, so each is normalised over all layers first:

- ``mean``: |x| / mean |x|. Keeps the index's own order; a zero stays a zero.
- ``zscore``: |x - mean x| / std x of the index with its sign (w g, not |w g|), the Panning authors' form. NOTE where an
  index has no sign (magnitude) this folds: an average weight scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from panning.foundation.errors import ConfigError
from panning.foundation.registry import lookup
from panning.scoring.indices import INDICES
from panning.scoring.signals import Signals

Normaliser = Literal["mean", "zscore"]
Combination = Literal["sum", "product"]


def mix(
    weights: Mapping[str, float],
    signals: Signals,
    combination: Combination = "sum",
    normaliser: Normaliser = "mean",
) -> Tensor:
    """The mixed score, flat [n_prunable]. An index whose weight is 0 is not computed.

    Args:
        weights: index name -> weight in the sum, or exponent in the product; >= 0, not all 0.

    A single index under ``mean`` comes back as it is: normalising would not change its order. This is the only way a
    signed index can be used.
    """
    active = {name: weight for name, weight in weights.items() if weight != 0}
    if not active or min(active.values()) < 0:
        raise ConfigError(f"Index weights must be >= 0 and not all 0, given {dict(weights)}.")
    rows = {name: lookup(INDICES, name, "index") for name in active}
    signals.request(*{need for row in rows.values() for need in row.needs})
    if len(active) == 1 and normaliser == "mean":
        (row,) = rows.values()
        return row.formula(signals)
    for name, row in rows.items():
        if row.signed:
            raise ConfigError(f"Index '{name}' has negative scores and cannot be mixed; use its magnitude form.")
    mixed = torch.full_like(signals.weight, float(combination == "product"), dtype=torch.float64)
    for name, weight in active.items():
        row = rows[name]
        formula = row.with_sign if normaliser == "zscore" and row.with_sign is not None else row.formula
        scores = formula(signals)
        if combination == "sum" and normaliser == "mean":  # the common case, without a copy
            mean = scores.mean(dtype=torch.float64)
            mixed.add_(scores, alpha=weight / float(mean) if mean > 0 else weight)
        elif combination == "sum":
            mixed.add_(normalise(scores, normaliser), alpha=weight)
        else:
            mixed.mul_(normalise(scores, normaliser).pow_(weight))
    return mixed


def normalise(scores: Tensor, normaliser: Normaliser) -> Tensor:
    """``scores`` on a common scale, >= 0, in float64; a constant index becomes 0 under ``zscore``."""
    scores = scores.double()
    if normaliser == "mean":
        scores = scores.abs()
        mean = scores.mean()
        return scores / mean if mean > 0 else scores
    deviation = scores.std()
    return (scores - scores.mean()).abs() / deviation if deviation > 0 else torch.zeros_like(scores)
