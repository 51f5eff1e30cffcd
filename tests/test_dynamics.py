"""Masks that move in training: what holds for every row of ``DYNAMICS``, and what single methods must not break."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import panning
from panning.data import load_data
from panning.foundation.errors import DataError, MaskError, PanningError
from panning.foundation.progress import Event
from panning.masks.masks import Masks, n_kept_at
from panning.models import build_model
from panning.pruners import prune_problem
from panning.scoring.problem import Problem
from panning.tasks import TaskSpec, load_task
from panning.training import DYNAMICS, Movement, Recipe, evaluate, evaluate_mean, make_dynamic, train
from panning.training.moving.abilities import FollowsWholeGradient
from panning.training.moving.engine import MovingMasks
from panning.training.moving.method import Dynamic
from panning.training.moving.methods import first_mask, pruning_aware, quantized
from panning.training.moving.timing import Ramp

DENSITY = 0.1
SPEC = TaskSpec(model="mlp", data="digits", n_train=300)
DATA = load_data("digits", n_train=300)
FEW = DATA.batch(DATA.train, torch.arange(50))
RECIPE = Recipe(epochs=4, batch_size=50, learning_rate=0.05)  # 24 steps in epochs of 6
#: Numbers that make a method act within so short a training.
SHORT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("imp", "imp_weights", "imp_fine_tuning"), {"kept_each": 0.3}),
    "dsr": {"fraction": 0.2, "threshold": 0.02},
    "early": {"after": 5},
    "edst": {"n_members": 2},
}


def shortened(name: str) -> Dynamic:
    method = DYNAMICS[name].method
    options = dict(SHORT.get(name, {}))
    if method.every is not None and method.every > 1:
        options["every"] = 2
    return make_dynamic(name, options)


def movement(name: str, density: float = DENSITY, all_alive: bool = False) -> Movement:
    return Movement(shortened(name), load_task(SPEC, 0).problem, density, all_alive)


def start(name: str, density: float = DENSITY) -> Masks:
    problem = load_task(SPEC, 0).problem
    return first_mask(problem, shortened(name), density, DYNAMICS[name])


def network() -> nn.Module:
    return copy.deepcopy(load_task(SPEC, 0).problem.model)


def steps(moving: MovingMasks, optimizer: torch.optim.Optimizer, n: int, seed: int = 0) -> Iterator[MovingMasks]:
    """A plain loop, as users have it."""
    generator = torch.Generator().manual_seed(seed)
    model = moving.problem.model.train()
    for _ in range(n):
        inputs, labels = DATA.batch(DATA.train, torch.randint(len(DATA.train), (50,), generator=generator))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        yield moving


def started(name: str, kind: str = "sgd", **rest: Any) -> tuple[MovingMasks, torch.optim.Optimizer]:
    model = network()
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3),
        "adam": lambda: torch.optim.Adam(model.parameters(), 0.002),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), 0.002),
    }[kind]()
    options = {"density": DENSITY, "n_steps": 24, "steps_per_epoch": 6, "input_shape": DATA.input_shape, **rest}
    given = {"masks": start(name)} if "masks" not in options else {}
    method = options.pop("method", None) or shortened(name)
    return panning.move_masks(model, optimizer, method, **options, **given), optimizer


def partial(core: str) -> tuple[MovingMasks, torch.optim.Optimizer]:
    """A core within a whole network."""
    first = start("partial") if core == "mask" else Masks.dense(load_task(SPEC, 0).problem.layout)
    return started("partial", method=make_dynamic("partial", {"core": core}), masks=first)


def state_of(moving: MovingMasks, optimizer: torch.optim.Optimizer) -> Tensor:
    """The optimizer's state of the prunable weights, flat and added up."""
    named = dict(moving.problem.model.named_parameters())
    parts = []
    for name in moving.problem.layout.names:
        like = [
            v for v in optimizer.state[named[name]].values() if isinstance(v, Tensor) and v.shape == named[name].shape
        ]
        parts.append(sum((value.abs() for value in like), torch.zeros(named[name].shape)).flatten())
    return torch.cat(parts)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if p.dim() > 1])


@pytest.mark.parametrize("name", DYNAMICS)
def test_the_density_follows_its_schedule_to_the_weight(name: str) -> None:
    moving, optimizer = started(name)
    method, n_prunable = moving.method, moving.problem.layout.n_prunable
    n_final = n_kept_at(DENSITY, n_prunable)
    n_moves, before = 0, moving.mask
    for _ in steps(moving, optimizer, moving.n_steps):
        n_kept = int(moving.mask.sum())
        n_moves += not torch.equal(before, moving.mask)
        if not method.prunes_units and method.acts(moving.clock) and not method.defers:
            expected = method.n_kept(moving.view(moving.clock)) if isinstance(method, Ramp) else n_final
            expected = n_prunable if method.releases else expected
            assert n_kept == expected
        assert method.prunes_units or n_kept >= n_final
        assert not method.keeps_count or n_kept == n_final
        before = moving.mask
    masks = moving.finish()
    assert moving.member is not None and moving.clock.is_over
    if method.prunes_units:
        rows = moving.problem.by_unit(masks.flat)
        left = [float(rows[layer].any(1).float().mean()) for layer in moving.hidden]
        assert max(left) <= 0.5 and min(left) > 0
    else:
        assert masks.n_kept == (n_prunable if method.releases else n_final)
    assert n_moves > 0 or name in ("partial", "sign_in")  # whose masks stay
    assert method.acts(moving.clock) <= (name in ("soft_filter", "deep_r"))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("name", DYNAMICS)
def test_masked_weights_are_and_learn_what_the_method_says(name: str, kind: str) -> None:
    moving, optimizer = started(name, kind)
    method, model = moving.method, moving.problem.model
    for _ in steps(moving, optimizer, moving.n_steps):
        weights, masked = weights_of(model), ~moving.mask
        assert weights.isfinite().all()
        if method.holds == "zero":
            assert not weights[masked].any()
            assert isinstance(method, FollowsWholeGradient) or not state_of(moving, optimizer)[masked].any()
        elif method.holds == "feedback" and not method.runs_whole(moving.clock):
            assert not weights[masked].any()
    masked = ~moving.finish().flat
    assert not weights_of(model)[masked].any() and weights_of(model)[~masked].any()
    held = weights_of(model)
    for _ in steps(moving, optimizer, 1):
        assert moving.clock.step == moving.n_steps and not torch.equal(held, weights_of(model))  # free again


