"""Pruners: a contract over the table, each method's own law, and all-alive."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import chain, flat_mask, mlp_problem, residual_problem

import panning.pruners.rounds as rounds_module
from panning.alive.connectivity import Connectivity
from panning.alive.repair import first, ranking, trim
from panning.episode.actions import ActionSpec
from panning.episode.episode import initial, run_policy
from panning.episode.observations import units_in_use
from panning.episode.policies import Constant
from panning.foundation.errors import DensityError
from panning.foundation.progress import Event
from panning.masks.allocation import top_k
from panning.masks.layout import Layout
from panning.pruners import PRUNERS, PruneResult, Rounds, all_alive, make_all_alive, prune_problem
from panning.pruners.score_rounds import ScoreRounds
from panning.pruners.staged import next_stage, stage_weights
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem, Scoring
from panning.scoring.signals import PASSES, Signals
from panning.scoring.signals.site import Site

FEW_ROUNDS = Rounds(5)
WITH_A_FLOOR = {"uniform_plus", "smart_ratio", "smart_ratio_vgg"}


def test_the_table_holds_every_method_of_the_comparison() -> None:
    assert set(PRUNERS) >= {"random", "erk", "magnitude", "snip", "iter_snip", "grasp", "synflow", "panning_staged"}


def test_wrong_names_and_densities_are_refused() -> None:
    problem = residual_problem()
    with pytest.raises(KeyError, match="Did you mean 'synflow'"):
        prune_problem(problem, 0.1, "synflo")
    for density in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(DensityError, match="must be in"):
            prune_problem(problem, density, "snip")
    with pytest.raises(DensityError, match="a path needs 3"):
        prune_problem(problem, 2 / problem.layout.n_prunable, "magnitude")


def test_rounds_are_counted_and_told() -> None:
    told: list[Event] = []
    prune_problem(mlp_problem(), 0.2, "iter_snip", rounds=Rounds(3, listen=told.append))
    densities = [0.2 ** (done / 3) for done in (1, 2, 3)]
    assert [(event.stage, event.done, event.total, event.kind) for event in told] == [
        ("pruning", done, 3, "round") for done in (1, 2, 3)
    ]
    assert [event.facts["density"] for event in told] == pytest.approx(densities)
    with pytest.raises(DensityError, match="at least 1"):
        prune_problem(mlp_problem(), 0.2, "iter_snip", rounds=Rounds(0))


def test_one_shot_keeps_the_highest_scores() -> None:
    problem = mlp_problem()
    scores = INDICES["snip"].formula(Signals(problem, torch.ones_like(problem.weight, dtype=torch.bool)))
    assert torch.equal(prune_problem(problem, 0.2, "snip").mask, top_k(scores, round(0.2 * scores.numel())))


def test_grasp_keeps_what_the_gradient_norm_needs() -> None:
    # Signed: the most negative w Hg goes first, whatever its magnitude.
    problem = mlp_problem()
    signals = Signals(problem, torch.ones_like(problem.weight, dtype=torch.bool), scoring=Scoring(temperature=200.0))
    scores = signals.weight * signals.hessian_grad
    kept = prune_problem(mlp_problem(), 0.9, "grasp").mask
    assert scores[kept].min() >= scores[~kept].max() and scores[~kept].min() == scores.min()


def test_force_in_one_round_is_snip() -> None:
    problem = mlp_problem()
    assert torch.equal(
        prune_problem(problem, 0.1, "force", rounds=Rounds(1)).mask, prune_problem(problem, 0.1, "snip").mask
    )


def masks_of_rounds(pruner: ScoreRounds, problem: Problem, density: float, monkeypatch: Any) -> list[torch.Tensor]:
    seen = []
    real = rounds_module.prune_round

    def spy(*args: Any) -> Any:
        result = real(*args)
        seen.append(result.mask)
        return result

    monkeypatch.setattr(rounds_module, "prune_round", spy)
    pruner(problem, density)
    return seen


def test_without_revival_masks_are_nested_and_with_it_weights_return(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = residual_problem()
    for revive in (False, True):
        masks = masks_of_rounds(ScoreRounds({"snip": 1.0}, 8, revive), problem, 0.02, monkeypatch)
        returned = sum(int((after & ~before).sum()) for before, after in zip(masks[:-1], masks[1:], strict=True))
        assert (returned > 0) == revive


def test_synflow_avoids_layer_collapse_down_to_one_weight_a_layer() -> None:
    problem = mlp_problem(sizes=(8, 16, 16, 3))
    result = prune_problem(problem, 3 / problem.layout.n_prunable, "synflow", rounds=Rounds(100))
    assert problem.layout.counts(result.mask) == [1, 1, 1]
    assert Connectivity.of(problem).n_alive(result.mask) == 3


def test_random_methods_have_exact_layer_counts() -> None:
    problem = residual_problem()
    counts = problem.layout.counts(prune_problem(problem, 0.25, "random").mask)
    assert all(abs(count - 0.25 * size) <= 1 for count, size in zip(counts, problem.layout.sizes, strict=True))


def test_stages_switch_at_the_stairs_one_at_a_time() -> None:
    assert next_stage(0, 0.20) == 0 and next_stage(0, 0.199) == 1
    assert next_stage(0, 0.001) == 1  # at most one stage a round
    assert next_stage(1, 0.099) == 2 and next_stage(2, 0.0199) == 3 and next_stage(3, 0.0099) == 4
    assert next_stage(4, 1e-6) == 4
    assert stage_weights(0) == {"synflow": 0.2, "snip": 0.5, "grasp": 0.3}
    assert stage_weights(4, "product") == {"synflow": 1.0, "snip": 0.0, "grasp": 1.0}


def test_the_stages_are_those_of_the_authors_code() -> None:
    # METHODS A11: (SynFlow, SNIP, GraSP); at density 0.005 ** (t / 10) the sparsity passes .80, .90, .98 and .99.
    stages = {
        "panning_staged": [(0.2, 0.5, 0.3), (0.2, 0.4, 0.4), (0.2, 0.3, 0.5), (0.4, 0.2, 0.4), (0.5, 0.0, 0.5)],
        "panning_staged_product": [(0.3, 1.0, 0.2), (0.3, 1.0, 0.4), (0.5, 0.5, 0.6), (0.8, 0.0, 1.0), (1.0, 0.0, 1.0)],
    }
    for method, weights in stages.items():
        history = prune_problem(residual_problem(), 0.005, method, rounds=Rounds(10)).history
        seen = [tuple(entry["weights"][name] for name in ("synflow", "snip", "grasp")) for entry in history]
        assert seen == [weights[stage] for stage in (0, 0, 0, 1, 2, 2, 2, 3, 4, 4)]


@pytest.mark.parametrize("toy", [lambda: mlp_problem(sizes=(24, 40, 30, 4)), residual_problem])
@pytest.mark.parametrize("index", ActionSpec().indices)
def test_an_agent_of_one_index_prunes_as_the_method_of_this_index(index: str, toy: Any) -> None:
    # The agent's neutral step is the exponential schedule, but for the rounding of whole weights (which matters to tiny
    # networks alone); one batch serves the whole episode, and weights may return.
    problem, spec = toy(), ActionSpec()
    result, _ = run_policy(problem, 0.03, Constant(spec.encode({index: 1.0})), spec, n_rounds=5)
    alone = ScoreRounds({index: 1.0}, n_rounds=5, revive=True)(problem, 0.03)
    assert torch.equal(result.mask, alone.mask) and torch.equal(result.scores, alone.scores)
    if index == "snip":
        assert torch.equal(result.mask, prune_problem(problem, 0.03, "force", rounds=Rounds(5)).mask)


def test_units_in_use_are_output_units_also_where_the_first_axis_is_the_inputs() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 1, bias=False), nn.Flatten(), nn.Linear(12, 4))
    state = initial(Problem.of(model, (2, 4), lambda number: (torch.ones(4, 2, 4), torch.arange(4))), 0.5, 2)
    alive = {"0.weight": torch.zeros(2, 3, 1), "2.weight": torch.zeros(4, 12)}
    alive["0.weight"][:, 0], alive["2.weight"][:2] = 1.0, 1.0  # one of three channels, two of four classes
    state = dataclasses.replace(state, alive=state.problem.layout.flatten(alive).bool())
    assert units_in_use(state) == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("fresh", [False, True])
def test_staged_panning_takes_the_dense_networks_signals_once_a_batch(
    fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    row = PASSES["hessian_grad"]

    def counted(site: Site) -> dict[str, torch.Tensor]:
        nonlocal passes
        passes += 1
        return row.run(site)

    problem = residual_problem()
    images, labels = problem.batch(0)
    if fresh:
        problem = dataclasses.replace(problem, batches=lambda number: (images.roll(number, 0), labels))
    monkeypatch.setitem(PASSES, "hessian_grad", dataclasses.replace(row, run=counted))
    mask = prune_problem(problem, 0.01, "panning_staged", rounds=Rounds(8)).mask
    assert passes == (8 if fresh else 1)
    monkeypatch.setattr(Site, "has_batch_of", lambda *sites: False)
    assert torch.equal(mask, prune_problem(problem, 0.01, "panning_staged", rounds=Rounds(8)).mask)
    assert passes == (16 if fresh else 9)


def test_staged_panning_records_its_stages() -> None:
    history = prune_problem(residual_problem(), 0.005, "panning_staged", rounds=Rounds(40)).history
    seen = [entry["weights"] for entry in history]
    assert seen[0] == stage_weights(0) and seen[-1] == stage_weights(4) and stage_weights(2) in seen


# --- all-alive ---


def alive_result(problem: Problem, mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return make_all_alive(problem, PruneResult(problem.layout, mask, scores)).mask


def test_all_alive_gives_a_dead_weights_budget_to_the_best_weight_that_can_live() -> None:
    # 2-2-1: the mask keeps input 0 -> hidden 0, which leads nowhere, and the whole of hidden 1's path.
    model = chain([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]])
    problem = Problem.of(model, (2,), None)
    mask = torch.tensor([True, False, False, True, False, True])
    scores = torch.tensor([9.0, 1.0, 5.0, 8.0, 2.0, 7.0])
    # The best weight between living units is input 0 -> hidden 1 (score 5).
    assert alive_result(problem, mask, scores).tolist() == [False, False, True, True, False, True]


def test_an_all_alive_mask_comes_back_as_it_is() -> None:
    problem = residual_problem()
    mask = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    assert alive_result(problem, mask, problem.weight.abs()) is mask


@settings(max_examples=40)
@given(st.integers(3, 300), st.integers(0, 10_000), st.sampled_from(["mlp", "residual"]))
def test_all_alive_keeps_exactly_k_alive_weights(k: int, seed: int, kind: str) -> None:
    problem = mlp_problem(sizes=(12, 20, 20, 4)) if kind == "mlp" else residual_problem()
    scores = torch.rand(problem.layout.n_prunable, generator=torch.Generator().manual_seed(seed))
    mask = top_k(scores, k)
    result = alive_result(problem, mask, scores)
    assert int(result.sum()) == k == Connectivity.of(problem).n_alive(result)


@settings(max_examples=60)
@given(st.data())
def test_all_alive_misses_no_count_on_any_shape_and_any_scores(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(2, 9), min_size=3, max_size=5))
    problem = mlp_problem(sizes=tuple(sizes))
    n, n_layers = problem.layout.n_prunable, len(sizes) - 1
    some = data.draw(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=30))
    scores = torch.tensor(some).repeat(n // len(some) + 1)[:n]
    k = data.draw(st.integers(n_layers, n))
    try:
        result = alive_result(problem, top_k(scores, k), scores)
    except DensityError as error:
        # One path has n_layers weights; a second unit in a hidden layer costs two more.
        assert n_layers < k < 2 * n_layers + 2 and "is the next number" in str(error)
    else:
        assert int(result.sum()) == k == Connectivity.of(problem).n_alive(result)


@pytest.mark.parametrize("k", [3, 4, 5, 6, 7, 11, 29])
def test_all_alive_works_where_scores_tie_and_layers_starve(k: int) -> None:
    problem = mlp_problem(sizes=(12, 20, 20, 4))
    scores = torch.zeros(problem.layout.n_prunable)
    scores[: 12 * 20] = 1.0  # everything in the first layer first
    result = alive_result(problem, top_k(scores, k), scores)
    assert int(result.sum()) == k == Connectivity.of(problem).n_alive(result)


class Bridged(nn.Module):
    """A tiny residual network: 1 -> 2, a bridged 2 -> 2, 2 -> 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.c(x + self.b(x))


