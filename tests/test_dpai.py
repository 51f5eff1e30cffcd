"""DPaI: its direction by hand, what it climbs to, and where it starts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from toys import chain, mlp_problem

from panning.alive.connectivity import Connectivity
from panning.pruners import PRUNERS, Rounds, prune_problem
from panning.pruners.dpai import DPaI, path_gradient
from panning.pruners.npb import Numbers
from panning.scoring.problem import Problem

TWO = Problem.of(chain([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]), (2,), None)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (0.0, 0.5, [0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 1.0, 0.0]),
        (1.0, 0.0, [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0]),
        (1.0, 1.0, [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0]),
        (0.5, 0.5, [0.25, 0.25, 0.5, 0.5, 0.5, 0.0, 1.0, 0.0]),
    ],
)
def test_the_direction_is_as_computed_by_hand(alpha: float, beta: float, expected: list[float]) -> None:
    # Hidden unit 0 has both inputs and output 0; output 1 hangs on hidden unit 1, which has none: two paths.
    mask = torch.tensor([True, True, False, False, True, False, False, True])
    paths, _ = path_gradient(TWO, mask)
    assert paths == pytest.approx(math.log(2))
    assert DPaI(alpha, beta).ascent(TWO, mask, Numbers.of(TWO)).tolist() == pytest.approx(expected)


def test_kernels_count_beside_units() -> None:
    # Both outputs have a path, over hidden unit 0 alone; a kernel from hidden unit 1, which has an input, has none.
    mask = torch.tensor([True, False, True, False, True, False, True, False])
    with_units, with_kernels = (DPaI(1.0, beta).ascent(TWO, mask, Numbers.of(TWO)) for beta in (0.0, 1.0))
    assert with_units[4:].tolist() == [0.0] * 4
    assert with_kernels[4:].tolist() == [0.0, 0.5, 0.0, 0.5]


def test_paths_alone_pack_one_hidden_unit_and_nodes_alone_leave_all_reached() -> None:
    problem = dataclasses.replace(TWO, seed=1)
    packed = DPaI(alpha=0.0, learning_rate=0.05, start="random")(problem, 0.5, Rounds(60)).mask
    assert path_gradient(problem, packed)[0] == pytest.approx(math.log(4))
    spread = DPaI(alpha=1.0, beta=0.0, learning_rate=0.05)(problem, 0.5, Rounds(60)).mask
    assert path_gradient(problem, spread)[0] == pytest.approx(math.log(2))
    assert Connectivity.of(problem).n_alive(spread) == 4 and spread.view(4, 2).any(1).all()


def test_it_starts_from_npbs_mask_keeps_its_layer_counts_and_finds_more_paths() -> None:
    problem = mlp_problem(sizes=(20, 30, 30, 4))
    start = prune_problem(problem, 0.1, "npb").mask
    counts = problem.layout.counts(start)
    assert counts == problem.layout.counts(prune_problem(problem, 0.1, "dpai", rounds=Rounds(1)).mask)
    climb = DPaI(alpha=0.0, learning_rate=0.1, start="random")
    first, last = (path_gradient(problem, climb(problem, 0.1, Rounds(n)).mask)[0] for n in (1, 40))
    assert last > first + 0.2
    assert not PRUNERS["dpai"].needs_data and PRUNERS["dpai"].pruner.n_rounds == 500
