"""Each method that moves masks, on networks so small that the answer is known by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panning.foundation.errors import ConfigError, MaskError, PanningWarning, UnknownNameError
from panning.foundation.seeding import torch_generator
from panning.pruners import prune_problem
from panning.scoring.problem import Problem
from panning.training import make_dynamic
from panning.training.moving.abilities import length_of
from panning.training.moving.method import Clock, Move, View
from panning.training.moving.methods import (
    cannistraci_hebb,
    deep_rewiring,
    partial,
    pruning_aware,
    quantized,
    reparameterization,
)
from panning.training.moving.methods.iterative import n_rounds
from panning.training.moving.selection import cosine, drop, grow, highest, shares, top_units
from panning.training.moving.timing import Ramp
from panning.training.presets import dynamic_presets, load_dynamic_preset
from panning.training.recipe import Plan, Recipe


def rows(*values: list[float]) -> nn.Module:
    """A linear layer with these weights for each list, one output each."""
    layers = [nn.Linear(len(row), 1, bias=False) for row in values]
    for layer, row in zip(layers, values, strict=True):
        layer.weight.data = torch.tensor([row])
    return nn.ModuleList(layers)


def view(
    *values: list[float], mask: list[int] | None = None, grad: list[float] | None = None, step: int = 10, n_steps: int = 10,
    start: float = 1.0, density: float = 0.5, momentum: list[float] | None = None, memory: dict[str, Tensor] | None = None,
    rate: float = 0.1,
) -> View:  # fmt: skip
    """What a method sees of layers with these weights."""
    problem = Problem.of(rows(*values), (len(values[0]),), None)
    kept = torch.tensor(mask or [1] * problem.layout.n_prunable).bool()
    return View(
        problem, Clock(step, n_steps, n_steps, 5), kept, start, density, problem.layout.names[:-1], problem.weight, kept,
        None if grad is None else torch.tensor(grad), rate, lambda: torch.tensor(momentum), memory or {},
        torch_generator(0, step),
    )  # fmt: skip


def kept(move: Move) -> list[int]:
    return move.mask.int().tolist()


def test_drop_and_grow_keep_their_counts_and_draw_lots_among_equals() -> None:
    seen = view([3.0, 1.0, 2.0, 0.0], [5.0, 4.0, 0.0, 0.0], mask=[1, 1, 1, 0, 1, 1, 0, 0])
    layout, generator = seen.layout, torch.Generator().manual_seed(0)
    dropped = drop(seen.weight, seen.mask, [2, 1], layout, generator)
    assert dropped.int().tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    grown = grow(torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0, 1.0, 2.0, 3.0]), dropped, [1, 2], layout, generator)
    assert grown.int().tolist() == [1, 0, 0, 1, 1, 0, 1, 1]
    drawn = torch.stack([highest(torch.zeros(6), 2, generator) for _ in range(60)])
    assert (drawn.sum(1) == 2).all() and (drawn.sum(0) > 5).all()
    assert shares(0.4, seen.mask, layout) == [1, 0]
    assert shares(0.5, torch.ones(8).bool(), layout) == [0, 0]  # full layers cannot change
    assert [cosine(0.4, 0.0, t) for t in (0, 0.5, 1, 2)] == pytest.approx([0.4, 0.2, 0.0, 0.0])


WEIGHTS = ([4.0, -1.0, 3.0, 2.0], [8.0, 5.0, -7.0, 6.0])


def test_gmp_takes_the_smallest_over_all_layers_or_of_each() -> None:
    assert kept(make_dynamic("gmp").move(view(*WEIGHTS))) == [0, 0, 0, 0, 1, 1, 1, 1]
    layerwise, seen = make_dynamic("gmp_layerwise"), view(*WEIGHTS)
    layerwise.begin(seen)
    assert kept(layerwise.move(seen)) == [1, 0, 1, 0, 1, 0, 1, 0]
    masked = view(*WEIGHTS, mask=[1, 1, 1, 1, 0, 1, 1, 1])
    assert kept(make_dynamic("gmp").move(masked)) == [1, 0, 0, 0, 0, 1, 1, 1]  # 8 is gone for good


def test_the_cubic_schedule_by_hand() -> None:
    gmp = make_dynamic("gmp", {"every": 2, "begin_at": 0.2, "end_at": 0.6})
    kept_at = {step: gmp.n_kept(view(*WEIGHTS, step=step)) for step in range(11)}
    # begins at step 2, ends at 6: 0.5 + 0.5 (1 - (t - 2) / 4)^3 of 8 weights, halves up
    assert kept_at == {0: 8, 1: 8, 2: 8, 3: 6, 4: 5, 5: 4, 6: 4, 7: 4, 8: 4, 9: 4, 10: 4}
    clock = Clock(0, 10, 10, 5)
    assert [step for step in range(11) if gmp.acts(Clock(step, 10, 10, 5))] == [0, 2, 4, 6]
    assert gmp.ends(clock) == 6
    from_sparse = gmp.n_kept(view(*WEIGHTS, step=4, start=0.75, density=0.25))
    assert from_sparse == 3  # 0.25 + 0.5 / 8 = 0.3125 of 8, halves up


def test_dpf_keeps_the_largest_dense_weights_whatever_was_masked() -> None:
    dpf = make_dynamic("dpf")
    seen = view(*WEIGHTS, mask=[1, 1, 1, 1, 0, 0, 0, 0])
    assert kept(dpf.move(seen)) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert kept(make_dynamic("dpf", {"scope": "layerwise"}).move(seen)) == [1, 0, 1, 0, 1, 0, 1, 0]
    assert [step for step in range(49) if dpf.acts(Clock(step, 48, 48, 5))] == [0, 16, 32, 36]
    frozen = make_dynamic("dpf", {"frozen": 0.25, "every": 4})
    late = [step for step in range(48) if frozen.learns_kept_only(Clock(step, 48, 48, 5))]
    assert late == list(range(36, 48))
    assert [step for step in range(1, 48) if frozen.acts(Clock(step, 48, 48, 5))] == list(range(4, 37, 4))


def units() -> Problem:
    """Two hidden layers of three and two units, and two outputs."""
    model = nn.Sequential(
        nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)
    )
    model[0].weight.data = torch.tensor([[1.0, 1.0], [3.0, 0.0], [2.0, 2.0]])
    model[2].weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    model[4].weight.data = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    return Problem.of(model, (2,), None)


def test_units_go_by_their_norm_and_outputs_stay() -> None:
    problem = units()
    hidden = ("0.weight", "2.weight")
    mask = top_units(problem, problem.weight, hidden, 0.67)
    assert mask.int().tolist() == [0, 0, 1, 1, 1, 1] + [0, 0, 0, 1, 1, 1] + [1, 1, 1, 1]
    assert (
        top_units(problem, problem.weight, hidden, 0.01).int().tolist()
        == [0, 0, 1, 1, 0, 0] + [0, 0, 0, 1, 1, 1] + [1] * 4
    )


def test_surgery_splices_only_what_crosses_the_band() -> None:
    surgery = make_dynamic("surgery", {"decay": 0.0})
    near = view([1.0, 0.9, 1.05, 0.1], mask=[1, 1, 0, 0])  # 1.05 / 1.1 < 0.9 / 0.9
    assert kept(surgery.move(near)) == [1, 1, 0, 0]
    far = view([1.0, 0.9, 1.15, 0.1], mask=[1, 1, 0, 0])  # 1.15 / 1.1 > 0.9 / 0.9
    assert kept(surgery.move(far)) == [1, 0, 1, 0]
    seldom = make_dynamic("surgery", {"decay": 1e9})
    assert kept(seldom.move(far)) == [1, 1, 0, 0]
    shrinking = view([1.0, 0.9, 1.15, 0.1], mask=[1, 1, 0, 0], density=0.25)
    assert kept(seldom.move(shrinking)) == [1, 0, 0, 0]


def test_set_takes_of_both_signs_the_nearest_to_zero() -> None:
    weights = [0.1, 0.2, 0.3, -0.4, -0.5, -0.6, 0.0, 0.0]
    seen = view(weights, mask=[1, 1, 1, 1, 1, 1, 0, 0])
    moved = make_dynamic("set", {"fraction": 0.34}).move(seen)
    assert int(moved.mask.sum()) == 6 and moved.mask[[1, 2, 4, 5]].all()
    by_magnitude = view([0.1, 0.2, 0.3, -4.0, -5.0, -6.0], mask=[1] * 6)
    assert make_dynamic("set").move(by_magnitude).mask.all()  # a full layer stays
    modern, whole = (
        make_dynamic("set", {"fraction": 0.34, "until": 0.75, "anneal": True, "every": 10}),
        make_dynamic("set"),
    )
    clocks = [Clock(step, 100, 100, 10) for step in range(1, 101)]
    assert [clock.step for clock in clocks if modern.acts(clock)] == [10, 20, 30, 40, 50, 60, 70]
    assert [clock.step for clock in clocks if whole.acts(clock)] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    halfway = view(weights, mask=[1, 1, 1, 1, 1, 1, 0, 0], step=5)
    assert make_dynamic("set", {"fraction": 0.68, "anneal": True}).move(halfway).mask[[1, 2, 4, 5]].all()  # 0.34 by now
    chosen = torch.zeros(8)
    for step in range(40):
        chosen += make_dynamic("set", {"fraction": 0.34}).move(view(weights, mask=[1] * 6 + [0] * 2, step=step)).mask
    assert (chosen[[0, 3, 6, 7]] > 5).all() and (chosen[[0, 3, 6, 7]] < 35).all()  # all four free places are drawn


def test_deep_rewiring_masks_what_crosses_zero_and_draws_another() -> None:
    method = make_dynamic("deep_r", {"l1": 0.0, "noise": 0.0})
    memory = {deep_rewiring.SIGN: torch.tensor([1, -1, 1, -1], dtype=torch.int8)}
    moved = method.move(view([0.5, 0.2, 0.0, 0.0], mask=[1, 1, 0, 0], memory=memory))  # 0.2 has the wrong sign
    assert moved.mask[0] and not moved.mask[1] and int(moved.mask.sum()) == 2
    new = int(moved.mask.nonzero()[-1])
    assert moved.weight is not None
    assert moved.weight[0] == 0.5 and moved.weight[new] == pytest.approx([0, 0, 1e-12, -1e-12][new])
    shrunk = make_dynamic("deep_r", {"l1": 1.0, "noise": 0.0})
    moved = shrunk.move(view([0.5, -0.2, 0.0, 0.0], mask=[1, 1, 0, 0], memory=memory))
    assert moved.weight is not None and moved.weight[:2].tolist() == pytest.approx([0.4, -0.1])
    seen = view([0.5, -0.2, 0.0, 0.0], mask=[1, 1, 0, 0])
    method.begin(seen)
    assert seen.memory[deep_rewiring.SIGN][:2].tolist() == [1, -1]
    assert set(seen.memory[deep_rewiring.SIGN][2:].tolist()) <= {1, -1}


def test_dsr_moves_weights_to_the_layers_that_lose_few() -> None:
    first, second = [0.1, 0.2, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0]
    mask = [1, 1, 1, 1, 0, 0, 0, 0] * 2
    memory = {reparameterization.THRESHOLD: torch.tensor(1.0, dtype=torch.float64)}
    method = make_dynamic("dsr", {"n_moved": 2})
    moved = method.move(view(first, second, mask=mask, memory=memory))
    # two go from the first layer; of the six left the first has two and the second four: it gets 2 * 4 / 6, rounded
    assert moved.mask[:2].tolist() == [False, False] and moved.mask[2:4].all() and moved.mask[8:12].all()
    assert (int(moved.mask[:8].sum()), int(moved.mask[8:].sum())) == (3, 5)
    assert memory[reparameterization.THRESHOLD] == 1.0  # as many as wanted
    for wanted, threshold in ((1, 0.5), (10, 2.0)):
        memory[reparameterization.THRESHOLD] = torch.tensor(1.0, dtype=torch.float64)
        make_dynamic("dsr", {"n_moved": wanted}).move(view(first, second, mask=mask, memory=memory))
        assert memory[reparameterization.THRESHOLD] == threshold
    memory[reparameterization.THRESHOLD] = torch.tensor(100.0, dtype=torch.float64)
    survivors = method.move(view(first, second, mask=mask, memory=memory)).mask
    assert int(survivors.sum()) == 8 and survivors[[2, 3]].any() and survivors[8:12].any()  # one of each layer stays
    acts = [step for step in range(1, 80) if make_dynamic("dsr", {"every": 4}).acts(Clock(step, 80, 80, 5))]
    assert acts == [4, 8, 16, 24, 32, 48, 64]  # twice as far apart from steps 10, 32 and 56 on; none from 76 on


def test_sparse_momentum_gives_the_budget_to_layers_with_momentum() -> None:
    first, second = [0.1, 0.2, 5.0, 5.0, 0.0, 0.0], [0.3, 0.4, 5.0, 5.0, 0.0, 0.0]
    mask = [1, 1, 1, 1, 0, 0] * 2
    momentum = [1.0, 1.0, 1.0, 1.0, 9.0, 8.0] + [3.0, 3.0, 3.0, 3.0, 2.0, 7.0]
    method = make_dynamic("snfs", {"fraction": 0.5})
    moved = method.move(view(first, second, mask=mask, momentum=momentum, step=0))
    # four go; by mean momentum 1 to 3 the layers get one and three; the largest momentum of what is masked wins
    assert kept(moved) == [0, 0, 1, 1, 1, 0] + [1, 1, 1, 1, 0, 1]


def test_rigl_grows_where_the_whole_gradient_is_largest_and_keeps_what_it_grows_again() -> None:
    weights = [0.1, 0.2, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0]
    mask = [1, 1, 1, 1, 0, 0, 0, 0]
    rigl = make_dynamic("rigl", {"fraction": 0.5, "until": 1.0})
    seen = view(weights, mask=mask, grad=[0.0, 3.0, 0.0, 0.0, -9.0, 1.0, 2.0, 1.0], step=0)
    moved = rigl.move(seen)
    assert kept(moved) == [0, 1, 1, 1, 1, 0, 0, 0] and moved.weight is None  # the second was dropped and comes back
    late = view(weights, mask=mask, grad=[0.0] * 4 + [9.0] * 4, step=5)
    assert int((rigl.move(late).mask & ~late.mask).sum()) == 1  # half the fraction at half time
    clocks = [Clock(step, 1000, 1000, 5) for step in range(1, 1001)]
    assert [clock.step for clock in clocks if make_dynamic("rigl").acts(clock)] == [100, 200, 300, 400, 500, 600, 700]


def test_granet_prunes_over_all_layers_and_exchanges_within_each() -> None:
    granet = make_dynamic("granet", {"fraction": 0.5, "last_fraction": 0.5})
    gradient = [0.0, 9.0, 0.0, 0.0] + [0.0, 0.0, 0.0, 0.0]
    layers = ([4.0, 1.0, 3.0, 2.0], [8.0, 0.5, 7.0, 6.0])
    moved = granet.move(view(*layers, grad=gradient, step=9))
    # the four largest are 8, 7, 6 and 4; the first layer exchanges ceil(0.5) = 1, the second ceil(1.5) = 2
    assert kept(moved)[:4] == [0, 1, 0, 0]
    assert moved.mask[4] and int(moved.mask[4:].sum()) == 3
    assert kept(granet.move(view(*layers, grad=gradient))) == [1, 0, 0, 0, 1, 0, 1, 1]  # after the last step


def test_imp_goes_through_the_schedule_once_for_each_round() -> None:
    assert [n_rounds(1.0, d, 0.8, 10_000) for d in (1.0, 0.8, 0.79, 0.64, 0.01)] == [0, 1, 2, 2, 21]
    # counted in weights: 51 of 1023 are the mask at 0.05, whose own density is 0.04985
    assert [n_rounds(51 / 1023, d, 0.5, 1023) for d in (0.05, 0.025, 0.0249)] == [0, 1, 2]
    assert n_rounds(1.0, 0.005, 0.01, 1000) == 2  # the second leaves none, but for what is wanted
    imp = make_dynamic("imp", {"rewind_to": 0.25})
    assert imp.length(8, 1.0, 0.5, 10_000) == 8 + 4 * 6
    recipe = Recipe(learning_rate=1.0, schedule="steps", milestones=(0.5,))
    rates = [imp.learning_rate(recipe, step, 8) for step in range(20)]
    assert rates == pytest.approx([1] * 4 + [0.1] * 4 + ([1] * 2 + [0.1] * 4) * 2)
    assert [step for step in range(33) if imp.acts(Clock(step, 32, 8, 5))] == [8, 14, 20, 26]
    tuning = make_dynamic("imp_fine_tuning")
    assert [tuning.learning_rate(recipe, step, 8) for step in (7, 8, 15)] == pytest.approx([0.1, 0.01, 0.01])
    # 0.8 of 8 weights are 6, of the schedule's 20 the second round is over at 40: 0.64 of 8 are 5
    first = view(*WEIGHTS, step=20, n_steps=100, density=0.1)
    first = View(**{**vars(first), "clock": Clock(20, 100, 20, 5)})
    assert kept(make_dynamic("imp").move(first)) == [1, 0, 1, 0, 1, 1, 1, 1]
    second = View(**{**vars(first), "clock": Clock(40, 100, 20, 5), "mask": make_dynamic("imp").move(first).mask})
    assert kept(make_dynamic("imp").move(second)) == [1, 0, 0, 0, 1, 1, 1, 1]
    assert make_dynamic("imp").move(second).restart and make_dynamic("imp_weights").move(second).rewind


def test_lenets_of_imp_train_as_open_lth_has_them() -> None:
    for name in ("imp", "imp_weights", "imp_fine_tuning"):
        setting = load_dynamic_preset(f"{name}/lenet300_100-mnist/paper")
        assert setting.recipe.momentum == 0.0
        method = make_dynamic(name, setting.options)
        assert method.learning_rate(setting.recipe, 99, 100) == method.learning_rate(setting.recipe, 100, 100) == 0.1


#: Images of the training part.
N_TRAIN = {"mnist": 54_000, "fashion_mnist": 54_000, "cifar10": 45_000, "cifar100": 45_000, "tiny_imagenet": 90_000}


@pytest.mark.parametrize("name", dynamic_presets())
def test_every_preset_has_time_to_move(name: str) -> None:
    setting, (row, task, _) = load_dynamic_preset(name), name.split("/")
    method, plan = make_dynamic(row, setting.options), Plan.of(setting.recipe, N_TRAIN[task.rpartition("-")[2]])
    clock = Clock(0, length_of(method, plan.n_steps, 1.0, 0.05, 10_000), plan.n_steps, plan.steps_per_epoch)
    method.check(clock, units())
    assert not (isinstance(method, Ramp) and method.is_abrupt(clock))


def test_edst_explores_and_then_refines_one_member_after_the_other() -> None:
    edst = make_dynamic("edst", {"n_members": 2, "every": 4, "exploration": 0.5})
    recipe = Recipe(learning_rate=1.0)
    rates = [edst.learning_rate(recipe, step, 24) for step in range(24)]
    assert rates == pytest.approx([1.0] * 12 + ([0.1] * 3 + [0.01] * 3) * 2)
    clocks = [Clock(step, 24, 24, 5) for step in range(1, 25)]
    assert [clock.step for clock in clocks if edst.acts(clock)] == [4, 8, 18]
    assert [edst.member(clock) for clock in clocks] == [None] * 12 + [0] * 6 + [1] * 6


def test_the_early_pruning_indicator_by_hand() -> None:
    past = torch.tensor([[2.0, 3.0], [4.0, 1.0]])
    # |4-2|/6 = 1/3, |1-3|/4 = 1/2: 1 - 5/12; the second epoch is the same: 1
    assert pruning_aware.indicator(torch.tensor([4.0, 1.0]), past) == pytest.approx((7 / 12 + 1) / 2)


def test_pat_prunes_units_once_the_structure_is_settled_or_time_is_up() -> None:
    pat = make_dynamic("pat", {"n_past": 2, "latest": 0.9})
    problem = units()
    seen = View(**{**vars(view([1.0])), "problem": problem, "weight": problem.weight, "density": 0.6,
                   "mask": torch.ones(16).bool(), "clock": Clock(5, 100, 100, 5),
                   "hidden": ("0.weight", "2.weight")})  # fmt: skip
    pat.begin(seen)
    assert all(pat.move(seen).mask.all() for _ in range(2))
    pruned = pat.move(seen).mask  # the same ranking for the third time
    # norms by their layers' root mean squares: 0.56, 1.19, 1.12 and 0.63, 1.26: three of five units stay
    assert pruned.int().tolist() == [0, 0, 1, 1, 1, 1] + [0, 0, 0, 1, 1, 1] + [1, 1, 1, 1]
    assert torch.equal(pat.move(View(**{**vars(seen), "mask": pruned})).mask, pruned)  # once
    restless = make_dynamic("pat", {"n_past": 50, "latest": 0.5})
    restless.begin(seen)
    assert restless.move(seen).mask.all()
    late = View(**{**vars(seen), "clock": Clock(50, 100, 100, 5)})
    assert not restless.move(late).mask.all()
    assert not restless.acts(Clock(55, 100, 100, 5))


def test_early_pruning_is_the_method_at_the_weights_of_that_step() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    problem = Problem.of(model, (4,), None)
    early = make_dynamic("early", {"method": "magnitude", "after": 3})
    seen = View(**{**vars(view([1.0])), "problem": problem, "weight": problem.weight, "mask": torch.ones(42).bool()})
    assert torch.equal(early.move(seen).mask, prune_problem(problem, 0.5, "magnitude").mask)
    assert [step for step in range(20) if early.acts(Clock(step, 20, 20, 5))] == [3]
    at_once = make_dynamic("early", {"method": "magnitude", "after": 0})
    assert int(at_once.begin(seen).mask.sum()) == 21


def test_quantisation_has_evenly_spaced_values_and_zero() -> None:
    values = torch.tensor([-1.0, -0.4, -0.1, 0.0, 0.2, 0.5, 0.9])
    grid = quantized.quantize(values, 3, values.abs().max())  # levels at thirds
    assert grid.tolist() == pytest.approx([-1, -1 / 3, 0, 0, 1 / 3, 2 / 3, 1])
    assert quantized.quantize(torch.zeros(3), 8, torch.tensor(0.0)).tolist() == [0, 0, 0]


def test_the_order_of_quantisation_and_pruning_matters() -> None:
    weights = [0.30, 1.0, 0.36, -0.31]  # with 3 bits the small ones are all one third: lots are drawn
    memory = {quantized.IS_ON: torch.tensor(True)}
    first, second = (
        make_dynamic("quantized", {"weight_bits": 3, "order": o}) for o in ("prune_quantize", "quantize_prune")
    )
    seen = view(weights, memory=memory)
    assert kept(first.move(seen)) == [0, 1, 1, 0]
    drawn = torch.stack([second.move(view(weights, memory=memory, step=step)).mask for step in range(10, 50)])
    assert drawn[:, 1].all() and (drawn.sum(1) == 2).all()
    assert (drawn.sum(0) > 5).all()  # by position, the first inputs of a layer would always win
    run = first.run_weights(seen.weight, first.move(seen).mask, seen.problem, memory)
    assert run.tolist() == pytest.approx([0, 1, 1 / 3, 0])
    memory[quantized.IS_ON] = torch.tensor(False)
    assert first.run_weights(seen.weight, seen.mask, seen.problem, memory).tolist() == pytest.approx(weights)


def test_the_cores_of_partially_masked_training() -> None:
    problem = units()
    mask = partial.narrow(problem, ("0.weight", "2.weight"), 0.5)
    # the first two of three units (halves up), the first of two, and nothing reads the others
    assert mask.int().tolist() == [1, 1, 1, 1, 0, 0] + [1, 1, 0, 0, 0, 0] + [1, 0, 1, 0]
    matrix = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(partial.low_rank(matrix, 1), torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(partial.low_rank(matrix, 2), matrix)
    method = make_dynamic("partial", {"core_share": 0.25})
    whole = [method.runs_whole(Clock(step, 8, 8, 5)) for step in range(8)]
    assert whole == [True, True, True, False] * 2
    assert [method.learns_kept_only(Clock(step, 8, 8, 5)) for step in range(8)] == [not w for w in whole]


def test_a_release_keeps_the_mask_and_then_all_weights() -> None:
    release = make_dynamic("release", {"at": 0.3})
    assert [step for step in range(11) if release.acts(Clock(step, 10, 10, 5))] == [3]
    seen = view(*WEIGHTS, mask=[1, 0] * 4)
    assert kept(release.begin(seen)) == [1, 0] * 4 and kept(release.move(seen)) == [1] * 8
    for at, n_steps in ((0.01, 10), (0.99, 10)):
        with pytest.raises(MaskError, match=f"A release at {at} of 10 steps leaves no step"):
            make_dynamic("release", {"at": at}).check(Clock(0, n_steps, n_steps, 5), seen.problem)


def test_rigl_by_itop_moves_to_the_end() -> None:
    itop = make_dynamic("rigl_itop")
    assert (itop.every, itop.fraction) == (4000, 0.5)
    moves = list(itop.move_steps(Clock(0, 97_750, 97_750, 391)))
    assert len(moves) == 24 and moves[-1] == 96_000


def test_the_links_that_connections_foretell() -> None:
    """X = [[1, 1], [1, 0]]: one path of three links leads from output 2 to input 2, through row 1 and through column 1."""
    assert cannistraci_hebb.ch3_l3(torch.tensor([[1, 1], [1, 0]]).bool())[1, 1] == 2.0
    # Row 0 has three inputs, of which it shares one with row 1: 1 / (3 - 1). Column 0 has two outputs, both those of the
    # columns 1 and 2 among them: 1 / (2 - 1).
    wide = cannistraci_hebb.ch3_l3(torch.tensor([[1, 1, 1], [1, 0, 0]]).bool())
    assert wide[1].tolist()[1:] == [1.5, 1.5]
    apart = cannistraci_hebb.ch3_l3(torch.eye(2).bool())
    assert not apart[0, 1] and not apart[1, 0]  # nothing is shared


def hebbian(weights: list[list[float]], mask: list[list[int]], **rest: Any) -> View:
    """What CHT sees of one layer between two full ones."""
    n_out, n_in = len(weights), len(weights[0])
    model = nn.Sequential(
        nn.Linear(2, n_in, bias=False), nn.Linear(n_in, n_out, bias=False), nn.Linear(n_out, 1, bias=False)
    )
    model[1].weight.data = torch.tensor(weights)
    problem = Problem.of(model, (2,), None)
    flat = torch.cat([torch.ones(2 * n_in), torch.tensor(mask).flatten(), torch.ones(n_out)]).bool()
    return View(**{**vars(view([1.0])), "problem": problem, "weight": problem.weight, "mask": flat, **rest})


def test_cht_drops_the_smallest_and_grows_what_is_foretold() -> None:
    weights = [[3.0, 2.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.1]]
    seen = hebbian(weights, [[1, 1, 0], [1, 0, 0], [0, 0, 1]])
    moved = make_dynamic("cht", {"fraction": 0.25}).move(seen)
    # 0.1 goes; (1, 1) closes a chain of three links, and no other place does.
    assert moved.mask[6:15].view(3, 3).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert moved.mask[:6].all() and moved.mask[15:].all()  # full layers stay


def test_cht_takes_chains_that_are_cut_off() -> None:
    """The second unit's only input goes, and with it what reads the unit."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 2.0, 0.0], [0.1, 0.0, 0.0]])
    model[1].weight.data = torch.tensor([[5.0, 0.0], [4.0, 0.5], [0.0, 0.0]])
    problem = Problem.of(model, (3,), None)
    mask = torch.tensor([1, 1, 0, 1, 0, 0] + [1, 0, 1, 1, 0, 0]).bool()
    seen = View(**{**vars(view([1.0])), "problem": problem, "weight": problem.weight, "mask": mask})
    moved = make_dynamic("cht", {"fraction": 0.34}).move(seen)  # one of three goes in each layer: 0.1, and 0.5
    assert problem.layout.counts(moved.mask) == [3, 3] and moved.mask[[0, 1, 6, 8]].all()
    less = make_dynamic("cht", {"fraction": 0.0}).move(View(**{**vars(seen), "mask": mask & (torch.arange(12) != 3)}))
    assert problem.layout.counts(less.mask) == [2, 3] and less.mask[[6, 8]].all()


