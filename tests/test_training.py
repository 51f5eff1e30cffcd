"""Training: masked weights stay zero, resuming is exact, the schedule and the plan are what they say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import test_dynamics
import torch
from torch import nn

from panning.compaction import compact
from panning.compaction.image_format import adds_parts, put_channels_last
from panning.data import load_data
from panning.foundation.errors import MaskError, NonFiniteError, PanningError
from panning.foundation.progress import Event
from panning.masks.holders import first_enforced
from panning.masks.masks import Masks
from panning.models import build_model
from panning.scoring.problem import Problem
from panning.tasks import TaskSpec, load_task
from panning.training import (
    DYNAMICS,
    Movement,
    Recipe,
    TrainResult,
    evaluate,
    loop,
    make_dynamic,
    regimes,
    train,
)
from panning.training.loop import train_copy
from panning.training.moving.methods.partial import RANKS
from panning.training.recipe import learning_rate_at

DATA = load_data("digits", n_train=300)
RECIPE = Recipe(epochs=3, batch_size=50, learning_rate=0.05)


def network(seed: int = 0) -> nn.Module:
    return build_model("mlp", input_shape=DATA.input_shape, n_classes=10, seed=seed)


def weights_of(problem: Problem) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in problem.model.named_parameters() if name in problem.layout.names]


def random_masks(model: nn.Module, density: float = 0.2) -> Masks:
    generator = torch.Generator().manual_seed(0)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    return Masks.from_tensors({n: torch.rand(p.shape, generator=generator) < density for n, p in weights.items()})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_masked_weights_stay_exactly_zero_and_kept_ones_learn(nesterov: bool, precision: str) -> None:
    model, start = network(), network()
    masks = random_masks(model)
    recipe = RECIPE.model_copy(
        update={"nesterov": nesterov, "precision": precision, "weight_decay": 0.01, "epochs": 12}
    )
    result = train(model, DATA, recipe, seed=0, masks=masks)
    before = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not parameter[~masks[name]].any()
            assert not torch.equal(parameter[masks[name]], before[name][masks[name]])
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.final["accuracy"] > 0.5


def test_one_seed_gives_one_training() -> None:
    models = [network(), network(), network()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train(model, DATA, RECIPE, seed=seed)
        torch.rand(3)
    flat = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def test_a_resumed_training_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    whole, cut = network(), network()
    masks = random_masks(whole)
    complete = train(whole, DATA, RECIPE, seed=0, masks=masks)
    path = tmp_path / "checkpoint"

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if event.done == 3:
            raise Killed

    with pytest.raises(Killed):
        train(cut, DATA, RECIPE, seed=0, masks=masks, checkpoint=path, listen=kill)
    fresh = network()
    resumed = train(fresh, DATA, RECIPE, seed=0, masks=masks, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))
    assert resumed.history == complete.history


@pytest.mark.parametrize("name", ["dense", "compact", *DYNAMICS])
def test_a_training_with_all_epochs_behind_it_is_over_at_once_and_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What comes after it (the test part, the files) may fail, and then wants it again."""
    recipe = RECIPE.model_copy(update={"epochs": 20 if name == "compact" else 4})  # enough to make it compact
    path = tmp_path / "checkpoint"

    def once(checkpoint: Path | None) -> tuple[nn.Module, TrainResult]:
        model, how = network(), {"masks": few_units(network()) if name == "compact" else None}
        if name in DYNAMICS:
            model = test_dynamics.network()
            how = {"masks": test_dynamics.start(name), "movement": test_dynamics.movement(name)}
        return model, train(model, DATA, recipe, seed=3, keep_best=True, checkpoint=checkpoint, **how)

    whole, complete = once(None)
    once(path)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_train_epoch", lambda *rest: pytest.fail("it trains"))
        again, result = once(path)
    assert_equal_weights(whole.state_dict(), again.state_dict())
    assert again.training and path.exists()  # the caller's to remove
    for what in ("history", "final", "images_seen", "dense_epochs", "masks", "member_masks"):
        assert getattr(result, what) == getattr(complete, what), what
    assert len(result.members) == len(complete.members) > 0
    for (entry, weights), (other, others) in zip(complete.members, result.members, strict=True):
        assert entry == other
        assert_equal_weights(weights, others)
    assert (result.whole is not None) == (complete.whole is not None) == (name == "partial")
    if result.whole is not None and complete.whole is not None:
        assert_equal_weights(complete.whole, result.whole)


