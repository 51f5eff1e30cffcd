"""What the speed benchmark works on: one network, one batch of noise, and the plain passes that others are timed beside."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.foundation.device import find_device
from panning.masks.enforce import enforce_masks
from panning.masks.masks import Masks, n_kept_at
from panning.measure.authors import AuthorsStep
from panning.measure.clock import Run
from panning.measure.networks import network_of, random_batch
from panning.scoring.problem import Problem

SEED = 0
#: The density of masks that are made or tested.
DENSITY = 0.05


@dataclass(frozen=True, eq=False)
class Workbench:
    """One network and one random batch.

    Attributes:
        name: of the network.
    """

    name: str
    problem: Problem
    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, model: str, input_shape: tuple[int, ...], n_classes: int, n_samples: int, device: str = "cpu"
    ) -> Workbench:
        place = find_device(device)
        inputs, labels = (part.to(place) for part in random_batch(model, input_shape, n_classes, n_samples, SEED))
        network = network_of(model, input_shape, n_classes, SEED).to(place)
        problem = Problem.of(network, input_shape, lambda number: (inputs, labels), seed=SEED)
        _ = problem.weight  # made once in the life of a problem, so not part of any round
        return cls(model, problem, inputs, labels)

    @cached_property
    def plain(self) -> nn.Module:
        """A copy of the problem's model, for plain PyTorch, which changes it."""
        return copy.deepcopy(self.problem.model)

    @cached_property
    def authors(self) -> AuthorsStep:
        """An episode of the Panning authors' environment; its steps keep nothing, so it is made once."""
        return AuthorsStep(self.problem.model, self.problem.layout.names, self.inputs, self.labels)

    def clear(self) -> None:
        """Free the gradients that plain passes leave behind."""
        if "plain" in vars(self):
            self.plain.zero_grad(set_to_none=True)

    @property
    def n_kept(self) -> int:
        return n_kept_at(DENSITY, self.problem.layout.n_prunable)

    @property
    def is_of_images(self) -> bool:
        return self.inputs.is_floating_point()

    def dense(self) -> Tensor:
        return torch.ones_like(self.problem.weight, dtype=torch.bool)


def plain_pass(bench: Workbench, network: nn.Module | None = None) -> Run:
    """A forward and backward pass.

    Args:
        network: in place of the workbench's own.
    """
    bench.clear()
    network = bench.plain if network is None else network

    def run() -> None:
        network.train()
        F.cross_entropy(network(bench.inputs), bench.labels).backward()

    return run


def training_step(bench: Workbench, masks: Masks | None = None, network: nn.Module | None = None) -> Run:
    """A pass and a step of SGD. Gradients and momentum are made inside, so that they count as its memory."""
    network = bench.plain if network is None else network
    plain = plain_pass(bench, network)
    # the rate is so low that the network stays as it is
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
    if masks is not None:
        enforce_masks(network, masks, optimizer)

    def run() -> torch.optim.Optimizer:
        plain()
        optimizer.step()
        return optimizer

    return run


def pass_of_one(bench: Workbench) -> Run:
    """A pass of one input in float64: the least that SynFlow's round must do."""
    model = copy.deepcopy(bench.problem.model).double().eval()
    inputs, labels = bench.inputs[:1].double() if bench.is_of_images else bench.inputs[:1], bench.labels[:1]
    return lambda: F.cross_entropy(model(inputs), labels).backward()