@pytest.mark.parametrize(
    ("name", "all_alive"),
    [
        (name, alive)
        for name in DYNAMICS
        for alive in (False, True)
        if not (alive and DYNAMICS[name].method.prunes_units)
    ],
)
def test_a_killed_training_goes_on_to_the_same_weights_bit_for_bit(name: str, all_alive: bool, tmp_path: Path) -> None:
    whole, cut = network(), network()
    complete = train(
        whole, DATA, RECIPE, seed=3, masks=start(name), movement=movement(name, all_alive=all_alive), keep_best=True
    )
    n_epochs = len(complete.history)
    for kill_after in sorted({1, 2, n_epochs // 2 + 1, n_epochs - 1}):  # the same file, further each time

        def kill(event: Event, last: int = kill_after) -> None:
            if event.done == last + 1:
                raise KeyboardInterrupt

        cut = network()
        with pytest.raises(KeyboardInterrupt):
            train(
                cut, DATA, RECIPE, seed=3, masks=start(name), movement=movement(name, all_alive=all_alive),
                keep_best=True, checkpoint=tmp_path / "checkpoint", listen=kill,
            )  # fmt: skip
    cut = network()
    resumed = train(
        cut, DATA, RECIPE, seed=3, masks=start(name), movement=movement(name, all_alive=all_alive), keep_best=True,
        checkpoint=tmp_path / "checkpoint",
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True))
    assert complete.masks == resumed.masks and complete.member_masks == resumed.member_masks
    assert complete.dense_epochs == resumed.dense_epochs
    assert complete.history == resumed.history
    for (entry, kept), (other, loaded) in zip(complete.members, resumed.members, strict=True):
        assert entry == other and all(torch.equal(kept[key], loaded[key]) for key in kept)


@pytest.mark.parametrize("begin", ["erk", "synflow", "dense"])
@pytest.mark.parametrize("name", DYNAMICS)
def test_every_method_starts_from_any_mask(name: str, begin: str) -> None:
    method, problem = shortened(name), load_task(SPEC, 0).problem
    density = (
        0.5 if method.prunes_units else 1.0 if begin == "dense" and (method.keeps_count or method.releases) else DENSITY
    )
    kept = 2 * DENSITY if method.only_prunes else DENSITY
    first = Masks.dense(problem.layout) if begin == "dense" else prune_problem(problem, kept, begin).masks
    recipe = RECIPE.model_copy(update={"epochs": 12}) if name == "pat" else RECIPE  # it prunes at once, and late
    result = train(network(), DATA, recipe, seed=0, masks=first, movement=movement(name, density))
    assert result.masks is not None
    if not method.prunes_units:
        assert result.masks.n_kept == n_kept_at(1.0 if method.releases else density, problem.layout.n_prunable)
    assert not (result.masks.flat & ~first.flat).any() or not method.prunes_units
    assert result.final["accuracy"] > 0.2 and result.final["density"] == result.masks.density


# DPF (METHODS H11)


def test_dpf_that_masks_nothing_is_plain_training() -> None:
    plain, moved = network(), network()
    train(plain, DATA, RECIPE, seed=0)
    train(moved, DATA, RECIPE, seed=0, movement=replace(movement("dpf"), density=1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), moved.parameters(), strict=True))