@pytest.mark.parametrize(
    "model",
    [
        chain([[1.0], [1.0]], [[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]]),
        chain([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]),
        Bridged(),
    ],
    ids=["1-2-2-2-1", "3-2-2", "bridged"],
)
def test_all_alive_reaches_every_number_that_any_set_of_alive_weights_has(model: nn.Module) -> None:
    n_inputs = next(model.parameters()).shape[1]
    problem = Problem.of(model, (n_inputs,), None)
    net, n = Connectivity.of(problem), problem.layout.n_prunable
    subsets = [torch.tensor(bits) for bits in itertools.product([False, True], repeat=n)]
    reachable = {int(mask.sum()) for mask in subsets if bool(mask.any()) and torch.equal(net.alive(mask), mask)}
    for seed in range(2):
        scores = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        for k in range(1, n + 1):
            if k in reachable:
                assert int(net.alive(alive_result(problem, top_k(scores, k), scores)).sum()) == k
            else:
                with pytest.raises(DensityError, match="a path needs|is the next number|at most"):
                    alive_result(problem, top_k(scores, k), scores)


def test_all_alive_refuses_what_no_path_fits() -> None:
    problem = mlp_problem()
    mask = top_k(problem.weight.abs(), 2)
    with pytest.raises(DensityError, match="a path needs 3"):
        all_alive(Connectivity.of(problem), mask, problem.weight.abs())


