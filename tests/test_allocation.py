"""Allocation and schedules: exact counts, ties, nesting, quotas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panning.allocation import allocate, allocate_by_layer, erk_counts, round_counts, top_k, uniform_counts
from panning.errors import DensityError, NonFiniteError
from panning.layout import Layout
from panning.schedules import SCHEDULES, densities

LAYOUT = Layout(("a", "b", "c"), ((4, 5), (3, 10), (2, 5)))
scores_with_ties = st.lists(st.integers(0, 4), min_size=60, max_size=60).map(lambda v: torch.tensor(v).float())


def test_ties_go_to_the_lower_position() -> None:
    assert top_k(torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0]), 3).tolist() == [True, True, False, False, True]
    assert top_k(torch.ones(20), 5).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


@given(scores_with_ties, st.integers(0, 60))
def test_exactly_the_asked_number_is_kept_and_nothing_left_out_scores_higher(scores: torch.Tensor, k: int) -> None:
    mask = top_k(scores, k)
    assert int(mask.sum()) == k
    if 0 < k < 60:
        assert scores[mask].min() >= scores[~mask].max()


@given(scores_with_ties, st.integers(1, 59))
def test_masks_of_growing_budget_are_nested(scores: torch.Tensor, k: int) -> None:
    assert not bool((top_k(scores, k) & ~top_k(scores, k + 1)).any())


@given(scores_with_ties, st.integers(0, 60), st.floats(0, 1))
def test_spread_moves_weights_inside_layers_only(scores: torch.Tensor, k: int, spread: float) -> None:
    noise = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = allocate(scores, k, LAYOUT, spread=spread, noise=noise)
    assert LAYOUT.counts(mask) == LAYOUT.counts(top_k(scores, k))


def test_full_spread_follows_the_noise_alone() -> None:
    noise = torch.arange(60).flip(0).double() / 60
    mask = allocate(torch.arange(60).double(), 30, LAYOUT, spread=1.0, noise=noise)
    assert LAYOUT.counts(mask) == [0, 20, 10]
    assert mask.nonzero().flatten().tolist() == [*range(20, 40), *range(50, 60)]  # the first of b: highest noise


@given(scores_with_ties, st.integers(0, 30), st.floats(0, 1))
def test_candidates_bound_the_mask(scores: torch.Tensor, k: int, spread: float) -> None:
    candidates = torch.arange(60) % 2 == 0
    noise = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = allocate(scores, k, LAYOUT, candidates=candidates, spread=spread, noise=noise)
    assert int(mask.sum()) == k and not bool((mask & ~candidates).any())


def test_impossible_budgets_and_broken_scores_are_refused() -> None:
    with pytest.raises(DensityError, match="only 10 are left"):
        allocate(torch.ones(60), 11, LAYOUT, candidates=torch.arange(60) < 10)
    with pytest.raises(DensityError, match="Cannot keep 61 of 60"):
        allocate(torch.ones(60), 61, LAYOUT)
    for bad in (float("nan"), float("inf")):
        scores = torch.ones(60)
        scores[25] = bad
        with pytest.raises(NonFiniteError, match="'b'"):
            allocate(scores, 5, LAYOUT)
        with pytest.raises(NonFiniteError, match="'b'"):
            allocate_by_layer(scores, [1, 1, 1], LAYOUT)


layouts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5).map(
    lambda shapes: Layout(tuple(f"l{i}" for i in range(len(shapes))), tuple(shapes))
)


@given(layouts, st.floats(0.001, 1.0))
def test_quotas_sum_to_the_budget_and_fit_their_layers(layout: Layout, density: float) -> None:
    n_kept = int(density * layout.n_prunable)
    for quotas in (erk_counts, uniform_counts):
        counts = quotas(layout, n_kept)
        assert sum(counts) == n_kept
        assert all(0 <= count <= size for count, size in zip(counts, layout.sizes, strict=True))


def test_uniform_counts_are_equal_densities() -> None:
    assert uniform_counts(LAYOUT, 30) == [10, 15, 5]


def test_erk_counts_follow_the_raw_score() -> None:
    # Raw scores: (10+10)/100 = .2 and (100+10)/1000 = .11; at 55 kept: scale = 55 / (20 + 110) -> 8.46 and 46.5.
    layout = Layout(("a", "b"), ((10, 10), (100, 10)))
    assert erk_counts(layout, 55) == [8, 47]


def test_erk_keeps_a_layer_dense_whose_quota_exceeds_it_and_gives_the_rest_to_others() -> None:
    layout = Layout(("small", "large"), ((2, 2), (100, 100)))
    assert erk_counts(layout, 1004) == [4, 1000]


def test_rounding_gives_the_residue_to_the_largest_remainders() -> None:
    assert round_counts([1.2, 2.7, 3.1], 7, (10, 10, 10)) == [1, 3, 3]


@pytest.mark.parametrize("name", SCHEDULES)
@given(st.integers(1, 50), st.floats(1e-4, 1.0))
def test_schedules_never_rise_and_end_on_the_target(name: str, n_rounds: int, target: float) -> None:
    values = densities(name, n_rounds, target)
    assert len(values) == n_rounds and values[-1] == target
    assert all(a >= b - 1e-12 for a, b in zip([1.0, *values[:-1]], values, strict=True))


def test_the_exponential_schedule_cuts_the_same_factor_each_round() -> None:
    assert densities("exponential", 3, 0.001) == pytest.approx([0.1, 0.01, 0.001])
    assert densities("linear", 4, 0.2) == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_schedule_needs_rounds_and_a_density() -> None:
    with pytest.raises(DensityError, match="at least 1"):
        densities("linear", 0, 0.5)
    with pytest.raises(DensityError, match="must be in"):
        densities("linear", 3, 1.5)
    with pytest.raises(KeyError, match="Did you mean 'exponential'"):
        densities("exponentail", 3, 0.5)
