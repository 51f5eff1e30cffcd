"""DPaI: masks that are learned by their paths, nodes and kernels, without data or weights (Xiang et al., ICLR 2025).

Every weight has a score; each layer keeps its best ones, as many as its quota. With P the logarithm of the number of paths
through the mask and g = dP/dm taken straight through the selection, scores climb, by Adam,

    (1 - a) g + a [(1 - b) g (no path through the weight's output unit) + b g (none through its kernel)].

NOTE The search starts from NPB's mask, whose objective it shares, and keeps that mask's layer counts; the release starts
from random scores. A unit that is cut off behind has g = 0 and gets no help, here as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from panning import flow
from panning.foundation.seeding import torch_generator
from panning.masks.allocation import allocate_by_layer
from panning.masks.masks import n_kept_at
from panning.pruners.npb import NPB, START, Numbers, counted
from panning.pruners.quotas import QUOTAS
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.pruners.told import tell_round
from panning.scoring.problem import Problem


@dataclass(frozen=True)
class DPaI:
    """A pruner that climbs from NPB's mask. A round is a step of Adam.

    Attributes:
        alpha: how much nodes and kernels count beside paths.
        beta: how much kernels count beside nodes.
        start: the first mask: NPB's, or random places with the quotas of ``npb``.
    """

    alpha: float = 0.99
    beta: float = 0.5
    learning_rate: float = 0.005
    start: Literal["npb", "random"] = "npb"
    npb: NPB = field(default_factory=NPB)
    n_rounds: int = 500
    indices: tuple[str, ...] = ()

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        layout, numbers = problem.layout, Numbers.of(problem)
        n_steps = len(rounds.targets(self.n_rounds, "exponential", density))
        generator = torch_generator(problem.seed, "dpai")
        drawn = torch.randn(layout.n_prunable, generator=generator, dtype=torch.float64).abs().to(problem.weight.device)
        if self.start == "npb":
            mask = self.npb(problem, density).mask
            counts = layout.counts(mask)
            scores = torch.cat([_ranked_by(mask[part], drawn[part]) for part in layout.slices()])
        else:
            counts = QUOTAS[self.npb.quotas](layout, n_kept_at(density, layout.n_prunable))
            scores = drawn
            mask = allocate_by_layer(scores, counts, layout)
        scores.requires_grad_()
        adam = torch.optim.Adam([scores], self.learning_rate, maximize=True)
        for number in range(n_steps):
            scores.grad = self.ascent(problem, mask, numbers)
            adam.step()
            mask = allocate_by_layer(scores.detach(), counts, layout)
            tell_round(rounds.listen, problem, mask, number + 1, n_steps, {"density": density})
        ranking = scores.detach() + mask * (scores.detach().max() - scores.detach().min())
        return PruneResult(layout, mask, ranking, ({"round": 1, "density": density, "n_steps": n_steps},))

    def ascent(self, problem: Problem, mask: Tensor, numbers: Numbers) -> Tensor:
        """The direction of the scores, flat."""
        _, gradient = path_gradient(problem, mask)
        alive = mask & (gradient > 0)
        without = [(counted(part, alive) == 0)[part].double() for part in (numbers.units, numbers.kernels)]
        lost = (1 - self.beta) * without[0] + self.beta * without[1]
        return gradient * ((1 - self.alpha) + self.alpha * lost)


def _ranked_by(mask: Tensor, drawn: Tensor) -> Tensor:
    """The same numbers, the largest where a layer's mask keeps, in an order that they draw themselves."""
    order = (mask.double() * (1 + drawn.max()) + drawn).argsort()
    return torch.empty_like(drawn).index_copy_(0, order, drawn.sort().values)


def path_gradient(problem: Problem, mask: Tensor) -> tuple[float, Tensor]:
    """The natural logarithm of the number of paths through ``mask``, and its derivative by every weight's gate, flat.

    Both are 0 where no path leads to the output.
    """
    gates = mask.double().requires_grad_()
    others = {name: torch.ones_like(p, dtype=torch.float64) for name, p in problem.other_parameters().items()}
    with torch.enable_grad():
        parameters = {**others, **problem.layout.views(gates)}
        outputs = problem.example.paths(problem.model, parameters, flow.counting(), torch.float64, START)
        total = torch.stack([output.sum() for output in outputs]).sum() if outputs else gates.sum() * 0.0
        if not bool(total > 0):
            return 0.0, torch.zeros_like(gates)
        (gradient,) = flow.gradients(total.log(), gates)
    start = torch.tensor(START, dtype=torch.float64)
    return float(total.detach().log() - start.log()), torch.nan_to_num(gradient.detach())