def test_soft_cht_keeps_large_weights_more_often_as_training_goes_on() -> None:
    """In proportion to |w|^T, where T rises from 1 to 3."""
    share, chts = {}, make_dynamic("chts")
    for step in (0, 10):
        seen = vars(view([1.0, 2.0, 1.0, -2.0], step=step, n_steps=10))
        views = [View(**{**seen, "generator": torch.Generator().manual_seed(seed)}) for seed in range(2000)]
        drawn = torch.stack([highest(chts._strength(one), 1, torch.Generator()) for one in views])
        share[step] = float(drawn.float().mean(0)[[1, 3]].sum())
    assert share == pytest.approx({0: 4 / 6, 10: 16 / 18}, abs=0.04)


def test_cht_leaves_convolutions_alone_and_says_so() -> None:
    cht, clock = make_dynamic("cht"), Clock(0, 20, 20, 5)
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.warns(PanningWarning, match=r"all others stay as they are \(0.weight\)"):
        cht.check(clock, Problem.of(conv, (1, 4, 4), None))
    with pytest.raises(MaskError, match="'0.weight' and all others are none"):
        cht.check(clock, Problem.of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 4, 4), None))


def test_the_factors_of_sign_in() -> None:
    sign_in = make_dynamic("sign_in")
    a, b = sign_in.factors(torch.tensor([15 / 16, -15 / 16, 0.0]))
    assert a.tolist() == [1.25, 1.25, 1.0] and b.tolist() == [0.75, -0.75, 0.0]
    a, b = make_dynamic("sign_in", {"beta": 3.0}).factors(torch.tensor([2.0]))
    assert (a.tolist(), b.tolist()) == ([2.0], [1.0])
    assert [step for step in range(16) if sign_in.acts(Clock(step, 15, 15, 5))] == [0, 5, 10]


