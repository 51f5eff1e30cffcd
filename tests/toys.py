"""Small networks whose answers are known by hand, and a problem around any network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panning.masks.layout import Layout
from panning.pruners import PRUNERS
from panning.pruners.structured import KeepUnits
from panning.scoring.problem import Problem
from panning.testing.networks import ResidualNet, residual_problem

__all__ = ["OF_UNITS", "ResidualNet", "chain", "flat_mask", "mlp_problem", "residual_problem"]

#: The methods that keep whole units, and so have a smallest density.
OF_UNITS = [name for name, row in PRUNERS.items() if isinstance(row.pruner, KeepUnits)]


def chain(*matrices: list[list[float]], activation: type[nn.Module] = nn.Identity, bias: bool = False) -> nn.Sequential:
    """Linear layers with the given weights [out][in] and zero biases, an activation between them."""
    layers: list[nn.Module] = []
    for rows in matrices:
        weight = torch.tensor(rows)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
        linear.weight.data = weight
        if bias:
            linear.bias.data.zero_()
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def mlp_problem(seed: int = 0, sizes: tuple[int, ...] = (6, 8, 8, 3), dtype: torch.dtype = torch.float32) -> Problem:
    """An MLP with tanh (smooth, so that finite differences are exact enough) and a fixed scoring batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), nn.Tanh()]
        model = nn.Sequential(*layers[:-1]).to(dtype)
        inputs = torch.randn(9, sizes[0], dtype=dtype)
    labels = torch.arange(9) % sizes[-1]
    return Problem.of(model, (sizes[0],), lambda number: (inputs, labels), seed=seed)


def flat_mask(layout: Layout, density: float, seed: int) -> Tensor:
    """A random mask, each weight kept with probability ``density``."""
    return torch.rand(layout.n_prunable, generator=torch.Generator().manual_seed(seed)) < density