@pytest.mark.parametrize("core", ["mask", "narrow", "low_rank"])
def test_the_whole_network_of_partially_masked_training_is_given_beside_its_core(core: str) -> None:
    problem = load_task(TaskSpec(model="mlp", data="digits", n_train=300), 0).problem
    method = make_dynamic("partial", {"core": core})
    masks = random_masks(problem.model) if core == "mask" else Masks.dense(problem.layout)
    how = Movement(method, problem, masks.density if core == "mask" else 0.3)
    model = copy.deepcopy(problem.model)
    result = train(model, DATA, RECIPE.model_copy(update={"epochs": 6}), seed=0, masks=masks, movement=how)
    assert result.masks is not None and result.whole is not None
    shipped, of_weights = model.state_dict(), set(problem.layout.names)
    assert all(torch.equal(result.whole[name], shipped[name]) for name in set(shipped) - of_weights)
    flat = problem.layout.flatten(result.whole)
    ran = method.run_weights(flat, result.masks.flat, problem, {RANKS: ranks(problem, 0.3)})
    assert torch.equal(ran, problem.layout.flatten(shipped)) and not torch.equal(ran, flat)
    whole = result.whole_network(model)
    assert whole is not None and evaluate(whole, DATA, DATA.validation)["accuracy"] > 0.6


def ranks(problem: Problem, share: float) -> torch.Tensor:
    """Of the layers' matrices; the last layer's is whole."""
    full = [min(shape) for shape in problem.layout.shapes]
    return torch.tensor([*(max(1, round(share * rank)) for rank in full[:-1]), full[-1]])


def assert_equal_weights(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert set(some) == set(others) and all(torch.equal(some[name], others[name]) for name in some)


def few_units(model: nn.Module, first: int = 0) -> Masks:
    """Weights into every 16th unit only."""
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in weights.items()}
    for name, mask in masks.items():
        mask[slice(None) if name == "classifier.weight" else slice(first, None, 16)] = True
    return Masks.from_tensors(masks)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_compact_network_is_trained_where_few_units_are_left(
    precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same training as the masked network's, on fewer units, and exact to resume."""
    recipe = Recipe(epochs=20, batch_size=50, learning_rate=0.05, weight_decay=0.0, precision=precision)
    tiny, masked, resumed = network(), network(), network()
    masks = few_units(tiny)
    widths: list[int] = []
    real = loop._train_epoch

    def watched(regime: Any, *rest: Any) -> float:
        widths.append(regime.network.hidden.linear1.out_features)
        if len(widths) == 50:  # the third training's
            raise KeyboardInterrupt
        return real(regime, *rest)

    monkeypatch.setattr(loop, "_train_epoch", watched)
    first = train(tiny, DATA, recipe, seed=0, masks=masks)
    second = train(masked, DATA, recipe.model_copy(update={"compact": False}), seed=0, masks=masks)
    assert widths == [16] * 20 + [256] * 20
    tolerance = 1e-5 if precision == "float32" else 2e-2
    for a, b in zip(first.history, second.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=tolerance)
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(dict(tiny.named_parameters())[name], parameter, rtol=tolerance, atol=tolerance)
    assert tiny.training
    with pytest.raises(KeyboardInterrupt):
        train(resumed, DATA, recipe, seed=0, masks=masks, checkpoint=tmp_path / "checkpoint")
    train(resumed, DATA, recipe, seed=0, masks=masks, checkpoint=tmp_path / "checkpoint")
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("change", ["mask", "seed", "recipe", "keep_best"])
def test_a_checkpoint_of_another_training_is_refused(change: str, tmp_path: Path) -> None:
    """Compact networks of two masks may have the same shapes, and the weights of the one are of no use to the other."""
    recipe, path = Recipe(epochs=20, batch_size=50, learning_rate=0.05), tmp_path / "checkpoint"

    def kill(event: Event) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, recipe, seed=0, masks=few_units(network()), checkpoint=path, listen=kill)
    other = recipe.model_copy(update={"learning_rate": 0.01}) if change == "recipe" else recipe
    with pytest.raises(PanningError, match="not a checkpoint of this training"):
        train(
            network(), DATA, other, seed=int(change == "seed"), masks=few_units(network(), int(change == "mask")),
            keep_best=change == "keep_best", checkpoint=path,
        )  # fmt: skip


def test_a_training_that_fails_lets_go_of_the_network(tmp_path: Path) -> None:
    model = network()
    (tmp_path / "checkpoint").write_text("x")
    with pytest.raises(PanningError, match="not a checkpoint"):
        train(
            model,
            DATA,
            Recipe(epochs=1, compact=False),
            seed=0,
            masks=random_masks(model),
            checkpoint=tmp_path / "checkpoint",
        )
    assert first_enforced(dict(model.named_parameters())) is None