def test_numbers_of_a_method_are_checked_by_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'rigl'"):
        make_dynamic("rigel")
    with pytest.raises(ConfigError, match=r"fractoin: unknown key. Did you mean 'fraction'"):
        make_dynamic("rigl", {"fractoin": 0.5})
    wrong: dict[str, dict[str, Any]] = {
        "rigl": {"fraction": 1.5},
        "early": {"method": "snipp"},
        "gmp": {"schedule": "x"},
        "dpf": {"begin_at": 0.8},
    }
    for name, options in wrong.items():
        with pytest.raises(ConfigError, match=next(iter(options))):
            make_dynamic(name, options)


def test_momentum_must_be_there_to_grow_by_it() -> None:
    from panning import move_masks

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plain = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(MaskError, match="use SGD with momentum or Adam"):
        move_masks(model, plain, "snfs", density=0.5, n_steps=4, steps_per_epoch=1, input_shape=(4,))
    for kind in ("Adadelta", "Adafactor", "Adagrad", "ASGD", "Rprop", "RMSprop"):
        with pytest.raises(MaskError, match=f"{kind} keeps none"):
            other = getattr(torch.optim, kind)(model.parameters(), 0.1)
            move_masks(model, other, "snfs", density=0.5, n_steps=4, steps_per_epoch=1, input_shape=(4,))
    for kind, rest in (("RMSprop", {"momentum": 0.5}), ("Adamax", {}), ("NAdam", {}), ("RAdam", {}), ("AdamW", {})):
        other = getattr(torch.optim, kind)(model.parameters(), 0.1, **rest)
        with move_masks(model, other, "snfs", density=0.5, n_steps=4, steps_per_epoch=1, input_shape=(4,)) as moving:
            for _ in range(4):
                other.zero_grad()
                model(torch.ones(2, 4)).sum().backward()
                other.step()
        assert moving.masks.n_kept == 21