def test_dpf_moves_dense_weights_by_the_gradient_at_the_masked_ones() -> None:
    """One step by hand, with momentum and weight decay on the dense weights."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.5)
    masks = Masks.from_tensors({"weight": torch.tensor([[1, 1, 0, 0]])})
    moving = panning.move_masks(model, optimizer, "dpf", density=0.5, n_steps=64, masks=masks, input_shape=(4,))
    dense = torch.tensor([4.0, 3.0, 2.0, 1.0])
    momentum = torch.zeros(4)
    inputs = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    for _ in range(3):
        run = dense * torch.tensor([1.0, 1.0, 0.0, 0.0])
        assert torch.allclose(model.weight.flatten(), run)
        gradient = 2 * (inputs[0] @ run - 1.0) * inputs[0]  # of (output - 1)^2
        momentum = 0.9 * momentum + gradient + 0.5 * dense
        dense = dense - 0.1 * momentum
        optimizer.zero_grad()
        (model(inputs) - 1.0).square().sum().backward()
        optimizer.step()
    assert torch.allclose(moving.dense_weights()["weight"].flatten(), dense)
    assert not model.weight[0, 2:].any()


def test_dpf_is_bit_for_bit_a_plain_loop_that_prunes_by_the_dense_magnitudes() -> None:
    """Algorithm 1 of the paper, with the ramp of its code, momentum by Nesterov and weight decay."""
    rest = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    n_steps, last, every = 48, 36, 4
    model, plain = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, **rest)
    moving = panning.move_masks(
        model,
        optimizer,
        panning.make_dynamic("dpf", {"every": every}),
        density=DENSITY,
        n_steps=n_steps,
        input_shape=DATA.input_shape,
    )
    for _ in steps(moving, optimizer, n_steps):
        pass
    moving.finish()

    by_hand = torch.optim.SGD(plain.parameters(), 0.05, **rest)
    weights = [parameter for parameter in plain.parameters() if parameter.dim() > 1]
    sizes = [weight.numel() for weight in weights]
    kept = torch.ones(sum(sizes), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    dense = [weight.detach().clone() for weight in weights]

    def run() -> None:
        with torch.no_grad():
            for weight, own, part in zip(weights, dense, kept.split(sizes), strict=True):
                weight.copy_(own * part.view_as(own))

    for step in range(1, n_steps + 1):
        run()
        inputs, labels = DATA.batch(DATA.train, torch.randint(len(DATA.train), (50,), generator=generator))
        by_hand.zero_grad()
        F.cross_entropy(plain(inputs), labels).backward()
        with torch.no_grad():
            for weight, own in zip(weights, dense, strict=True):
                weight.copy_(own)
        by_hand.step()
        dense = [weight.detach().clone() for weight in weights]
        if step < n_steps and (step % every == 0 or step == last):
            density = DENSITY + (1.0 - DENSITY) * (1.0 - min(step / last, 1.0)) ** 3
            magnitude = torch.cat([own.abs().flatten() for own in dense])
            kept = torch.zeros_like(kept)
            kept[magnitude.topk(n_kept_at(density, len(kept))).indices] = True
    run()
    assert moving.n_grown > 0 and torch.equal(weights_of(model), weights_of(plain))


def test_a_weight_that_dpf_masked_learns_and_comes_back() -> None:
    moving, optimizer = started("dpf", masks=prune_problem(load_task(SPEC, 0).problem, DENSITY, "magnitude").masks)
    dense = moving.dense_weights()["classifier.weight"]
    came_back = 0
    for _ in steps(moving, optimizer, 23):
        now = moving.dense_weights()["classifier.weight"]
        masked = ~moving.masks["classifier.weight"]
        assert (now != dense)[masked].float().mean() > 0.9
        dense, came_back = now, moving.n_grown
    assert came_back > 0
    before = evaluate(moving.problem.model, DATA, DATA.validation)
    masks = moving.finish()
    assert evaluate(moving.problem.model, DATA, DATA.validation) == before  # what was evaluated is what is shipped
    panning.apply_masks(moving.problem.model, masks)
    assert evaluate(moving.problem.model, DATA, DATA.validation) == before


# RigL (METHODS H12)


def test_rigl_keeps_layer_counts_starts_weights_at_zero_and_skips_its_step() -> None:
    moving, optimizer = started("rigl")
    layout, before, mask = moving.problem.layout, weights_of(moving.problem.model), moving.mask
    counts = layout.counts(mask)
    n_grown = 0
    for _ in steps(moving, optimizer, 24):
        weights, new = weights_of(moving.problem.model), moving.mask & ~mask
        assert layout.counts(moving.mask) == counts
        if moving.method.acts(moving.clock):
            stays = moving.mask & mask
            assert torch.equal(weights[stays], before[stays])  # the optimizer's step was skipped
            assert not weights[new].any() and not state_of(moving, optimizer)[new].any()
            n_grown += int(new.sum())
        else:
            assert torch.equal(mask, moving.mask) and not torch.equal(weights, before)
            assert moving.clock.step % 2 or moving.clock.step >= 18  # T_end
        before, mask = weights, moving.mask
    assert n_grown == moving.n_grown > 0


def test_rigl_sees_the_gradient_of_masked_weights() -> None:
    """The bug that growth would not notice: of a masked gradient it picks arbitrary zeros."""
    moving, optimizer = started("rigl")
    seen: list[Tensor] = []
    real = moving.method.move

    def watched(view: Any) -> Any:
        seen.append(view.grad)
        return real(view)

    object.__setattr__(moving.method, "move", watched)
    masks = []
    for _ in steps(moving, optimizer, 6):
        masks.append(moving.mask)
    assert len(seen) == 3
    for grad, mask in zip(seen, masks[::2], strict=True):  # of the step before each move
        assert (grad[~mask] != 0).float().mean() > 0.2


# The rest


def test_soft_filters_learn_again_between_two_epochs() -> None:
    moving, optimizer = started("soft_filter")
    model = moving.problem.model
    for _ in steps(moving, optimizer, 13):
        masked = ~moving.mask
        zeros = weights_of(model)[masked] == 0
        if moving.clock.step in (6, 12):
            assert zeros.all() and len(zeros) > 1000
        elif moving.clock.step > 6:
            assert zeros.float().mean() < 0.9
    with moving.shipped():
        assert not weights_of(model)[masked].any()
    assert weights_of(model)[masked].any()


def test_weight_rewinding_brings_the_first_weights_back() -> None:
    method = make_dynamic("imp_weights", {"rewind_to": 0.25, "kept_each": 0.5})
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    moving = panning.move_masks(model, optimizer, method, density=0.25, n_steps=8, input_shape=DATA.input_shape)
    assert moving.n_steps == 8 + 2 * 6
    seen = {}
    for _ in steps(moving, optimizer, 20):
        seen[moving.clock.step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if moving.clock.step in (8, 14):
            model.train()(DATA.batch(DATA.train, torch.arange(2))[0])  # what the next step would do first
            masks = moving.masks
            for name, tensor in model.state_dict().items():
                expected = seen[2][name]
                assert torch.equal(tensor, torch.where(masks[name], expected, 0.0) if name in masks else expected)
            assert not optimizer.state
    assert moving.finish().density == pytest.approx(0.25, abs=1e-3)


def test_what_is_evaluated_between_two_rounds_is_the_network_that_was_trained() -> None:
    slow = replace(movement("imp_weights"), method=make_dynamic("imp_weights"), density=0.5)
    result = train(network(), DATA, RECIPE, seed=0, movement=slow)
    ends = [entry for entry in result.history if entry["epoch"] % 4 == 0]
    assert [round(entry["density"], 2) for entry in ends] == [1.0, 0.8, 0.64, 0.51, 0.5]
    assert all(entry["accuracy"] > 0.5 for entry in ends)


def test_an_ensemble_predicts_by_the_mean_of_probabilities() -> None:
    result = train(network(), DATA, RECIPE, seed=0, masks=start("edst"), movement=movement("edst"), keep_best=True)
    assert len(result.members) == 2
    models = []
    for _, weights in result.members:
        models.append(network())
        models[-1].load_state_dict(weights)
    assert not torch.equal(weights_of(models[0]), weights_of(models[1]))
    for model, masks in zip(models, result.member_masks, strict=True):
        assert not weights_of(model)[~masks.flat].any() and weights_of(model)[masks.flat].any()
    inputs, labels = DATA.batch(DATA.validation, torch.arange(len(DATA.validation)))
    with torch.no_grad():
        mean = torch.stack([model.eval()(inputs).softmax(1) for model in models]).mean(0)
    found = evaluate_mean(models, DATA, DATA.validation)
    assert found["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).float().mean()))
    assert found["loss"] == pytest.approx(float(F.nll_loss(mean.log(), labels)), rel=1e-5)
    assert evaluate_mean(models[:1], DATA, DATA.validation) == evaluate(models[0], DATA, DATA.validation)


def test_a_quantised_network_has_few_values_and_quantised_inputs() -> None:
    model = network()
    method = make_dynamic("quantized", {"every": 2, "weight_bits": 3, "activation_bits": 4})
    train(model, DATA, RECIPE, seed=0, movement=replace(movement("dpf"), method=method))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert len(parameter.unique()) <= 7, name
    seen: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    evaluate(model, DATA, DATA.validation)
    assert all(len(sample.unique()) <= 8 for sample in torch.cat(seen))  # zero and 7 levels above: it comes from a ReLU


def test_partially_masked_training_leaves_two_networks_that_work() -> None:
    task = load_task(SPEC, 0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    core = prune_problem(task.problem, DENSITY, "synflow").masks
    moving = panning.move_masks(
        model, optimizer, "partial", density=DENSITY, n_steps=150, masks=core, input_shape=DATA.input_shape
    )
    for _ in steps(moving, optimizer, 150):
        pass
    whole = network()
    whole.load_state_dict({**model.state_dict(), **moving.dense_weights()})
    with moving.shipped():
        assert all(torch.equal(kept, whole.state_dict()[name]) for name, kept in moving.dense_weights().items())
    state = moving.state_dict()
    assert moving.finish() == core
    for dense in (moving.dense_weights(), moving.problem.layout.views(state["tensors"]["dense"])):
        assert all(torch.equal(dense[name], whole.state_dict()[name]) for name in dense)
    assert evaluate(model, DATA, DATA.validation)["accuracy"] > 0.7
    assert evaluate(whole, DATA, DATA.validation)["accuracy"] > 0.7
    assert not torch.equal(weights_of(model), weights_of(whole))


@pytest.mark.parametrize("rest", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_a_step_of_the_core_moves_the_core_alone(rest: dict[str, float]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, **rest)
    core = prune_problem(load_task(SPEC, 0).problem, DENSITY, "synflow").masks
    moving = panning.move_masks(
        model, optimizer, "partial", density=DENSITY, n_steps=6, masks=core, input_shape=DATA.input_shape
    )
    flat = [torch.cat([w.flatten() for w in moving.dense_weights().values()])]
    ran_whole = []
    for _ in range(6):
        ran_whole.append(moving.method.runs_whole(moving.clock))
        next(steps(moving, optimizer, 1))
        flat.append(torch.cat([w.flatten() for w in moving.dense_weights().values()]))
    for whole, before, after in zip(ran_whole, flat, flat[1:], strict=False):
        moved = before != after
        assert moved[core.flat].any() and bool(moved[~core.flat].any()) == whole
    assert set(ran_whole) == {True, False}


def test_a_step_costs_what_its_passes_need() -> None:
    """Two thirds forward and by activations, one third by weights; of all where masked weights are looked at."""
    problem = load_task(SPEC, 0).problem
    uniform = prune_problem(problem, 0.25, "random").masks  # each layer a quarter, and so of the multiply-adds
    sparse, dense = 0.25, 1.0
    expected = {
        "set": sparse, "dpf": (2 * sparse + dense) / 3, "snfs": (2 * sparse + dense) / 3, "soft_filter": dense,
        "rigl": (sparse + (2 * sparse + dense) / 3) / 2,
    }  # fmt: skip
    for name, cost in expected.items():
        first = Masks.dense(problem.layout) if name == "soft_filter" else uniform
        moving, optimizer = started(name, density=0.25, masks=first)
        for _ in steps(moving, optimizer, 4):
            pass
        assert moving.dense_steps / 4 == pytest.approx(cost, abs=0.002), name


# In a user's loop


def test_a_state_of_another_method_is_refused_and_nothing_changes() -> None:
    moving, _ = started("rigl")
    other, _ = started("dpf")
    before = moving.mask.clone()
    with pytest.raises(MaskError, match="its method is 'DPF', not 'RigL'"):
        moving.load_state_dict(other.state_dict())
    with pytest.raises(MaskError, match="is damaged"):
        moving.load_state_dict({**moving.state_dict(), "step": -1})
    assert torch.equal(moving.mask, before)


def test_a_checkpoint_of_another_movement_is_refused(tmp_path: Path) -> None:
    def kill(event: Event) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    for change in ({"density": 0.2}, {"all_alive": True}, {"method": make_dynamic("rigl", {"every": 3})}):
        path.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            train(
                network(), DATA, RECIPE, seed=0, masks=start("rigl"), movement=movement("rigl"), checkpoint=path,
                listen=lambda event: kill(event) if event.done == 2 else None,
            )  # fmt: skip
        assert path.exists()
        first = start("rigl", 0.2) if "density" in change else start("rigl")
        with pytest.raises(PanningError, match="not a checkpoint of this training"):
            train(
                network(), DATA, RECIPE, seed=0, masks=first, movement=replace(movement("rigl"), **change),
                checkpoint=path,
            )  # fmt: skip


def test_wrong_use_is_an_error_that_says_what_to_do() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    good: dict[str, Any] = {"density": 0.1, "n_steps": 10, "input_shape": DATA.input_shape}
    before = weights_of(model)
    for wrong, message in (
        ({"method": "rigel"}, "Did you mean 'rigl'"),
        ({"method": "set"}, "pass steps_per_epoch"),
        ({"method": "rigl", "masks": start("dpf")}, "keeps the number of weights"),
        ({"method": "gmp", "masks": start("rigl", 0.05)}, "starts from"),
        ({"n_steps": 0}, "n_steps must be a whole number"),
        ({"density": 1.5}, "must be in"),
        ({"input_shape": None}, "Pass data, or input_shape"),
        ({"method": 3}, "pass a name of panning.training.DYNAMICS"),
        ({"masks": start("dpf"), "exclude": "classifier.weight"}, "leave include and exclude away"),
    ):
        with pytest.raises(PanningError, match=message):
            panning.move_masks(model, optimizer, **{**good, **wrong})
    with pytest.raises(MaskError, match="LBFGS"):
        panning.move_masks(model, torch.optim.LBFGS(model.parameters()), **good)
    with pytest.raises(MaskError, match="A list is no torch.optim.Optimizer: move_masks takes one"):
        panning.move_masks(model, [optimizer, optimizer], **good)  # type: ignore[arg-type]
    with pytest.raises(MaskError, match="in no optimizer"):
        panning.move_masks(network(), optimizer, **good)
    with pytest.raises(DataError, match="needs data"):
        moving = panning.move_masks(model, optimizer, make_dynamic("early", {"method": "snip", "after": 0}), **good)
        moving.finish()
    assert torch.equal(before, weights_of(model))


@pytest.mark.parametrize("name", ["dpf", "rigl", "set", "sign_in"])
def test_a_step_with_a_closure_is_the_same_step(name: str) -> None:
    """As Lightning's automatic optimisation takes it."""
    plain, optimizer = started(name)
    closed, second = started(name)
    for by_name in (False, True) * 4:

        def closure() -> Tensor:
            second.zero_grad()
            loss = F.cross_entropy(closed.problem.model(FEW[0]), FEW[1])
            loss.backward()
            return loss

        optimizer.zero_grad()
        loss = F.cross_entropy(plain.problem.model(FEW[0]), FEW[1])
        loss.backward()
        optimizer.step()
        given = second.step(closure=closure) if by_name else second.step(closure)
        assert torch.equal(loss, given)
    assert (
        torch.equal(weights_of(plain.problem.model), weights_of(closed.problem.model)) and plain.clock == closed.clock
    )