def test_a_network_with_tied_weights_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
        layers[2].weight = layers[0].weight
        return nn.Sequential(nn.Flatten(), *layers)

    def kill(event: Event) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    whole, resumed = tied(), tied()
    train(whole, DATA, RECIPE, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train(tied(), DATA, RECIPE, seed=0, checkpoint=tmp_path / "checkpoint", listen=kill)
    train(resumed, DATA, RECIPE, seed=0, checkpoint=tmp_path / "checkpoint")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(b"junk")
    with pytest.raises(PanningError, match="not a checkpoint"):
        train(network(), DATA, RECIPE, seed=0, checkpoint=path)


def test_a_diverging_loss_is_an_error_that_says_so() -> None:
    with pytest.raises(NonFiniteError, match="training loss is (nan|inf) in epoch 1: lower the learning rate"):
        train(network(), DATA, Recipe(epochs=1, batch_size=50, learning_rate=1e9), seed=0)


def test_a_mask_of_another_network_is_refused_before_anything_changes() -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(MaskError, match="another network"):
        train(model, DATA, RECIPE, seed=0, masks=Masks.from_tensors({"nowhere.weight": torch.ones(2, 2)}))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_epochs_may_be_fractions_and_images_are_counted() -> None:
    result = train(network(), DATA, Recipe(epochs=1.5, batch_size=100), seed=0)
    assert len(result.history) == 2 and result.images_seen == 400  # 3 steps and 1.5 -> 2 steps
    result = train(network(), DATA, Recipe(epochs=1, batch_size=50, n_images=120), seed=0)
    assert result.images_seen == 100
    result = train(network(), DATA, Recipe(epochs=0.01, batch_size=50), seed=0)
    assert result.images_seen == 50  # one step, however short the training


@pytest.mark.parametrize(("batch_size", "n_images", "seen"), [(50, None, 1.0), (500, None, 1.0), (500, 150, 0.5)])
def test_a_training_costs_the_images_that_it_sees(batch_size: int, n_images: int | None, seen: float) -> None:
    """In epochs of the dense network; of an epoch, ``seen`` is looked at, by steps of all its images if need be."""
    recipe = RECIPE.model_copy(update={"epochs": 4, "batch_size": batch_size, "n_images": n_images})
    problem = load_task(TaskSpec(model="mlp", data="digits", n_train=300), 0).problem
    quarter = Masks.from_tensors({n: torch.arange(p.numel()).view(p.shape) % 4 == 0 for n, p in weights_of(problem)})
    dense = Masks.dense(problem.layout)
    for name, options, masks, of_dense in (
        ("dpf", {"every": 1}, dense, 1.0),
        ("set", {"every": 1}, quarter, 0.25),  # as many of each layer at every step
        ("partial", {}, quarter, (0.25 + 1.0) / 2),  # half the steps by the core, half by the whole
    ):
        how = Movement(make_dynamic(name, options), problem, masks.density)
        result = train(copy.deepcopy(problem.model), DATA, recipe, seed=0, masks=masks, movement=how)
        assert result.dense_epochs == pytest.approx(4 * seen * of_dense, rel=1e-12), name
        assert result.images_seen == 4 * seen * 300
    fixed = train(copy.deepcopy(problem.model), DATA, recipe, seed=0, masks=quarter)
    assert fixed.dense_epochs == pytest.approx(4 * seen * 0.25, rel=1e-12)


def test_the_best_epoch_on_the_validation_part_is_kept_and_survives_a_resume(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 0.3, "epochs": 6, "schedule": "constant"})  # restless
    model = network()
    masks = random_masks(model)
    result = train(model, DATA, recipe, seed=0, masks=masks, keep_best=True)
    accuracies = [entry["accuracy"] for entry in result.history]
    ((entry, weights),) = result.members
    assert entry["accuracy"] == max(accuracies) and entry["epoch"] == 1 + accuracies.index(max(accuracies)) < 6
    assert accuracies[-1] < max(accuracies)  # so that the two differ
    model.load_state_dict(weights)
    assert evaluate(model, DATA, DATA.validation)["accuracy"] == max(accuracies)

    def kill(event: Event) -> None:
        if event.done == 6:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, recipe, seed=0, masks=masks, keep_best=True, checkpoint=path, listen=kill)
    resumed = train(network(), DATA, recipe, seed=0, masks=masks, keep_best=True, checkpoint=path)
    assert resumed.members[0][0] == entry
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.members[0][1].items())


