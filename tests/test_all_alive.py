"""All-alive at its ends: hardly more than one path, extreme compression, tied weights, answers in a bounded time."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import mlp_problem, residual_problem

from panning import models
from panning.alive.connectivity import Connectivity
from panning.alive.repair import MAX_PASSES, shortest_path
from panning.foundation.errors import DensityError
from panning.masks.allocation import top_k
from panning.pruners import Rounds, all_alive, prune_problem
from panning.scoring.problem import Problem


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry with every pass of the alive test."""
    counted: list[int] = []
    connected = Connectivity.connected

    def count(self: Connectivity, mask: Tensor) -> Tensor:
        counted.append(1)
        return connected(self, mask)

    monkeypatch.setattr(Connectivity, "connected", count)
    return counted


@cache
def resnet18() -> Problem:
    """The CIFAR form at a quarter of its width."""
    return Problem.of(models.ResNet((3, 16, 16), 10, (16, 32, 64, 128), 2), (3, 16, 16), None)


@pytest.mark.parametrize("k", [5, 6, 7, 8])
def test_the_fewest_weights_of_a_deep_residual_network_are_found_at_once(k: int, passes: list[int]) -> None:
    problem = resnet18()  # stem, three shortcuts, classifier
    scores = problem.weight.abs()
    result = all_alive(Connectivity.of(problem), top_k(scores, k), scores)
    assert int(result.sum()) == k == Connectivity.of(problem).n_alive(result) and len(passes) < 60


@pytest.mark.parametrize(("k", "below", "above"), [(4, 3, 6), (47, 45, 48)])
def test_what_cannot_be_reached_is_refused_after_a_bounded_number_of_passes(
    k: int, below: int, above: int, passes: list[int]
) -> None:
    # 30 chains of 3 weights beside each other: any set of alive weights has a multiple of 3.
    chains = nn.Sequential(*[nn.Conv1d(30, 30, 1, groups=30, bias=False) for _ in range(3)])
    problem = Problem.of(chains, (30, 1), None)
    scores = problem.weight.abs()
    with pytest.raises(DensityError, match=f"{above} is the next number that was, {below} the one before"):
        all_alive(Connectivity.of(problem), top_k(scores, k), scores)
    assert len(passes) <= MAX_PASSES + 1


def test_a_shortest_path_takes_the_best_of_each_layer_and_no_layer_beside_it() -> None:
    problem = residual_problem()
    net = Connectivity.of(problem)
    path = shortest_path(net, problem.weight.abs().argsort(descending=True), 3)
    assert path is not None and torch.equal(net.alive(path), path)
    counts = dict(zip(problem.layout.names, problem.layout.counts(path), strict=True))
    assert (
        counts["stem.weight"] == counts["classifier.weight"] == counts["down.weight"] + counts["shortcut.weight"] == 1
    )
    assert sum(counts.values()) == 3  # the bridged block is left out, and of two ways of equal length one
    mlp = mlp_problem()
    path = shortest_path(Connectivity.of(mlp), torch.arange(mlp.layout.n_prunable - 1, -1, -1), 3)
    assert path is not None and mlp.layout.counts(path) == [1, 1, 1] and bool(path[47])  # the first layer's best


class Tied(nn.Module):
    """2 -> 2, a matrix that is used twice, 2 -> 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.b(self.a(x))))


class TiedBesideTwo(nn.Module):
    """Two ways: one matrix three times, or two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c, self.d, self.e = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.b(self.b(x))) + self.e(self.d(x)))


class TransposedTied(nn.Module):
    """An autoencoder whose decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encoder(x), self.encoder.weight.t())


@pytest.mark.parametrize("model", [Tied(), TiedBesideTwo(), TransposedTied()], ids=lambda model: type(model).__name__)
def test_a_tied_weight_counts_once(model: nn.Module) -> None:
    n_inputs = next(model.parameters()).shape[1]
    problem = Problem.of(model, (n_inputs,), None)
    net, n = Connectivity.of(problem), problem.layout.n_prunable
    subsets = (torch.tensor(bits) for bits in itertools.product([False, True], repeat=n))
    reachable = {int(mask.sum()) for mask in subsets if bool(mask.any()) and torch.equal(net.alive(mask), mask)}
    assert net.smallest_alive() == min(reachable)
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    for k in range(1, n + 1):
        if k in reachable:
            assert net.n_alive(all_alive(net, top_k(scores, k), scores)) == k
        else:
            with pytest.raises(DensityError, match=f"a path needs {min(reachable)}\\.|is the next number"):
                all_alive(net, top_k(scores, k), scores)


@pytest.mark.parametrize("method", ["magnitude", "synflow", "random"])
def test_lenet_300_100_at_4096_times_compression(method: str) -> None:
    model = nn.Sequential(nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 10))
    problem = Problem.of(model, (784,), None)
    assert problem.layout.n_prunable == 266_200
    result = prune_problem(problem, 1 / 4096, method, all_alive_weights=True, rounds=Rounds(10))
    assert int(result.mask.sum()) == 65 == Connectivity.of(problem).n_alive(result.mask)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["magnitude", "synflow", "random"])
def test_resnet18_at_4096_times_compression(method: str) -> None:
    model = models.ResNet((3, 32, 32), 10, (64, 128, 256, 512), 2)
    problem = Problem.of(model, (3, 32, 32), None)
    assert problem.layout.n_prunable == 11_164_352
    result = prune_problem(problem, 1 / 4096, method, all_alive_weights=True, rounds=Rounds(5))
    assert int(result.mask.sum()) == 2726 == Connectivity.of(problem).n_alive(result.mask)
