"""Random masks with layer quotas: exact counts per layer, positions drawn uniformly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from panning.masks.allocation import (
    allocate_by_layer,
    erk_counts,
    igq_counts,
    smart_ratio_counts,
    uniform_counts,
    uniform_plus_counts,
)
from panning.masks.layout import Layout
from panning.masks.masks import n_kept_at
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.scoring.problem import Problem

QUOTAS: dict[str, Callable[[Layout, int], list[int]]] = {
    "uniform": uniform_counts,
    "uniform_plus": uniform_plus_counts,
    "erk": erk_counts,
    "igq": igq_counts,
    "smart_ratio": smart_ratio_counts,
    "smart_ratio_vgg": partial(smart_ratio_counts, depth_power=2.0),
}


@dataclass(frozen=True)
class RandomQuotas:
    """A pruner that keeps random weights in each layer, as many as a row of ``QUOTAS`` says. It has one round."""

    quotas: str
    n_rounds: int = 1
    indices: tuple[str, ...] = ()

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        counts = QUOTAS[self.quotas](problem.layout, n_kept_at(density, problem.layout.n_prunable))
        mask = allocate_by_layer(problem.noise, counts, problem.layout)
        return PruneResult(problem.layout, mask, problem.noise, ({"round": 1, "density": density},))