def test_a_skipped_step_leaves_the_gradients_to_look_at() -> None:
    moving, optimizer = started("rigl")
    for _ in steps(moving, optimizer, 6):
        grads = {name: parameter.grad for name, parameter in moving.problem.model.named_parameters()}
        assert all(grad is not None and grad.any() for grad in grads.values())
    for name, mask in moving.masks.items():  # after a move
        grad = grads[name]
        assert grad is not None and not grad[~mask].any()


def test_a_network_that_changes_its_device_is_told_when_it_should_have() -> None:
    moving, optimizer = started("rigl")
    moving.mask = moving.mask.to("meta")
    with pytest.raises(MaskError, match="went from meta to cpu after its masks began to move"):
        trained(moving.problem.model, optimizer, 1)


def test_a_network_whose_movement_nobody_holds_is_free() -> None:
    moving, optimizer = started("rigl")
    model = moving.problem.model
    gc.collect()
    del moving, optimizer  # which still hold each other
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    again = panning.move_masks(model, optimizer, "rigl", density=DENSITY, n_steps=400, input_shape=DATA.input_shape)
    trained(model, optimizer, 1)
    assert again.clock.step == 1 and not weights_of(model)[~again.mask].any()


def test_stopping_at_once_warns() -> None:
    moving, _ = started("dpf")
    with pytest.warns(
        UserWarning, match="Masks stopped moving after 0 of 24 steps, at density 1, which was to become 0.1"
    ):
        moving.finish()


