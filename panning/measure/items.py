"""What the speed benchmark times: plain PyTorch as the reference, signals, environment rounds, one round of each method.

An item *prepares* a callable, untimed, and the callable is what is timed. It is prepared anew for every repetition:
signals and problems keep what they computed, and a second call would only look it up.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from panning.alive.connectivity import Connectivity
from panning.envs import PanningEnv
from panning.foundation.device import find_device
from panning.foundation.seeding import torch_generator
from panning.masks.allocation import allocate, top_k
from panning.masks.enforce import enforce_masks
from panning.masks.masks import Masks, n_kept_at
from panning.measure.clock import Run
from panning.measure.report import STEP
from panning.models import build_model
from panning.pruners import PRUNERS, Rounds
from panning.scoring.mixing import mix
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals
from panning.tasks import Task

SEED = 0
#: The density of masks that are made or tested. The timed environment round leads from one ROUND_DENSITIES to the next.
DENSITY = 0.05
ROUND_DENSITIES = (0.2, 0.1)
#: How far a layer's weights are spread in a round that is timed with spread, as trained agents' rounds are.
SPREAD = 0.3
N_ROUNDS = 3
#: Items that others are timed beside.
PASS, PASS_OF_ONE = "pass", "pass of one, float64"
FIRST_ORDER = {"magnitude": 1.0, "snip": 1.0, "synflow": 1.0}
SECOND_ORDER = {**FIRST_ORDER, "grasp": 1.0}


@dataclass(frozen=True, eq=False)
class Workbench:
    """One network and one random batch.

    Attributes:
        plain: a copy of the problem's model, for plain PyTorch, which changes it.
    """

    problem: Problem
    plain: nn.Module
    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, model: str, input_shape: tuple[int, ...], n_classes: int, n_samples: int, device: str = "cpu"
    ) -> Workbench:
        place = find_device(device)
        generator = torch_generator(SEED, "speed")
        inputs = torch.randn(n_samples, *input_shape, generator=generator).to(place)
        labels = torch.randint(n_classes, (n_samples,), generator=generator).to(place)
        network = build_model(model, input_shape=input_shape, n_classes=n_classes, seed=SEED).to(place)
        problem = Problem.of(network, input_shape, lambda number: (inputs, labels), seed=SEED)
        _ = problem.weight  # made once in the life of a problem, so not part of any round
        return cls(problem, copy.deepcopy(network), inputs, labels)

    def clear(self) -> None:
        """Free the gradients that plain passes leave behind."""
        self.plain.zero_grad(set_to_none=True)

    @property
    def n_kept(self) -> int:
        return n_kept_at(DENSITY, self.problem.layout.n_prunable)

    def dense(self) -> Tensor:
        return torch.ones_like(self.problem.weight, dtype=torch.bool)


@dataclass(frozen=True)
class Item:
    """A row of ``ITEMS``.

    Attributes:
        reference: the item whose time this one's is a multiple of.
        method: the row of ``PRUNERS`` this is one round of.
    """

    prepare: Callable[[Workbench], Run]
    reference: str = PASS
    method: str | None = None

    @property
    def n_rounds(self) -> int:
        """The number of rounds that the method takes in all."""
        return 1 if self.method is None else PRUNERS[self.method].pruner.n_rounds


def plain_pass(bench: Workbench) -> Run:
    bench.clear()

    def run() -> None:
        bench.plain.train()
        F.cross_entropy(bench.plain(bench.inputs), bench.labels).backward()

    return run


def training_step(bench: Workbench, masks: Masks | None = None) -> Run:
    """A pass and a step of SGD. Gradients and momentum are made inside, so that they count as its memory."""
    plain = plain_pass(bench)
    # the rate is so low that the network stays as it is
    optimizer = torch.optim.SGD(bench.plain.parameters(), lr=1e-6, momentum=0.9)
    if masks is not None:
        enforce_masks(bench.plain, masks, optimizer)

    def run() -> torch.optim.Optimizer:
        plain()
        optimizer.step()
        return optimizer

    return run


def enforced_step(bench: Workbench) -> Run:
    """A training step with an enforced mask, on a copy, since masked weights are lost; their products are computed, too."""
    masks = Masks(bench.problem.layout, top_k(bench.problem.weight.abs(), bench.n_kept))
    return training_step(dataclasses.replace(bench, plain=copy.deepcopy(bench.plain)), masks)


def pass_of_one(bench: Workbench) -> Run:
    """A pass of one input in float64: the least that SynFlow's round must do."""
    model = copy.deepcopy(bench.plain).double().eval()
    inputs, labels = bench.inputs[:1].double(), bench.labels[:1]
    return lambda: F.cross_entropy(model(inputs), labels).backward()


