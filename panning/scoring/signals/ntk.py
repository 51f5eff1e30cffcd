"""NTK-SAP: how much the mask matters for the network's neural tangent kernel, at weights that are not the network's own.

Wang, Li and Sun, ICLR 2023: with random images Z, fresh weights v and a small perturbation d,
S_j = |d/dm_j of sum |f(Z; v * m) - f(Z; (v + d) * m)|^2|, which approximates the mask gradient of the kernel's trace.

NOTE Fresh weights are He-normal (fan in) for every layer and biases are 0, whatever initialiser the network has: the score
depends on the structure and the mask alone. The released code calls the model's own initialiser, which is He's too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from panning import flow
from panning.foundation.errors import ForwardError
from panning.foundation.nests import map_tensors, n_samples, told
from panning.foundation.seeding import torch_generator
from panning.scoring.problem import Problem
from panning.scoring.signals.site import Site

#: Resampled weights and images per round, images each, and the standard deviation of the perturbation.
N_RESAMPLES = 5
N_IMAGES = 100
EPSILON = 0.01


def sensitivity(site: Site) -> dict[str, Tensor]:
    """``ntk_grad``: d/dm, flat; 0 at masked weights."""
    problem = site.problem
    others = problem.other_parameters()
    total = torch.zeros_like(problem.weight)
    for number in range(N_RESAMPLES):
        generator = torch_generator(problem.seed, "ntk-sap", site.round_number, number)

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float32).to(problem.weight)

        images = _random_inputs(problem.example, draw)
        fresh = draw(problem.layout.n_prunable) * he_deviations(problem).to(problem.weight)
        moved = fresh + EPSILON * draw(problem.layout.n_prunable)
        gates = site.mask.to(fresh.dtype).requires_grad_()
        statistics: list[tuple[Tensor, Tensor]] = []

        def outputs(flat: Tensor, rules: dict[Any, flow.Rule], images: Any = images) -> list[Tensor]:
            parameters = {**others, **problem.layout.views(flat)}
            return problem.example.outputs(
                problem.model, parameters, images, {**flow.WITHOUT_BIAS, **rules}, flat.dtype
            )

        try:
            with torch.no_grad():
                outputs(fresh * site.kept, flow.recording_statistics(statistics))
        except ForwardError as error:
            raise ForwardError(
                f"NTK-SAP feeds a network random real inputs ({told(images)}), which this one does not take: {error}"
            ) from error
        two = (outputs(flat * gates, flow.replaying_statistics(statistics)) for flat in (fresh, moved))
        pairs = zip(*two, strict=True)
        distance = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
        (grad,) = flow.gradients(distance, gates)
        total += grad * site.kept
    return {"ntk_grad": total}


def _random_inputs(example: flow.Example, draw: Callable[..., Tensor]) -> Any:
    """Random values in place of an example's real inputs; ``N_IMAGES`` samples where the example is one sample."""
    n = N_IMAGES if n_samples(example.inputs) == 1 else None

    def one(tensor: Tensor) -> Tensor:
        several = tensor if n is None or not tensor.dim() else tensor.expand(n, *tensor.shape[1:])
        return draw(*several.shape) if example.flows(tensor) else several

    return map_tensors(one, example.inputs)


def he_deviations(problem: Problem) -> Tensor:
    """sqrt(2 / fan in) for every weight, flat; fan in is the number of weights into one output unit."""
    fans = [units.shape[1] for units in problem.by_unit(problem.weight).values()]
    return problem.layout.per_layer([math.sqrt(2 / max(1, fan)) for fan in fans], torch.float32)