def test_methods_that_score_take_the_users_data() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    batch = DATA.batch(DATA.train, torch.arange(100))
    method = make_dynamic("early", {"method": "snip", "after": 3})
    with panning.move_masks(model, optimizer, method, density=0.1, n_steps=6, data=batch) as moving:
        for _ in steps(moving, optimizer, 6):
            pass
    assert moving.masks.n_kept == n_kept_at(0.1, moving.problem.layout.n_prunable)


def test_masks_move_in_a_convolutional_network_with_channels_last() -> None:
    data = load_data("digits", n_train=200)
    for name in ("dpf", "rigl", "dpf_filters", "soft_filter", "partial"):
        model = build_model("resnet20", input_shape=data.input_shape, n_classes=10, seed=0)
        task = load_task(TaskSpec(model="resnet20", data="digits", n_train=200), 0)
        first = first_mask(task.problem, shortened(name), 0.1, DYNAMICS[name])
        recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.05, precision="bfloat16")
        moves = Movement(shortened(name), task.problem, 0.1, not shortened(name).prunes_units)
        result = train(model, data, recipe, seed=0, masks=first, movement=moves)
        assert result.masks is not None
        for layer, mask in result.masks.items():
            assert not dict(model.named_parameters())[layer][~mask].any()


# Attacks


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, n: int, run: Any = None) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        inputs, labels = DATA.batch(DATA.train, torch.randint(len(DATA.train), (50,), generator=generator))
        optimizer.zero_grad()
        F.cross_entropy((run or model)(inputs), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["set", "snfs", "edst", "imp"])
def test_a_move_that_waits_comes_in_evaluation_mode_and_without_a_call_too(name: str) -> None:
    masks = []
    for how in ("train", "eval", "inside"):
        moving, optimizer = started(name)
        model = moving.problem.model.train(how != "eval")
        run = None if how != "inside" else lambda x, m=model: m.classifier(m.hidden(m.flatten(x)))
        trained(model, optimizer, moving.n_steps, run)
        assert moving.n_grown > 0 or name == "imp"
        masks.append(moving.finish())
        assert masks[-1].n_kept == n_kept_at(DENSITY, masks[-1].n_prunable)
    assert masks[0] == masks[1]


def test_an_evaluation_in_between_moves_nothing() -> None:
    moving, optimizer = started("set")
    trained(moving.problem.model, optimizer, 6)
    before = moving.mask
    evaluate(moving.problem.model, DATA, DATA.validation)
    moving.report()
    with torch.no_grad():
        moving.problem.model.train()(DATA.batch(DATA.train, torch.arange(4))[0])
    assert moving.mask is before
    moving.problem.model(DATA.batch(DATA.train, torch.arange(4))[0])
    assert not torch.equal(moving.mask, before)