def signals(bench: Workbench, requested: tuple[str, ...]) -> Run:
    fresh = Signals(bench.problem, bench.dense())
    return lambda: fresh.request(*requested)


def allocation(bench: Workbench) -> Run:
    """The allocation of a mask from the scores that a first-order round mixes."""
    scores = mix(FIRST_ORDER, Signals(bench.problem, bench.dense()))
    return lambda: allocate(scores, bench.n_kept, bench.problem.layout)


def alive_test(bench: Workbench) -> Run:
    connectivity = Connectivity.of(bench.problem)
    mask = top_k(bench.problem.weight.abs(), bench.n_kept)
    return lambda: connectivity.alive(mask)


class BenchEnv(PanningEnv):
    """The environment over a workbench's network and batch, in place of a task that is loaded by name."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(densities=(DENSITY,), n_rounds=N_ROUNDS)
        self.problem = problem

    def _load(self, number: int, seed: int) -> Task:
        return Task(self.tasks[number], self.problem, None)

    def action(self, weights: dict[str, float], density: float, spread: float = 0.0) -> NDArray[np.float32]:
        """The action that gives indices these weights and leads from the present density to ``density``."""
        way = math.log(density / self.state.density) / math.log(DENSITY / self.state.density)
        step = 1.0 + math.log(way) / math.log(self.state.rounds_left)  # way = (1 / rounds left)^(1 - step)
        return self.spec_of_action.encode(weights, step=step, spread=spread)


def environment_round(bench: Workbench, weights: dict[str, float], spread: float = 0.0) -> Run:
    """``env.step`` in the middle of an episode: scores at the current mask, choice of the next, its loss and its alive
    weights, reward and observation.

    The state comes from a real step, which has taken the gradient at its mask already, for the observation.
    """
    env = BenchEnv(bench.problem)
    env.reset()
    before, after = ROUND_DENSITIES
    env.step(env.action(weights, before, spread))
    action = env.action(weights, after, spread)
    return lambda: env.step(action)


def one_round(bench: Workbench, method: str) -> Run:
    """One round of a method at its target, with a problem that has drawn and computed nothing yet."""
    problem = dataclasses.replace(bench.problem)
    return lambda: PRUNERS[method].pruner(problem, DENSITY, Rounds(n_rounds=1))


ITEMS: dict[str, Item] = {
    PASS: Item(plain_pass),
    STEP: Item(training_step),
    "training step, mask enforced": Item(enforced_step, reference=STEP),
    PASS_OF_ONE: Item(pass_of_one),
    "SNIP": Item(partial(signals, requested=("grad",))),
    "SNIP + GraSP + loss + gradient norm": Item(
        partial(signals, requested=("grad", "hessian_grad", "loss", "grad_norm"))
    ),
    "SynFlow round": Item(partial(signals, requested=("path_grad",)), reference=PASS_OF_ONE),
    "allocation": Item(allocation),
    "alive test": Item(alive_test),
    "environment round, first order": Item(partial(environment_round, weights=FIRST_ORDER)),
    "environment round, second order": Item(partial(environment_round, weights=SECOND_ORDER)),
    "environment round with spread, first order": Item(partial(environment_round, weights=FIRST_ORDER, spread=SPREAD)),
    "environment round with spread, second order": Item(
        partial(environment_round, weights=SECOND_ORDER, spread=SPREAD)
    ),
    **{f"method {method}": Item(partial(one_round, method=method), method=method) for method in PRUNERS},
}
