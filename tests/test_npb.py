"""NPB: the closed form against hand, brute force and a solver; paths along real networks; exact budgets."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from test_kinds import NETWORKS, problem_of
from torch import Tensor, nn
from toys import chain, mlp_problem, residual_problem

from panning.alive.connectivity import Connectivity
from panning.pruners import PRUNERS, prune_problem
from panning.pruners.npb import NPB, Balance, Layers, balanced, refilled
from panning.scoring.problem import Problem


def order(n_groups: int, n_units: int) -> Tensor:
    return torch.arange(n_units).repeat(n_groups, 1)


def value(kept: Tensor, paths: Tensor, n_kept: int, balance: Balance) -> float:
    """The objective of M [groups, units, channels]."""
    n_groups, n_units, n_channels = kept.shape
    nodes = int((kept.sum(1) > 0).sum()) + int((kept.sum(2) > 0).sum())
    best = paths.flatten().sort(descending=True).values.repeat_interleave(n_units * balance.cap)[:n_kept].sum()
    share = float((paths.unsqueeze(1) * kept).sum() / best)
    return (
        balance.alpha * nodes / (n_groups * (n_units + n_channels))
        + (1 - balance.alpha) * share
        + balance.beta * int((kept > 0).sum()) / n_kept
    )


def test_the_scale_between_nodes_and_paths_turns_at_four_sevenths() -> None:
    paths = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    expected = {0.5: ([[1, 1], [0, 0]], 0.875), 0.6: ([[1, 0], [0, 1]], 0.8 / 1.2 * 0.4 + 0.6)}
    for alpha, (mask, worth) in expected.items():
        balance = Balance(alpha, 0.0, 1)
        found = balanced(paths, 2, 2, balance, order(1, 2))
        assert found[0].T.tolist() == mask  # rows are input channels
        assert value(found, paths, 2, balance) == pytest.approx(worth)


def drawn(rng: random.Random, sizes: list[tuple[int, int, int, int]]) -> tuple[Tensor, int, int, Balance]:
    n_groups, n_units, n_channels, cap = rng.choice(sizes)
    paths = torch.tensor([[float(rng.choice((0, 1, 1, 2, 5, 90))) for _ in range(n_channels)] for _ in range(n_groups)])
    paths[0, 0] = max(1.0, float(paths[0, 0]))
    n_kept = rng.randint(1, n_groups * n_units * n_channels * cap)
    alpha, beta = rng.choice((0.0, 0.01, 0.3, 0.6, 0.99)), rng.choice((0.0, 0.001, 0.2, 1.0, 2.0))
    return paths.double(), n_kept, n_units, Balance(alpha, beta, cap)


def test_no_mask_of_small_layers_is_better() -> None:
    sizes = [
        (1, 2, 2, 1),
        (1, 2, 2, 3),
        (1, 2, 3, 1),
        (1, 3, 2, 2),
        (1, 3, 3, 1),
        (2, 2, 2, 1),
        (2, 1, 2, 2),
        (4, 1, 1, 3),
    ]
    all_masks = {
        size: torch.tensor(list(itertools.product(range(size[3] + 1), repeat=size[0] * size[1] * size[2])))
        for size in sizes
    }
    rng = random.Random(0)
    for _ in range(400):
        paths, n_kept, n_units, balance = drawn(rng, sizes)
        shape = (len(paths), n_units, paths.shape[1])
        found = balanced(paths, n_kept, n_units, balance, order(len(paths), n_units))
        assert int(found.sum()) == n_kept and int(found.min()) >= 0 and int(found.max()) <= balance.cap
        masks = all_masks[(*shape, balance.cap)]
        masks = masks[masks.sum(1) == n_kept].view(-1, *shape)
        nodes = ((masks.sum(2) > 0).sum((1, 2)) + (masks.sum(3) > 0).sum((1, 2))).double()
        best = paths.flatten().sort(descending=True).values.repeat_interleave(n_units * balance.cap)[:n_kept].sum()
        values = (
            balance.alpha * nodes / (shape[0] * (shape[1] + shape[2]))
            + (1 - balance.alpha) * (masks * paths.unsqueeze(1)).sum((1, 2, 3)) / best
            + balance.beta * (masks > 0).double().sum((1, 2, 3)) / n_kept
        )
        assert value(found, paths, n_kept, balance) == pytest.approx(float(values.max()), abs=1e-9)


def test_a_relaxed_program_finds_nothing_better_in_larger_layers() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = random.Random(1)
    for _ in range(12):
        paths, n_kept, n_units, balance = drawn(rng, [(1, 8, 12, 4), (1, 16, 6, 9), (3, 4, 5, 9), (10, 1, 1, 9)])
        n_groups, n_channels = paths.shape
        n = n_groups * n_units * n_channels
        # Variables: weights of each kernel, kernels that are not empty, channels and units that are reached.
        n_nodes = n_groups * (n_channels + n_units)
        best = float(
            paths.flatten().sort(descending=True).values.repeat_interleave(n_units * balance.cap)[:n_kept].sum()
        )
        worth = (1 - balance.alpha) * paths.unsqueeze(1).expand(n_groups, n_units, n_channels).flatten() / best
        per_kernel, per_node = balance.beta / n_kept, balance.alpha / n_nodes
        cost = -torch.cat([worth, torch.full((n,), per_kernel).double(), torch.full((n_nodes,), per_node).double()])
        rows = torch.zeros(n + n_nodes, 2 * n + n_nodes, dtype=torch.float64)
        rows[range(n), range(n)], rows[range(n), range(n, 2 * n)] = -1.0, 1.0
        cells = torch.arange(n).view(n_groups, n_units, n_channels)
        members = [*cells.transpose(1, 2).reshape(-1, n_units), *cells.reshape(-1, n_channels)]
        for i, cell in enumerate(members):
            rows[n + i, cell], rows[n + i, 2 * n + i] = -1.0, 1.0
        total = torch.cat([torch.ones(1, n), torch.zeros(1, n + n_nodes)], 1)
        bounds = [(0, balance.cap)] * n + [(0, 1)] * (n + n_nodes)
        relaxed = optimize.linprog(cost.numpy(), rows.numpy(), [0.0] * len(rows), total.numpy(), [n_kept], bounds)
        assert relaxed.status == 0
        found = balanced(paths, n_kept, n_units, balance, order(n_groups, n_units))
        assert value(found, paths, n_kept, balance) >= -relaxed.fun - 1e-7


def test_a_layer_hears_how_many_paths_the_masks_before_it_leave() -> None:
    class Recorder(Layers):
        def _decide(self, name: str, paths: Tensor) -> None:
            seen[name] = paths / 2.0**-1000
            super()._decide(name, paths)

    seen: dict[str, Tensor] = {}
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1), nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2),
    )  # fmt: skip
    problem = Problem.of(net, (1, 4, 4), None)
    masks = Recorder(problem, Balance(), {"0.weight": 3, "4.weight": 2, "8.weight": 4}).mask()
    first, second, third = problem.layout.views(masks).values()
    assert [int(part.sum()) for part in (first, second, third)] == [3, 2, 4]
    assert seen["0.weight"][0, 0].tolist() == [[9.0, 12.0, 9.0], [12.0, 16.0, 12.0], [9.0, 12.0, 9.0]]
    # Paths into the second layer: what the kept taps of a channel read on the 4 x 4 map of ones.
    reads = (seen["0.weight"][:, 0] * first[:, 0]).sum((1, 2))
    assert seen["4.weight"][0, :, 0, 0].tolist() == reads.tolist()
    assert seen["8.weight"][0].tolist() == (second[:, :, 0, 0].double() @ reads).tolist()


def test_one_weight_a_kernel_on_the_channels_with_most_paths_with_the_authors_settings() -> None:
    paths = torch.randint(1, 1000, (1, 64), generator=torch.Generator().manual_seed(0)).double()
    kept = balanced(paths, 1843, 64, Balance(), order(1, 64))[0]
    channels = kept.sum(0) > 0
    assert int(kept.max()) == 1 and 29 <= int(channels.sum()) < 64 and int((kept.sum(1) > 0).sum()) == 64
    assert paths[0, channels].min() >= paths[0, ~channels].max()


@pytest.mark.parametrize("density", [0.01, 0.03, 0.1, 0.5, 1.0])
def test_every_weight_is_alive_and_layers_keep_their_quotas_where_kernels_have_room(density: float) -> None:
    problem = residual_problem()
    result = prune_problem(problem, density, "npb")
    assert int(result.mask.sum()) == round(density * 776) == Connectivity.of(problem).n_alive(result.mask)
    other = prune_problem(dataclasses.replace(problem, seed=1), density, "npb")
    assert density == 1.0 or not torch.equal(result.mask, other.mask)


def test_dead_weights_give_way_in_their_own_layer_first() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(2 * 16, 1, bias=False))
    problem = Problem.of(net, (1, 4, 4), None)
    mask = torch.zeros(18 + 32, dtype=torch.bool)
    mask[[4, 13]] = True  # the middle tap of both kernels
    mask[18:22] = True  # the output reads channel 0 alone: the kernel of channel 1 is dead
    new = refilled(problem, mask)
    assert (
        problem.layout.counts(new) == [2, 4] and int(new[:9].sum()) == 2 and Connectivity.of(problem).n_alive(new) == 6
    )


def test_what_cannot_be_alive_stays_and_the_budget_holds() -> None:
    problem = Problem.of(chain([[1.0], [1.0]], [[1.0, 1.0]]), (1,), None)
    mask = torch.tensor([True, False, False, True])  # no path at all
    assert torch.equal(refilled(problem, mask), mask)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_layer_gets_its_number(name: str) -> None:
    problem = problem_of(name)
    for density in (0.2, 0.6):
        mask = NPB()(problem, density).mask
        assert int(mask.sum()) == int(density * problem.layout.n_prunable + 0.5)


def test_neither_data_nor_weights_are_read() -> None:
    one, other = mlp_problem(seed=0, sizes=(20, 30, 30, 4)), mlp_problem(seed=1, sizes=(20, 30, 30, 4))
    other = dataclasses.replace(other, seed=0, batches=None)
    assert torch.equal(prune_problem(one, 0.1, "npb").mask, prune_problem(other, 0.1, "npb").mask)
    assert not PRUNERS["npb"].needs_data
