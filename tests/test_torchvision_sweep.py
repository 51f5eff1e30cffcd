"""Every method on torchvision's classification networks, with random weights: exact counts, finite scores, nothing touched.

    pytest -m slow tests/test_torchvision_sweep.py

Prints a table at its end: a row a method, a column a network; seconds and the alive part of the kept weights, or "-" where a
method says that it does not apply. Large weights, not images, are what takes time; small images are enough.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import OF_UNITS

import panning.scoring.signals.ntk as ntk
from panning import flow
from panning.alive.connectivity import Connectivity
from panning.foundation.errors import DensityError, ModelError
from panning.foundation.seeding import isolated_torch_rng
from panning.masks.shape import Shaped
from panning.pruners import PRUNERS, Rounds, prune_problem
from panning.pruners.form import Form
from panning.pruners.score_rounds import ScoreRounds
from panning.pruners.structured import Shares
from panning.scoring.problem import Problem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

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
    "squeezenet1_1": (32, {}),
}
N_SAMPLES = 5  # GCS-Group makes five groups
#: Methods that may say that a network is not for them.
NOT_FOR_ALL = {"uniform_plus": DensityError, "smart_ratio": DensityError, "smart_ratio_vgg": DensityError,
               "phew": ModelError, **dict.fromkeys(OF_UNITS, DensityError)}  # fmt: skip
DENSITY = 0.05
OF_ONE_ROUND = Shares(ScoreRounds({"synflow": 1.0}), "SynFlow")


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


def by_change(problem: Problem, mask: Tensor, sample: Tensor) -> list[bool]:
    """A third detector, which knows nothing of flows: whether the plain network in float64, with random positive weights and
    no biases, gives another output without this one weight."""
    model = copy.deepcopy(problem.model).double().eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(
                child, nn.MaxPool2d
            ):  # what could win a maximum counts, also where it does not for these images
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, mean)
    generator = torch.Generator().manual_seed(0)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, kept in problem.layout.views(mask).items():
            random = 0.5 + torch.rand(kept.shape, generator=generator, dtype=torch.float64)
            # As many weights as a unit has on average, so that values neither grow nor fade with depth.
            parameters[name].copy_(random * kept * (kept.shape[0] / max(1, int(kept.sum()))))
        images = 0.1 + torch.rand(2, *problem.input_shape, generator=generator, dtype=torch.float64)
        expected, changed = model(images), []
        for position in sample.tolist():
            number = next(i for i, offset in enumerate(problem.layout.offsets[1:]) if position < offset)
            weights = parameters[problem.layout.names[number]].view(-1)
            inside = position - problem.layout.offsets[number]
            before = weights[inside].item()
            weights[inside] = 0.0
            changed.append(not torch.equal(model(images), expected))
            weights[inside] = before
    return changed


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


def assert_two_of_four(problem: Problem, mask: Tensor) -> str:
    """Exactly two of each four inputs of a unit; a layer whose inputs cannot be divided so keeps the best of all.

    Returns:
        What the table says: the share of the weights that lie in groups.
    """
    n_covered, uncovered = 0, []
    for weight, kept in problem.layout.views(mask).items():
        if kept.shape[1] % 4:
            uncovered.append(weight)
        else:
            assert (kept.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all(), weight
            n_covered += kept.numel()
    assert n_covered > 0 and tuple(uncovered) == Shaped.of(problem.model, problem.layout, "2:4").uncovered
    return f"{n_covered / problem.layout.n_prunable:.0%} in it"


@pytest.fixture(scope="module", autouse=True)
def freed_memory_is_kept() -> None:
    """Half of the time went into page faults: glibc gives every large tensor back to the system, and takes it again."""
    glibc = ctypes.CDLL(None)
    if hasattr(glibc, "mallopt"):
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap
        glibc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, in bytes


def give_memory_back() -> None:
    """Between methods, or what each leaves scattered adds up: to 17 GB on ConvNeXt's 28 million weights."""
    gc.collect()
    glibc = ctypes.CDLL(None)
    if hasattr(glibc, "malloc_trim"):
        glibc.malloc_trim(0)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], str]]:
    """(network, method) -> what the table says of them; printed after the last test."""
    cells: dict[tuple[str, str], str] = {}
    yield cells
    done = list(dict.fromkeys(network for network, _ in cells))
    heads = [name.split("_")[0] for name in done]
    lines = [["s, alive", *heads]]
    lines += [
        [method, *(cells.get((name, method), "-") for name in done)]
        for method in ["weights", *PRUNERS, "2:4", "all alive"]
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for line in lines:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_on(name: str, monkeypatch: pytest.MonkeyPatch, table: dict[tuple[str, str], str]) -> None:
    monkeypatch.setattr(ntk, "N_RESAMPLES", 1)  # five resamples of a hundred images change nothing that is tested here
    monkeypatch.setattr(ntk, "N_IMAGES", 8)
    problem = problem_of(name)
    next(problem.model.parameters()).grad = torch.full_like(next(problem.model.parameters()), 7.0)
    before = snapshot(problem.model)
    net = Connectivity.of(problem)
    smallest = net.smallest_alive()  # every method asks; once is enough
    monkeypatch.setattr(Connectivity, "smallest_alive", lambda self: smallest)
    k = int(DENSITY * problem.layout.n_prunable + 0.5)
    table[name, "weights"] = f"{problem.layout.n_prunable / 1e6:.1f} M"

    def prune(method: str, row: str, **options: Any) -> Tensor:
        start = time.perf_counter()
        result = prune_problem(problem, DENSITY, method, **options)
        seconds, n_alive = time.perf_counter() - start, net.n_alive(result.mask)
        give_memory_back()
        table[name, row] = f"{seconds:.1f} {n_alive / k:4.0%}"
        assert int(result.mask.sum()) == k and torch.isfinite(result.scores).all(), method
        return result.mask

    # PreCrop takes its shares from SynFlow's hundred rounds, which need fifty minutes on ViT-B/16. One round is enough here.
    one_round = replace(PRUNERS["precrop"], pruner=replace(PRUNERS["precrop"].pruner, score=OF_ONE_ROUND))  # type: ignore[type-var]
    monkeypatch.setitem(PRUNERS, "precrop", one_round)
    for method in PRUNERS:
        try:
            prune(method, method, rounds=Rounds(1))
        except tuple(NOT_FOR_ALL.values()) as error:
            assert isinstance(error, NOT_FOR_ALL.get(method, ())), f"{method}: {error}"
    assert_untouched(problem.model, before)
    shaped = prune_problem(problem, None, "snip", form=Form(shape="2:4"))
    table[name, "2:4"] = assert_two_of_four(problem, shaped.mask)
    mask = prune("synflow", "all alive", rounds=Rounds(2), all_alive_weights=True)
    assert net.n_alive(mask) == k
    assert_untouched(problem.model, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_alive_are_those_that_sums_over_paths_and_changes_of_the_output_tell(name: str) -> None:
    problem = problem_of(name)
    net = Connectivity.of(problem)
    magnitude = prune_problem(problem, DENSITY, "magnitude").mask
    assert torch.equal(net.alive(magnitude), by_path_sums(problem, magnitude))
    mask = problem.noise < 0.02
    alive = net.alive(mask)
    dead = mask & ~alive
    for part, expected in ((alive, True), (dead, False)):
        positions = part.nonzero().flatten()
        sample = positions[:: max(1, len(positions) // 16)][:20]
        # A layer's norm mixes its units: what leads nowhere still changes the mean of its neighbours.
        if expected or not any(isinstance(module, nn.LayerNorm) for module in problem.model.modules()):
            changed = by_change(problem, mask, sample)
            assert changed == [expected] * len(sample)


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