@pytest.mark.parametrize(
    ("method", "options"),
    [("early", {"after": 24}), ("pat", {"every": 24}), ("edst", {"n_members": 20}), ("imp", {"rewind_to": 0.99})],
)
def test_a_method_that_would_never_come_to_its_density_is_refused(method: str, options: dict[str, Any]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    with pytest.raises(MaskError, match="training|steps|step left"):
        panning.move_masks(
            model, optimizer, make_dynamic(method, options), density=DENSITY, n_steps=24, steps_per_epoch=6,
            input_shape=DATA.input_shape,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options", "n_steps"),
    [
        ("rigl", {}, 120), ("set", {}, 6), ("snfs", {}, 6), ("dsr", {}, 100), ("edst", {"n_members": 1}, 900),
    ],
)  # fmt: skip
def test_a_method_that_would_never_move_is_refused(method: str, options: dict[str, Any], n_steps: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    given: dict[str, Any] = {"density": DENSITY, "steps_per_epoch": 6, "input_shape": DATA.input_shape}
    chosen = make_dynamic(method, options)
    with pytest.raises(MaskError, match=f"would never move: every=.*, n_steps={n_steps}; lower every"):
        panning.move_masks(model, optimizer, chosen, n_steps=n_steps, **given)
    panning.move_masks(model, optimizer, chosen, n_steps=4000, **given)


def test_a_density_that_falls_at_once_is_warned_of() -> None:
    def made(name: str, every: int, density: float = DENSITY) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        given: dict[str, Any] = {"density": density, "n_steps": 100, "input_shape": DATA.input_shape}
        panning.move_masks(model, optimizer, make_dynamic(name, {"every": every}), **given)

    with pytest.warns(
        UserWarning,
        match="The density of this method falls from 1 to 0.1 in less than 3 moves: every=1000, n_steps=100",
    ):
        made("granet", 1000)
    with pytest.warns(UserWarning, match="every=40"):  # at 40 and 69
        made("granet", 40)
    made("granet", 30)  # at 30, 60 and 69
    made("granet", 1000, density=1.0)  # nothing falls


def test_a_method_that_scores_with_a_loss_wants_its_data_at_once() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = make_dynamic("early", {"method": "snip", "after": 3})
    with pytest.raises(DataError, match="'snip' scores with a loss and needs data"):
        panning.move_masks(model, optimizer, method, density=0.1, n_steps=6, input_shape=DATA.input_shape)


@pytest.mark.parametrize(
    ("name", "options", "n_steps"),
    [("granet", {"every": 5, "end_at": 1.0}, 20), ("deep_r", {"every": 7, "noise": 0.1}, 24)],
)
def test_nothing_is_shipped_that_the_last_move_has_just_made(name: str, options: dict[str, Any], n_steps: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    moving = panning.move_masks(
        model, optimizer, make_dynamic(name, options), density=DENSITY, n_steps=n_steps, masks=start(name),
        input_shape=DATA.input_shape,
    )  # fmt: skip
    trained(model, optimizer, n_steps)
    kept = weights_of(model)[moving.finish().flat]
    assert (kept != 0).all()
    if name == "deep_r":
        assert torch.equal(kept.sign(), moving.memory["sign"][moving.mask].float())


def test_stopping_early_warns_and_an_error_does_not() -> None:
    moving, optimizer = started("gmp")
    trained(moving.problem.model, optimizer, 5)
    with pytest.warns(UserWarning, match="after 5 of 24 steps"):
        moving.finish()
    moving, _ = started("gmp")
    with pytest.raises(KeyboardInterrupt), moving:
        raise KeyboardInterrupt
    assert moving.finish().density == 1.0  # ended already


def test_frozen_weights_two_movements_and_units_with_all_alive_are_refused() -> None:
    moving, optimizer = started("rigl")
    good: dict[str, Any] = {"density": DENSITY, "n_steps": 400, "input_shape": DATA.input_shape}
    with pytest.raises(MaskError, match="move already"):
        panning.move_masks(moving.problem.model, optimizer, "dpf", **good)
    moving.finish()
    model = network()
    model.hidden.linear1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    with pytest.raises(MaskError, match=r"'hidden.linear1.weight' is frozen.*exclude"):
        panning.move_masks(model, optimizer, "rigl", **good)
    panning.move_masks(model, optimizer, "rigl", **good, exclude="hidden.linear1.weight")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(MaskError, match="leave all_alive away"):
        panning.move_masks(model, optimizer, "dpf_filters", **good, all_alive=True)


class OutputsFirst(nn.Module):
    """Two heads, which are registered before the layer that they read."""

    def __init__(self) -> None:
        super().__init__()
        self.first_head, self.second_head = nn.Linear(32, 6), nn.Linear(32, 4)
        self.flatten, self.hidden = nn.Flatten(), nn.Linear(64, 32)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.hidden(self.flatten(inputs)).relu()
        return torch.cat([self.first_head(maps), self.second_head(maps)], 1)


@pytest.mark.parametrize("name", ["dpf_filters", "soft_filter", "pat"])
def test_units_that_are_outputs_stay_wherever_they_are_registered(name: str) -> None:
    torch.manual_seed(0)
    model = OutputsFirst()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    moving = panning.move_masks(
        model, optimizer, shortened(name), density=0.5, n_steps=24, steps_per_epoch=6, input_shape=DATA.input_shape
    )
    trained(model, optimizer, 24)
    densities = moving.finish().layer_densities()
    assert densities == {"first_head.weight": 1.0, "second_head.weight": 1.0, "hidden.weight": 0.5}


class Recurrent(nn.Module):
    """The recurrent layer is nothing that is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.cells(inputs.flatten(1, 2))[0][:, -1])
        return outputs


@pytest.mark.parametrize(
    ("name", "options"), [("dpf_filters", {}), ("soft_filter", {}), ("pat", {}), ("partial", {"core": "narrow"})]
)
def test_a_network_without_hidden_units_has_none_to_prune(name: str, options: dict[str, Any]) -> None:
    for model in (Recurrent(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        with pytest.raises(MaskError, match="prunes hidden units, and this network has none"):
            panning.move_masks(
                model, optimizer, make_dynamic(name, options), density=0.5, n_steps=240, steps_per_epoch=6,
                masks=prune_problem(Problem.of(model, DATA.input_shape, None), 1.0, "erk").masks, data=FEW,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["dpf_filters", "soft_filter", "pat"])
def test_depthwise_convolutions_stay_with_the_units_that_they_read(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 3, groups=20), nn.ReLU(), nn.Conv2d(20, 20, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(20 * 16, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    moving = panning.move_masks(
        model, optimizer, shortened(name), density=0.3, n_steps=24, steps_per_epoch=6, input_shape=DATA.input_shape
    )
    trained(model, optimizer, 24)
    masks = moving.finish()
    assert masks["2.weight"].all() and not masks["0.weight"].all() and not masks["4.weight"].all()
    assert masks.effective_density(model, DATA.input_shape) > 0.05


@pytest.mark.parametrize("name", ["set", "rigl", "dpf", "imp_weights", "quantized", "sign_in"])
def test_copies_are_free_alone_and_go_on_together(name: str) -> None:
    moving, optimizer = started(name)
    model = moving.problem.model
    trained(model, optimizer, 12)
    alone = copy.deepcopy(model)
    mask, weights = moving.mask.clone(), weights_of(model)
    inputs, labels = DATA.batch(DATA.train, torch.arange(50))
    free = torch.optim.SGD(alone.parameters(), 0.1)
    F.cross_entropy(alone.train()(inputs), labels).backward()
    free.step()
    assert weights_of(alone)[~mask].any() or mask.all()
    assert torch.equal(moving.mask, mask) and torch.equal(weights_of(model), weights)
    other, second, twin = copy.deepcopy((model, optimizer, moving))
    for one, opt in ((model, optimizer), (other, second)):
        trained(one, opt, moving.n_steps - 12)
    assert torch.equal(weights_of(model), weights_of(other))
    assert twin.clock == moving.clock and moving.finish() == twin.finish()


@pytest.mark.parametrize("kind", ["batch", "dataset", "loader"])
def test_copies_take_the_users_data_along(kind: str) -> None:
    dataset = TensorDataset(*FEW)
    data: Any = {"batch": FEW, "dataset": dataset, "loader": DataLoader(dataset, 10, shuffle=True)}[kind]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    method = make_dynamic("early", {"method": "snip", "after": 6})
    moving = panning.move_masks(model, optimizer, method, density=0.1, n_steps=12, data=data)
    trained(model, optimizer, 3)
    for copied in (copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))):
        other, second, twin = copied((model, optimizer, moving))
        trained(other, second, 6)
        assert twin.masks.n_kept == n_kept_at(0.1, twin.problem.layout.n_prunable)
    trained(model, optimizer, 6)
    assert moving.masks == twin.masks


def test_a_copy_takes_later_states_and_its_memory_stays_where_it_was() -> None:
    moving, optimizer = started("pat", n_steps=240)  # whose memory grows every epoch
    trained(moving.problem.model, optimizer, 6)
    model, second, twin = copy.deepcopy((moving.problem.model, optimizer, moving))
    trained(moving.problem.model, optimizer, 6)
    twin.load_state_dict(moving.state_dict())
    assert len(twin.memory[pruning_aware.COUNTS]) == 2 and twin.clock == moving.clock
    twin.flat.parameters[0] = twin.flat.parameters[0].to("meta")  # as if it were on an accelerator
    twin._take(moving.state_dict())
    assert twin.mask.device.type == "meta"
    assert all(tensor.device.type == "cpu" for tensor in twin.memory.values())


def test_a_network_whose_masks_move_can_be_pickled_and_compiled() -> None:
    batch = DATA.batch(DATA.train, torch.arange(100))
    for name in ("set", "dpf"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        compiled = torch.compile(model, backend="eager")
        moving = panning.move_masks(
            compiled,
            optimizer,
            shortened(name),
            density=DENSITY,
            n_steps=24,
            steps_per_epoch=6,
            data=batch,
            masks=start(name),
        )
        assert moving.problem.model is model
        trained(compiled, optimizer, 24)
        file = io.BytesIO()
        torch.save(model, file)
        assert moving.finish().n_kept == n_kept_at(DENSITY, moving.problem.layout.n_prunable)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, where a graph ends at a hook
@pytest.mark.parametrize("name", ["set", "quantized", "sign_in"])
def test_a_network_that_was_compiled_before_its_masks_move_trains_as_any_other(name: str) -> None:
    ends = []
    for is_compiled in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        run = torch.compile(model, backend="eager") if is_compiled else model
        run(FEW[0])  # a graph without the hooks
        moving = panning.move_masks(
            run, optimizer, shortened(name), density=DENSITY, n_steps=24, steps_per_epoch=6, data=FEW, masks=start(name)
        )
        trained(run, optimizer, 24)
        moving.finish()
        ends.append(weights_of(model))
    assert torch.equal(*ends)


def test_weights_that_somebody_writes_under_feedback_stay() -> None:
    moving, optimizer = started("dpf", masks=start("rigl"))
    model = moving.problem.model
    trained(model, optimizer, 3)
    loaded = {name: 0.5 * tensor for name, tensor in network().state_dict().items()}
    model.load_state_dict(loaded)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    mask = moving.mask
    trained(model, optimizer, 1)  # after which the mask moves
    flat = torch.cat([loaded[name].flatten() for name in moving.problem.layout.names])
    stayed = mask & moving.mask
    assert stayed.any() and torch.equal(weights_of(model)[stayed], flat[stayed])


def test_weights_that_are_clipped_through_data_under_feedback_are_shipped_so() -> None:
    moving, optimizer = started("dpf")
    model = moving.problem.model
    for _ in steps(moving, optimizer, moving.n_steps):
        for parameter in model.parameters():
            parameter.data.clamp_(-0.05, 0.05)
    dense, state = moving.dense_weights(), moving.state_dict()
    assert max(float(dense[name][mask].abs().max()) for name, mask in moving.masks.items()) <= 0.0501
    assert torch.equal(state["tensors"]["dense"], torch.cat([weight.flatten() for weight in dense.values()]))
    moving.finish()
    assert weights_of(model).abs().max() <= 0.0501


def test_a_state_belongs_to_the_first_mask_that_it_began_with() -> None:
    """Whose density ramps start from, and within which filters are."""
    for name, firsts in (("granet", (1.0, 0.5)), ("soft_filter", (1.0, 0.9))):
        problem = load_task(SPEC, 0).problem
        (one, _), (other, _) = (started(name, masks=prune_problem(problem, d, "random").masks) for d in firsts)
        with pytest.raises(MaskError, match="it has another first mask"):
            other.load_state_dict(one.state_dict())


def test_states_are_checked_whole_before_anything_changes() -> None:
    moving, optimizer = started("deep_r")
    trained(moving.problem.model, optimizer, 3)
    good, mask = moving.state_dict(), moving.mask
    tensors = good["tensors"]
    sign = tensors["memory.sign"]
    for wrong in (
        {"dense_steps": float("nan")}, {"step": True}, {"n_grown": "x"}, {"due": 7.0}, {"due": 2}, {"identity": "x"},
        {"tensors": {**tensors, "mask": torch.zeros_like(mask)}}, {"tensors": {**tensors, "mask": torch.ones_like(mask)}},
        {"tensors": {**tensors, "memory.sign": sign[:-1]}}, {"tensors": {**tensors, "memory.sign": sign.float()}},
        {"tensors": {"mask": tensors["mask"]}}, {"tensors": {**tensors, "memory.other": sign}},
        {"tensors": {**tensors, "mask": tensors["mask"].float()}}, {"tensors": {**tensors, "grad": sign}},
    ):  # fmt: skip
        with pytest.raises(MaskError, match="not what state_dict"):
            moving.load_state_dict({**good, **wrong})
    lacking = dict(good)
    del lacking["dense_steps"]
    for wrong in (lacking, {}, None):
        with pytest.raises(MaskError, match="not what state_dict"):
            moving.load_state_dict(wrong)  # type: ignore[arg-type]
    assert moving.mask is mask and moving.clock.step == 3


def test_a_state_that_is_refused_says_what_differs() -> None:
    moving, _ = started("rigl")
    state = moving.state_dict()
    for changed, said in (
        ({"n_steps": 7}, f"its n_steps is 7, not {moving.n_steps}"), ({"seed": 5}, "its seed is 5, not 0"),
        ({"method": "SET", "density": 0.5}, "its method is 'SET', not 'RigL'."),
        ({"network": "x", "density": 0.5}, "its density is 0.5, not 0.1; it has another network."),
        ({"density": torch.ones(2)}, "its density is tensor([1., 1.]), not 0.1"),
        ({"numbers": {"every": 3}}, "its every is 3, not 2; its until is None, not 0.75; its fraction is None, not 0.3."),
    ):  # fmt: skip
        with pytest.raises(MaskError, match=re.escape(said)):
            moving.load_state_dict({**state, "identity": {**state["identity"], **changed}})


@pytest.mark.parametrize("name", [name for name, row in DYNAMICS.items() if row.method.holds == "feedback"])
def test_what_is_loaded_beside_a_state_leaves_the_dense_weights_as_they_were_saved(name: str) -> None:
    """Another machine makes the running weights from them anew, which are then others in the last bit."""
    (moving, optimizer), (other, second) = (
        partial("low_rank") if name == "partial" else started(name) for _ in range(2)
    )
    trained(moving.problem.model, optimizer, 7)
    state, weights = copy.deepcopy((moving.state_dict(), moving.problem.model.state_dict()))
    other.load_state_dict(state)
    other.problem.model.load_state_dict({key: tensor + 1e-6 for key, tensor in weights.items()})
    assert torch.equal(other.state_dict()["tensors"]["dense"], state["tensors"]["dense"])
    trained(other.problem.model, second, 1)
    after = other.state_dict()["tensors"]["dense"]
    other.problem.model.load_state_dict(weights)  # after a step it is a change as any other
    assert not torch.equal(other.state_dict()["tensors"]["dense"], after)


@pytest.mark.parametrize("core", ["low_rank", "mask", "narrow"])
def test_weights_that_are_put_in_and_taken_back_leave_the_dense_ones(core: str) -> None:
    """As running averages of the weights are."""
    moving, optimizer = partial(core)
    model = moving.problem.model
    trained(model, optimizer, 7)
    before, own = moving.dense_weights(), copy.deepcopy(model.state_dict())
    model.load_state_dict({name: 0.9 * tensor for name, tensor in own.items()})
    with moving.shipped():
        pass
    model.load_state_dict(own)
    for name, weight in moving.dense_weights().items():
        torch.testing.assert_close(weight, before[name], rtol=0.0, atol=1e-6)


def test_a_state_of_what_is_shipped_is_refused() -> None:
    moving, _ = started("soft_filter")
    state = moving.state_dict()
    with moving.shipped():
        with moving.shipped():
            pass
        with pytest.raises(MaskError, match="outside of it"):
            moving.state_dict()
        with pytest.raises(MaskError, match="outside of it"):
            moving.load_state_dict(state)
    moving.load_state_dict(moving.state_dict())


@pytest.mark.parametrize("core", ["low_rank", "narrow"])
def test_a_core_that_has_more_weights_than_the_first_mask_goes_on(core: str) -> None:
    method = make_dynamic("partial", {"core": core})
    for masks in (start("partial"), Masks.dense(load_task(SPEC, 0).problem.layout)):
        moving, optimizer = started("partial", method=method, masks=masks)
        trained(moving.problem.model, optimizer, 3)
        other, _ = started("partial", method=method, masks=masks)
        other.load_state_dict(moving.state_dict())
        assert torch.equal(other.mask, moving.mask)


def test_a_state_of_numbers_from_numpy_is_read_without_unpickling() -> None:
    density = np.float64(DENSITY)
    moving, _ = started("rigl", density=density)
    torch.save(moving.state_dict(), file := io.BytesIO())
    file.seek(0)
    other, _ = started("rigl")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.mask, moving.mask)


def test_masks_are_either_enforced_or_moved() -> None:
    problem, masks = load_task(SPEC, 0).problem, start("rigl")
    model, optimizer = problem.model, torch.optim.SGD(problem.model.parameters(), 0.1)
    enforcement = panning.enforce_masks(model, masks, optimizer)

    def move() -> MovingMasks:
        return panning.move_masks(
            model, optimizer, shortened("rigl"), density=DENSITY, n_steps=24, input_shape=DATA.input_shape, masks=masks
        )

    with pytest.raises(MaskError, match="held by enforce_masks.*call remove"):
        move()
    enforcement.remove()
    moving = move()
    with pytest.raises(MaskError, match="The mask of '.*' moves"):
        panning.enforce_masks(model, masks, optimizer)
    panning.enforce_masks(model, moving.finish(), optimizer)


def test_moving_masks_that_nobody_holds_any_more_let_go_of_the_gradients() -> None:
    moving, optimizer = started("rigl")
    model = moving.problem.model
    del moving, optimizer
    gc.collect()
    F.cross_entropy(model(FEW[0]), FEW[1]).backward()
    assert all(p.grad is not None and (p.grad != 0).float().mean() > 0.3 for p in model.parameters() if p.dim() > 1)


def test_a_mask_may_be_enforced_where_none_moves() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    last = panning.prune(
        model, input_shape=DATA.input_shape, density=0.5, include=["classifier.weight"], method="magnitude"
    )
    moving = panning.move_masks(
        model, optimizer, shortened("rigl"), density=DENSITY, n_steps=24, input_shape=DATA.input_shape,
        exclude=["classifier.weight"],
    )  # fmt: skip
    panning.enforce_masks(model, last, optimizer)
    trained(model, optimizer, 8)
    assert moving.n_grown > 0 and not model.classifier.weight[~last["classifier.weight"]].any()


@pytest.mark.parametrize("name", ["gmp", "gmp_layerwise", "imp", "imp_weights", "imp_fine_tuning"])
def test_what_only_prunes_wants_a_start_that_keeps_more(name: str) -> None:
    with pytest.raises(MaskError, match="only prunes"):
        started(name, masks=start("rigl"))


@pytest.mark.parametrize("name", ["rigl", "sign_in"])
def test_the_order_of_loading_does_not_matter_nor_do_more_steps_than_announced(name: str) -> None:
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        moving, optimizer = started(name)
        trained(moving.problem.model, optimizer, 26)
        saved = copy.deepcopy((moving.state_dict(), moving.problem.model.state_dict(), optimizer.state_dict()))
        other, second = started(name)
        load = (other.load_state_dict, other.problem.model.load_state_dict, second.load_state_dict)
        for i in order:
            load[i](saved[i])
        trained(moving.problem.model, optimizer, 3)
        trained(other.problem.model, second, 3)
        assert torch.equal(weights_of(moving.problem.model), weights_of(other.problem.model)), order


def test_a_state_saved_between_forward_and_step_goes_on_exactly() -> None:
    moving, optimizer = started("set")
    model = moving.problem.model
    trained(model, optimizer, 6)
    inputs, labels = DATA.batch(DATA.train, torch.arange(50))
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), labels).backward()  # the move that waited has come
    saved = copy.deepcopy((moving.state_dict(), model.state_dict(), optimizer.state_dict()))
    other, second = started("set")
    other.load_state_dict(saved[0])
    other.problem.model.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    F.cross_entropy(other.problem.model(inputs), labels).backward()
    optimizer.step()
    second.step()
    assert torch.equal(weights_of(model), weights_of(other.problem.model)) and moving.masks == other.masks


def test_token_models_move_with_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 2))
    tokens, labels = torch.randint(20, (64, 5)), torch.randint(2, (64,))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with panning.move_masks(
        model, optimizer, make_dynamic("rigl", {"every": 2}), density=0.3, n_steps=8, data=(tokens, labels)
    ) as moving:
        for _ in range(8):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), labels).backward()
            optimizer.step()
    assert moving.n_grown > 0 and 0 < moving.dense_steps < 8
    plain = network()
    with pytest.raises(PanningError, match="fails on one input, "):
        panning.move_masks(plain, torch.optim.SGD(plain.parameters(), 0.1), density=0.1, n_steps=64, input_shape=(3,))


def test_low_rank_cores_mask_nothing() -> None:
    model = network()
    method = make_dynamic("partial", {"core": "low_rank"})
    result = train(model, DATA, RECIPE, seed=0, masks=start("dpf"), movement=replace(movement("dpf"), method=method))
    assert result.masks is not None and result.masks.density == 1.0
    assert torch.linalg.matrix_rank(model.hidden.linear1.weight, rtol=1e-4) <= round(DENSITY * 64) + 1
    assert torch.linalg.matrix_rank(model.classifier.weight, rtol=1e-4) == 10


@pytest.mark.parametrize("quantize_from", [0.0, 0.5])
def test_quantisation_ranks_no_epoch_before_it_and_loads_as_it_was(quantize_from: float) -> None:
    options = {"every": 2, "end_at": 0.25, "weight_bits": 2, "activation_bits": 3, "quantize_from": quantize_from}
    method = make_dynamic("quantized", options)
    model = network()
    recipe = RECIPE.model_copy(update={"epochs": 8})
    result = train(model, DATA, recipe, seed=0, movement=replace(movement("dpf"), method=method), keep_best=True)
    ((entry, weights),) = result.members
    assert entry["epoch"] >= 8 * max(quantize_from, 0.25)
    fresh = network()
    fresh.load_state_dict(weights)
    assert result.masks is not None
    quantized.quantize_inputs(fresh, list(result.masks), 3)
    assert evaluate(fresh, DATA, DATA.validation)["accuracy"] == entry["accuracy"]
    quantized.quantize_inputs(fresh, list(result.masks), 3)
    assert all(len(module._forward_pre_hooks) <= 1 for module in fresh.modules())
    quantized.run_in_full(fresh)
    assert not any(module._forward_pre_hooks for module in fresh.modules())


def test_narrow_cores_and_pat_by_gradients_train() -> None:
    for name, options in (("partial", {"core": "narrow"}), ("pat", {"criterion": "gradient", "n_past": 1})):
        moves = replace(movement("dpf"), method=make_dynamic(name, options), density=0.5)
        result = train(network(), DATA, RECIPE, seed=0, masks=start("dpf"), movement=moves)
        assert result.final["accuracy"] > 0.5 and result.final["density"] < 0.6


def test_a_mask_of_another_network_is_refused_before_anything_changes() -> None:
    model = network()
    before = weights_of(model)
    wrong = Masks.from_tensors({"nowhere.weight": torch.ones(2, 2)})
    with pytest.raises(MaskError, match="another network"):
        train(model, DATA, RECIPE, seed=0, masks=wrong, movement=movement("dpf"))
    assert torch.equal(before, weights_of(model))