def test_the_ranking_puts_the_mask_first_and_scatters_equals() -> None:
    layout = Layout(("a",), ((5,),))
    order = ranking(torch.tensor([False, True, False, True, True]), torch.tensor([9.0, 1.0, 9.0, 2.0, 1.0]), layout)
    assert order.tolist() == [3, 4, 1, 0, 2]
    assert first(order, 2).tolist() == [False, False, False, True, True]


def test_trimming_takes_the_lowest_first_and_never_below_the_bound() -> None:
    problem = mlp_problem(sizes=(6, 8, 8, 3))
    net = Connectivity.of(problem)
    scores = problem.weight.abs()
    alive = net.alive(flat_mask(problem.layout, 0.8, 0))
    order = ranking(alive, scores, problem.layout)
    trimmed = trim(net, alive, order, at_least=40)
    assert 40 <= int(trimmed.sum()) <= 41 and torch.equal(net.alive(trimmed), trimmed)
    assert not bool((trimmed & ~alive).any())


def test_trimming_after_a_collapse_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    # The last layer is empty until the very last weights of the ranking: opening it wakes up everything before it, and
    # the weight that everything hangs on is the first that trimming looks at.
    problem = mlp_problem(sizes=(40, 60, 60, 3))
    scores = torch.linspace(1.0, 0.5, problem.layout.n_prunable)
    passes = 0
    connected = Connectivity.connected

    def counted(self: Connectivity, mask: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return connected(self, mask)

    monkeypatch.setattr(Connectivity, "connected", counted)
    result = alive_result(problem, top_k(scores, 50), scores)
    assert int(result.sum()) == 50 and passes < 200
