"""Controls: what a method's mask is worth apart from its layer quotas (Frankle et al. 2021; Su et al. 2020; METHODS A12).

A method whose mask trains no better than its control has found layer quotas, not weights. Compare at equal effective
density: a shuffled mask has dead weights that cost accuracy by themselves (``all_alive`` mends them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from panning.layout import Layout
from panning.problem import Problem
from panning.pruners.rounds import PruneResult, Rounds
from panning.seeding import torch_generator

Prune = Callable[[Problem, Rounds], PruneResult]


def shuffle(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """The method's count in every layer, positions drawn at random."""
    result = prune(problem, rounds)
    order = permutation(problem.layout, problem.seed, "shuffle").to(result.mask.device)
    # The scores move along, so that all-alive revives inside the shuffled picture.
    return dataclasses.replace(result, mask=result.mask[order], scores=result.scores[order])


def reinitialise(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """The method's mask for other initial weights: every layer's own, in another order."""
    order = permutation(problem.layout, problem.seed, "reinitialise").to(problem.weight.device)
    return prune(dataclasses.replace(problem, initial=problem.weight[order]), rounds)


def invert(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """The lowest scores kept in every round. Methods that draw at random are left as they are."""
    return prune(problem, dataclasses.replace(rounds, inverted=True))


CONTROLS: dict[str, Callable[[Problem, Rounds, Prune], PruneResult]] = {
    "shuffle": shuffle,
    "reinitialise": reinitialise,
    "invert": invert,
}


def permutation(layout: Layout, seed: int, name: str) -> Tensor:
    """Flat positions [n_prunable], permuted inside every layer."""
    generator = torch_generator(seed, name)
    parts = zip(layout.offsets, layout.sizes, strict=False)
    return torch.cat([start + torch.randperm(size, generator=generator) for start, size in parts])
