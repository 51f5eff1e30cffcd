"""Allocation and schedules: exact counts, ties, nesting, quotas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panning.foundation.errors import DensityError, NonFiniteError
from panning.masks.allocation import (
    allocate,
    allocate_by_layer,
    erk_counts,
    round_counts,
    top_k,
    uniform_counts,
)
from panning.masks.equals import sorted_evenly
from panning.masks.layout import Layout
from panning.masks.selection import SAMPLE_STRIDE, kth_largest, spread_mask
from panning.scoring.schedules import SCHEDULES, densities

LAYOUT = Layout(("a", "b", "c"), ((4, 5), (3, 10), (2, 5)))
layouts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5).map(
    lambda shapes: Layout(tuple(f"l{i}" for i in range(len(shapes))), tuple(shapes))
)
scores_with_ties = st.lists(st.integers(0, 4), min_size=60, max_size=60).map(lambda v: torch.tensor(v).float())


def test_ties_go_to_the_lower_position() -> None:
    assert top_k(torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0]), 3).tolist() == [True, True, False, False, True]
    assert top_k(torch.ones(20), 5).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_lots_are_drawn_among_equals_at_the_threshold_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([top_k(torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0, 0.0]), 3, generator) for _ in range(60)])
    assert drawn.sum(0)[[1, 4, 5]].tolist() == [60, 60, 0]
    assert (drawn.sum(1) == 3).all() and (drawn.sum(0)[[0, 2, 3]] > 5).all()


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
    assert LAYOUT.counts(mask) == LAYOUT.counts(top_k(scores, k, sizes=LAYOUT.sizes))


def test_full_spread_follows_the_noise_alone() -> None:
    noise = torch.arange(60).flip(0).double() / 60
    mask = allocate(torch.arange(60).double(), 30, LAYOUT, spread=1.0, noise=noise)
    assert LAYOUT.counts(mask) == [0, 20, 10]
    assert mask.nonzero().flatten().tolist() == [*range(20, 40), *range(50, 60)]  # the first of b: highest noise


def test_what_torch_selects_on_accelerators_is_what_numpy_selects() -> None:
    scores = torch.rand(12_007, generator=torch.Generator().manual_seed(0))
    for k in (1, 100, 6_000, 12_007):
        assert float(kth_largest(scores, k)) == float(kth_largest(scores.numpy(), k)) == scores.sort().values[-k]
    assert torch.equal(top_k(scores.bfloat16(), 500), by_sorting(scores.bfloat16(), 500))  # no dtype of NumPy's


def spread_by_sorting(scores: torch.Tensor, k: int, spread: float, noise: torch.Tensor) -> torch.Tensor:
    rank = torch.empty(scores.numel(), dtype=torch.float64)
    rank[scores.argsort(stable=True)] = torch.arange(scores.numel(), dtype=torch.float64) / scores.numel()
    key = (1.0 - spread) * rank + spread * noise
    return by_sorting(key.masked_fill(scores == -torch.inf, -torch.inf), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["uniform", "normal", "ties", "mostly zero", "falling", "constant", "heavy", "few", "against", "masked"]
)
def test_a_spread_over_many_weights_is_that_of_a_full_sort(kind: str, dtype: torch.dtype) -> None:
    for n in (1, 2, 300, 12_007):
        generator = torch.Generator().manual_seed(n)
        even, noise = (torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(2))
        scores = {
            "uniform": even, "normal": torch.randn(n, generator=generator), "ties": (even * 7).floor() - 3,
            "mostly zero": even * (even > 0.9), "falling": even.sort(descending=True).values, "constant": torch.zeros(n),
            "heavy": (1 / (even + 1e-9)) ** 4, "few": torch.tensor([-0.0, 0.0, 1e-40, 1.0]).repeat(n)[:n],
            "against": -noise,  # what ranks high has little noise: the guess of what cannot be kept is wrong
            "masked": even.masked_fill(even < 0.7, -torch.inf),
        }[kind].to(dtype)  # fmt: skip
        n_allowed = int((scores > -torch.inf).sum())
        for k in {1, n_allowed // 50, n_allowed // 3, n_allowed - 1} & set(range(1, n)):
            for spread in (1e-9, 0.06, 0.5, 0.93):
                kept = torch.from_numpy(spread_mask(scores.numpy(), k, spread, noise.numpy()))
                assert torch.equal(kept, spread_by_sorting(scores, k, spread, noise)), (n, k, spread)


@given(st.data())
def test_a_spread_of_few_scores_and_draws_is_that_of_a_full_sort(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 40))
    scores = torch.tensor(data.draw(st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1e-300, 1.0]), min_size=n, max_size=n)))
    noise = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.999]), min_size=n, max_size=n))).double()
    k, spread = data.draw(st.integers(1, n - 1)), data.draw(st.floats(0.05, 0.95))
    kept = torch.from_numpy(spread_mask(scores.numpy(), k, spread, noise.numpy()))
    assert torch.equal(kept, spread_by_sorting(scores, k, spread, noise))


@given(scores_with_ties, st.integers(0, 30), st.floats(0, 1))
def test_candidates_bound_the_mask(scores: torch.Tensor, k: int, spread: float) -> None:
    candidates = torch.arange(60) % 2 == 0
    noise = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = allocate(scores, k, LAYOUT, candidates=candidates, spread=spread, noise=noise)
    assert int(mask.sum()) == k and not bool((mask & ~candidates).any())


def by_hand(scores: torch.Tensor, layout: Layout) -> list[int]:
    """All positions, the best first: of n equals in a layer, scattered by the golden ratio, the j-th is at (j + 1/2) / n."""
    keyed = []
    for number, part in enumerate(layout.slices()):
        places: dict[float, list[int]] = {}
        for place, score in enumerate(scores[part].tolist()):
            places.setdefault(score, []).append(place)
        for score, equals in places.items():
            equals.sort(key=lambda place: place * 2654435769 % 2**32)
            keyed += [(-score, (j + 0.5) / len(equals), number, part.start + place) for j, place in enumerate(equals)]
    return [position for *_, position in sorted(keyed)]


@given(scores_with_ties, st.integers(1, 60))
def test_equals_are_kept_evenly_over_layers(scores: torch.Tensor, k: int) -> None:
    mask = allocate(scores, k, LAYOUT)
    assert mask.nonzero().flatten().tolist() == sorted(by_hand(scores, LAYOUT)[:k])
    assert not bool((mask & ~allocate(scores, min(k + 1, 60), LAYOUT)).any())
    equal = scores == scores[mask].min()
    shares = [(int((mask & equal)[part].sum()), int(equal[part].sum())) for part in LAYOUT.slices()]
    total = sum(n for n, _ in shares) / max(1, sum(n for _, n in shares))
    assert all(abs(n - total * n_equal) <= 1 for n, n_equal in shares)


def test_alike_layers_of_equals_keep_alike_and_whole_units_do_not_go_first() -> None:
    layout = Layout(tuple("abcdef"), ((8, 8, 3, 3),) * 6)
    mask = allocate(torch.zeros(layout.n_prunable), 600, layout)
    assert layout.counts(mask) == [100] * 6
    for view in layout.views(mask).values():
        per_unit = view.flatten(1).sum(1)
        assert int(per_unit.min()) >= 11 and int(per_unit.max()) <= 14  # 100 of 8 units
    assert torch.equal(top_k(torch.zeros(6), 3, sizes=(2, 4)), torch.tensor([True, False, True, False, True, False]))


def by_sorting(scores: torch.Tensor, k: int) -> torch.Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.argsort(descending=True, stable=True)[:k]] = True
    return mask


@pytest.mark.parametrize(
    "kind", ["uniform", "ties", "mostly zero", "rising", "falling", "constant", "heavy", "striped"]
)
def test_a_selection_over_many_weights_is_that_of_a_stable_sort(kind: str) -> None:
    n = 30_011
    noise = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = {
        "uniform": noise, "ties": (noise * 7).floor(), "mostly zero": noise * (noise > 0.9), "rising": noise.sort().values,
        "falling": noise.sort(descending=True).values, "constant": torch.ones(n), "heavy": (1 / noise) ** 30,
        "striped": torch.where(torch.arange(n) % SAMPLE_STRIDE == 0, 1e9 + noise, noise),  # the sample misleads
    }[kind]  # fmt: skip
    for k in (1, 2, 77, 300, n // 20, n // 2, n // 2 + 1, n - 400, n - 1, n):
        for signed in (scores, -scores):
            assert torch.equal(top_k(signed, k), by_sorting(signed, k)), (kind, k)


@pytest.mark.parametrize("rest", [0.0, -math.inf])
def test_equal_scores_are_counted_and_not_selected_from(rest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random(50_000)
    scores[scores < 0.98] = rest
    sizes = []
    partition = np.partition
    monkeypatch.setattr(np, "partition", lambda values, place: [sizes.append(len(values)), partition(values, place)][1])
    n_kept = int((scores > rest).sum())
    for k in (1, n_kept // 2, n_kept, n_kept + 1, len(scores) // 2, len(scores)):
        assert kth_largest(scores, k) == np.sort(scores)[-k]
    assert max(sizes) <= n_kept  # NumPy's selection from equals is twenty times as slow


@given(st.data())
def test_no_finite_scores_shapes_or_densities_miss_the_count(data: st.DataObject) -> None:
    layout = data.draw(layouts)
    n = layout.n_prunable
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    width = 32 if dtype == torch.float32 else 64
    some = data.draw(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=width), min_size=1, max_size=40))
    scores = torch.tensor(some, dtype=dtype).repeat(n // len(some) + 1)[:n]
    k = data.draw(st.integers(0, n))
    spread = data.draw(st.floats(0, 1))
    candidates = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.7 if data.draw(st.booleans()) else None
    noise = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if candidates is not None and int(candidates.sum()) < k:
        with pytest.raises(DensityError, match="are left"):
            allocate(scores, k, layout, candidates=candidates)
        return
    mask = allocate(scores, k, layout, candidates=candidates, spread=spread, noise=noise)
    assert int(mask.sum()) == k and (candidates is None or not bool((mask & ~candidates).any()))
    if spread == 0 and candidates is None:
        assert mask.nonzero().flatten().tolist() == sorted(by_hand(scores, layout)[:k])
        assert sorted_evenly(scores, layout.sizes).tolist() == by_hand(scores, layout)


@given(st.data())
def test_whatever_is_not_finite_is_refused_with_its_layer(data: st.DataObject) -> None:
    layout = data.draw(layouts)
    scores = torch.full((layout.n_prunable,), data.draw(st.sampled_from([0.0, 1e300, -1.0])), dtype=torch.float64)
    for _ in range(data.draw(st.integers(1, 3))):
        value = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        scores[data.draw(st.integers(0, layout.n_prunable - 1))] = value
    first = next(name for name, part in layout.views(scores).items() if not part.isfinite().all())
    with pytest.raises(NonFiniteError, match=f"'{first}'"):
        allocate(scores, 1, layout)


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