@pytest.mark.parametrize("name", ["rigl", "snfs", "partial"])
def test_gradients_of_embeddings_may_be_sparse(name: str) -> None:
    from panning import move_masks

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    tokens = torch.randint(10, (6, 2))
    method = make_dynamic(name, {"every": 2})
    moving = move_masks(
        model, optimizer, method, density=0.5, n_steps=8, include="*weight", data=(tokens, torch.zeros(6).long())
    )
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), torch.zeros(6).long()).backward()
        optimizer.step()
    masks = moving.finish()
    assert masks.n_kept == 32 and not model[0].weight[~masks["0.weight"]].any()


class Attending(nn.Module):
    """Attention to the first layer's outputs, called by names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2)
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        words = self.first(inputs)
        mask = torch.zeros(len(words), len(words)).fill_diagonal_(-torch.inf)
        outputs: Tensor = self.last(self.attention(query=words, key=words, value=words, attn_mask=mask)[0])
        return outputs


def test_every_input_of_a_layer_is_quantised_by_its_sample() -> None:
    torch.manual_seed(0)
    model, seen = Attending().eval(), []
    names = ["first.weight", "attention.in_proj_weight", "attention.out_proj.weight", "last.weight", "last.bias"]
    quantized.quantize_inputs(model, names, 3)
    hooks = [module._forward_pre_hooks for module in (model.first, model.attention, model.last)]
    assert [len(hook) for hook in hooks] == [0, 1, 1]
    model.attention.register_forward_pre_hook(lambda _, args, named: seen.append(named), with_kwargs=True)
    inputs = torch.randn(5, 2, 4)  # [words, samples, features]
    outputs = model(inputs)
    assert outputs.isfinite().all()  # the mask is left as it is
    for name in ("query", "key", "value"):
        assert all(len(seen[0][name][:, sample].unique()) <= 7 for sample in range(2))
    model(inputs[:, :1])
    assert torch.allclose(seen[1]["key"], seen[0]["key"][:, :1])  # whatever the other samples are
    quantized.run_in_full(model)
    assert not model.last._forward_pre_hooks and not torch.equal(model(inputs), outputs)