def test_the_best_epoch_of_a_compact_network_comes_back_in_the_original() -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 0.3, "epochs": 25, "schedule": "constant"})
    model = network()
    result = train(model, DATA, recipe, seed=0, masks=few_units(model), keep_best=True)
    ((entry, weights),) = result.members
    assert entry["epoch"] < 25
    last = evaluate(model, DATA, DATA.validation)["accuracy"]
    assert last == pytest.approx(result.final["accuracy"])
    model.load_state_dict(weights)
    assert evaluate(model, DATA, DATA.validation)["accuracy"] == pytest.approx(entry["accuracy"])


def test_a_network_with_dropout_is_trained_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer units it would draw other numbers: two masks of one seed could not be compared."""
    made: list[str] = []
    real = regimes.compact
    monkeypatch.setattr(regimes, "compact", lambda *rest: made.append("compact") or real(*rest))
    trained = []
    real_epoch = loop._train_epoch
    monkeypatch.setattr(
        loop, "_train_epoch", lambda regime, *rest: trained.append(regime.network) or real_epoch(regime, *rest)
    )
    recipe = RECIPE.model_copy(update={"epochs": 20})
    for p in (0.5, 0.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 10))
        masks = Masks.from_tensors({"1.weight": torch.arange(64)[:, None].expand(64, 64) % 16 == 0})
        train(model, DATA, recipe, seed=0, masks=masks)
        assert (trained[-1] is model) == (p > 0)
    assert made == ["compact", "compact"]


class Viewing(nn.Module):
    """What channels-last images break: a view of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.conv(x).relu().view(len(x), -1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_are_channels_last_unless_the_network_does_not_run_so(precision: str) -> None:
    torch.manual_seed(0)
    recipe = RECIPE.model_copy(update={"precision": precision})
    model = Viewing()
    assert train(model, DATA, recipe, seed=0).final["accuracy"] > 0.3
    assert model.conv.weight.is_contiguous()
    usual = build_model("resnet20", input_shape=(1, 8, 8), n_classes=10, seed=0)
    train(usual, DATA, recipe.model_copy(update={"epochs": 1}), seed=0)
    wide = next(p for p in usual.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert wide.is_contiguous(memory_format=torch.channels_last) and not wide.is_contiguous()


def test_a_compact_residual_network_keeps_the_usual_format_in_float32() -> None:
    model = build_model("resnet20", input_shape=(3, 8, 8), n_classes=10, seed=0)
    inputs = torch.randn(2, 3, 8, 8)
    assert put_channels_last(model, inputs) is torch.channels_last and not adds_parts(model)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    kept = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in weights.items()}
    for name, mask in kept.items():
        mask[:: 1 if p_is_last(name, weights) else 3] = True
    tiny = compact(model, Masks.from_tensors(kept), (3, 8, 8)).model
    assert adds_parts(tiny) and put_channels_last(tiny, inputs) is torch.contiguous_format
    assert put_channels_last(tiny, inputs, "bfloat16") is torch.channels_last  # where products take units and put them


def p_is_last(name: str, weights: dict[str, nn.Parameter]) -> bool:
    return name == list(weights)[-1]


def test_learning_rate_schedules() -> None:
    recipe = Recipe(learning_rate=0.4)
    assert learning_rate_at(recipe, 0, 10) == 0.4 and learning_rate_at(recipe, 5, 10) == pytest.approx(0.2)
    cycle = recipe.model_copy(update={"schedule": "one_cycle"})
    rates = [learning_rate_at(cycle, step, 8) for step in range(8)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(0.4) and rates[-1] == pytest.approx(0.4 / 6)
    assert learning_rate_at(recipe.model_copy(update={"schedule": "constant"}), 7, 8) == 0.4
    steps = recipe.model_copy(update={"schedule": "steps", "milestones": (0.25, 0.5), "gamma": 0.5})
    assert [learning_rate_at(steps, step, 8) for step in (1, 2, 3, 4, 7)] == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1])


def test_evaluation_counts_and_leaves_the_mode() -> None:
    model = network().train()
    figures = evaluate(model, DATA, DATA.validation)
    inputs, labels = DATA.batch(DATA.validation, torch.arange(len(DATA.validation)))
    with torch.no_grad():
        expected = (model(inputs).argmax(1) == labels).float().mean()
    assert figures["accuracy"] == pytest.approx(float(expected)) and model.training


def test_a_copy_is_trained_and_the_task_keeps_its_initial_weights() -> None:
    task = load_task(TaskSpec(model="mlp", data="digits", n_train=200), 0)
    before = task.problem.weight.clone()
    trained, _ = train_copy(task, None, Recipe(epochs=1, batch_size=50), 0)
    assert torch.equal(task.problem.layout.flatten(dict(task.problem.model.named_parameters())), before)
    assert not torch.equal(task.problem.layout.flatten(dict(trained.named_parameters())), before)
