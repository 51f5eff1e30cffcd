"""Every method on torchvision's classification networks, with random weights: exact counts, finite scores, nothing touched.

    pytest -m slow tests/test_torchvision_sweep.py -s

Prints a table of seconds: a row a network, a column a method ("-" where a method says that it does not apply).
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import panning.signals.ntk as ntk
from panning import flow
from panning.connectivity import Connectivity
from panning.errors import DensityError, ModelError
from panning.problem import Problem
from panning.pruners import PRUNERS, Rounds, prune_problem
from panning.seeding import isolated_torch_rng

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Network -> pixels, and what else it is built with.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet50": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "efficientnet_b0": (32, {}),
    "regnet_y_400mf": (32, {}),
    "densenet121": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (32, {}),
    "googlenet": (32, {"aux_logits": True, "init_weights": True}),
    "shufflenet_v2_x0_5": (32, {}),
    "squeezenet1_1": (64, {}),
}
N_SAMPLES = 6
#: Methods that may say that a network is not for them.
NOT_FOR_ALL = {"uniform_plus": DensityError, "smart_ratio": DensityError, "smart_ratio_vgg": DensityError,
               "phew": ModelError}  # fmt: skip
DENSITY = 0.05


def problem_of(name: str) -> Problem:
    import torchvision

    pixels, arguments = NETWORKS[name]
    with isolated_torch_rng(0):
        model = torchvision.models.get_model(name, weights=None, num_classes=N_SAMPLES, **arguments)
        images = torch.randn(N_SAMPLES, 3, pixels, pixels)
    return Problem.of(model.train(), (3, pixels, pixels), lambda number: (images, torch.arange(N_SAMPLES)))


def by_path_sums(problem: Problem, mask: Tensor) -> Tensor:
    """A second detector: weights of 1 with rounding-proof float64 sums over paths instead of booleans."""
    rules = {**flow.POSITIVE_LINEAR, **flow.AVERAGE_POOLS}
    fan_ins = torch.cat([torch.full((size,), 1.0 / (size // shape[0]), dtype=torch.float64)
                         for shape, size in zip(problem.layout.shapes, problem.layout.sizes, strict=True)])  # fmt: skip
    gates = (mask * fan_ins).requires_grad_()
    others = {name: torch.ones_like(p, dtype=torch.float64) for name, p in problem.other_parameters().items()}
    ones = torch.ones(1, *problem.input_shape, dtype=torch.float64, requires_grad=True).clone()
    output = flow.run(problem.model, {**others, **problem.layout.views(gates)}, ones, rules, torch.float64)
    (grad,) = torch.autograd.grad(output.sum(), gates)
    return (grad > 0) & mask


def snapshot(model: nn.Module) -> list[Any]:
    return [
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
    ]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    tensors, modes, grads, state = before
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_on(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ntk, "N_RESAMPLES", 1)  # five resamples of a hundred images change nothing that is tested here
    monkeypatch.setattr(ntk, "N_IMAGES", 8)
    problem = problem_of(name)
    next(problem.model.parameters()).grad = torch.full_like(next(problem.model.parameters()), 7.0)
    before = snapshot(problem.model)
    k = int(DENSITY * problem.layout.n_prunable + 0.5)
    seconds = {}
    for method in PRUNERS:
        start = time.perf_counter()
        try:
            result = prune_problem(problem, DENSITY, method, rounds=Rounds(1))
        except tuple(NOT_FOR_ALL.values()) as error:
            assert isinstance(error, NOT_FOR_ALL.get(method, ())), f"{method}: {error}"
            continue
        seconds[method] = time.perf_counter() - start
        assert int(result.mask.sum()) == k and torch.isfinite(result.scores).all(), method
    assert_untouched(problem.model, before)
    alive = prune_problem(problem, DENSITY, "synflow", rounds=Rounds(2), all_alive_weights=True).mask
    net = Connectivity.of(problem)
    assert int(alive.sum()) == k == net.n_alive(alive)
    snip = prune_problem(problem, DENSITY, "magnitude").mask
    assert torch.equal(net.alive(snip), by_path_sums(problem, snip))
    with capsys.disabled():
        cells = [f"{method} {seconds[method]:.1f}" if method in seconds else f"{method} -" for method in PRUNERS]
        print(f"\n{name} ({problem.layout.n_prunable / 1e6:.1f} M), s: " + ", ".join(cells))


def test_resnet152_stays_finite_at_a_thousandth() -> None:
    import torchvision

    with isolated_torch_rng(0):
        model = torchvision.models.resnet152(weights=None, num_classes=10)
        images = torch.randn(8, 3, 32, 32)
    problem = Problem.of(model, (3, 32, 32), lambda number: (images, torch.arange(8)))
    k = int(0.001 * problem.layout.n_prunable + 0.5)
    for method in ("synflow", "synflow_l2", "grasp", "iter_snip"):
        result = prune_problem(problem, 0.001, method, rounds=Rounds(10 if method == "synflow" else 2))
        assert int(result.mask.sum()) == k and torch.isfinite(result.scores).all(), method
    alive = prune_problem(problem, 0.001, "snip", all_alive_weights=True).mask
    assert int(alive.sum()) == k == Connectivity.of(problem).n_alive(alive)
