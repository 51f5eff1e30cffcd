"""Controls: what a method's mask is worth apart from its layer quotas (Frankle et al. 2021; Su et al. 2020).

A method whose mask trains no better than its control has found layer quotas, not weights. Compare at equal effective
density: a shuffled mask has dead weights that cost accuracy by themselves (``all_alive`` mends them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.foundation.seeding import torch_generator
from panning.masks.layout import Layout
from panning.pruners.rounds import PruneResult, Rounds, make_all_alive
from panning.scoring.problem import Problem

Prune = Callable[[Problem, Rounds], PruneResult]


def shuffle(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """The method's count in every layer, positions drawn at random."""
    result = prune(problem, rounds)
    order = permutation(problem.layout, problem.seed, "shuffle").to(result.mask.device)
    # The scores move along, so that all-alive revives inside the shuffled picture.
    return PruneResult(result.layout, result.mask[order], result.scores[order], result.history)


def shuffle_alive(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """As many alive weights as the method's mask has, their counts in the layers shuffled, and all alive again.

    The comparison at equal effective density. What a shuffle cuts off moves to where it can be alive, so that the counts of
    the layers are the method's but for these weights.
    """
    result = prune(problem, rounds)
    order = permutation(problem.layout, problem.seed, "shuffle").to(result.mask.device)
    alive = Connectivity.of(problem).alive(result.mask)
    return make_all_alive(problem, dataclasses.replace(result, mask=alive[order], scores=result.scores[order]))


def reinitialise(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """The method's mask for other initial weights: every layer's own, in another order.

    NOTE Frankle et al. keep the mask and train other weights, drawn from the initialiser; here the weights that are trained
    stay, and the mask is found at others, drawn by permutation. That needs to know no initialiser, and is a draw from it
    where a layer's weights are independent and alike; where they are not (orthogonal, all zero) it is another network.
    A method that does not read the weights (quotas, NTK-SAP) gives the same mask.
    """
    order = permutation(problem.layout, problem.seed, "reinitialise").to(problem.weight.device)
    return prune(dataclasses.replace(problem, initial=problem.weight[order]), rounds)


def invert(problem: Problem, rounds: Rounds, prune: Prune) -> PruneResult:
    """The lowest scores kept in every round."""
    return prune(problem, dataclasses.replace(rounds, inverted=True))


@dataclass(frozen=True)
class Control:
    """A way to change a method, against which the method's masks are compared.

    Attributes:
        run: prunes with the changed method.
        of_scores: the control says something only about methods that rank by an index.
    """

    run: Callable[[Problem, Rounds, Prune], PruneResult]
    of_scores: bool = False


CONTROLS: dict[str, Control] = {
    "shuffle": Control(shuffle),
    "shuffle_alive": Control(shuffle_alive),
    "reinitialise": Control(reinitialise),
    "invert": Control(invert, of_scores=True),
}


def permutation(layout: Layout, seed: int, name: str) -> Tensor:
    """Flat positions [n_prunable], permuted inside every layer."""
    generator = torch_generator(seed, name)
    parts = zip(layout.offsets, layout.sizes, strict=False)
    return torch.cat([start + torch.randperm(size, generator=generator) for start, size in parts])
