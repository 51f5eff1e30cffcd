"""Sign-In: kept weights as products of two factors, beside a network whose parameters are the factors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning.foundation.errors import MaskError
from panning.training.moving.engine import MovingMasks

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 3
MASK = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0]], dtype=torch.bool)


class Factored(nn.Module):
    """The layer written out by hand: its weight is a * b, both of them parameters."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.empty_like(layer.weight)) for _ in range(2))
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.reset(layer.weight.detach() * MASK)

    def reset(self, weight: Tensor) -> None:
        a = ((1.0 + (1.0 + 4.0 * weight.square()).sqrt()) / 2.0).sqrt()
        self.a.data, self.b.data = a * MASK, weight / a

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.a * self.b, self.bias)


def optimizers(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), 0.3, 0.9, weight_decay=0.01, nesterov=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](model.parameters(), 0.05, weight_decay=0.01)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def moved(model: nn.Linear, optimizer: torch.optim.Optimizer, **rest: Any) -> MovingMasks:
    masks = panning.Masks.from_tensors({"weight": MASK})
    options = {"n_steps": 12, "steps_per_epoch": 5, "input_shape": (6,), **rest}
    return panning.move_masks(model, optimizer, "sign_in", density=masks.density, masks=masks, **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(INPUTS), LABELS).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_every_step_is_that_of_a_network_whose_parameters_are_the_factors(kind: str) -> None:
    """Momentum and weight decay act on the factors, and every fifth step begins with new ones."""
    model = layer()
    by_hand = Factored(model)
    optimizer, second = optimizers(kind, model), optimizers(kind, by_hand)
    moving = moved(model, optimizer)
    for number in range(1, 13):
        step(model, optimizer)
        step(by_hand, second)
        if number % 5 == 0 and number < 12:
            by_hand.reset((by_hand.a * by_hand.b).detach())
        torch.testing.assert_close(model.weight.detach(), (by_hand.a * by_hand.b).detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model.bias, by_hand.bias, rtol=1e-4, atol=1e-6)
        assert not model.weight.detach()[~MASK].any()
    with torch.no_grad():
        plain = layer()
        assert not torch.equal(plain.weight.sign()[MASK], model.weight.sign()[MASK])  # some have passed 0
    assert moving.finish().n_kept == int(MASK.sum())


def test_a_reset_brings_beta_back_at_the_same_weights() -> None:
    model = layer()
    optimizer = optimizers("sgd", model)
    moving = moved(model, optimizer)
    for number in range(1, 6):
        step(model, optimizer)
        if number == 4:
            a, b = (moving.state_dict()["tensors"][name] for name in ("factor", "other factor"))
            assert not torch.allclose((a**2 - b**2)[MASK.flatten()], torch.ones(()), atol=1e-3)
    a, b = (moving.state_dict()["tensors"][name] for name in ("factor", "other factor"))
    torch.testing.assert_close((a**2 - b**2)[MASK.flatten()], torch.ones(int(MASK.sum())))
    assert torch.equal((a * b).view_as(MASK), model.weight)
    assert not a[~MASK.flatten()].any() and not b[~MASK.flatten()].any()


def test_kept_weights_of_zero_learn() -> None:
    model = layer()
    with torch.no_grad():
        model.weight.zero_()
    optimizer = optimizers("sgd", model)
    moved(model, optimizer)
    step(model, optimizer)
    assert (model.weight.detach() != 0).equal(MASK)


def test_gradients_and_optimizer_are_the_callers() -> None:
    model, twin = layer(), layer()
    with torch.no_grad():
        twin.weight.mul_(MASK)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    groups = [group["params"] for group in optimizer.param_groups]
    moving = moved(model, optimizer)
    step(model, optimizer)
    F.cross_entropy(twin(INPUTS), LABELS).backward()
    torch.testing.assert_close(model.weight.grad, twin.weight.grad * MASK)  # that of the products
    assert [group["params"] for group in optimizer.param_groups] == groups
    assert len(optimizer.state) == 2
    with pytest.warns(UserWarning, match="stopped moving") if moving.member is None else nothing():
        moving.finish()
    assert list(optimizer.state) == [model.bias]


def nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_schedule_of_the_callers_reaches_both_factors() -> None:
    model = layer()
    optimizer = optimizers("sgd", model)
    moved(model, optimizer)
    step(model, optimizer)
    before = model.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer)
    torch.testing.assert_close(model.weight.detach(), before)


def test_weights_that_somebody_writes_are_factored() -> None:
    model = layer()
    optimizer = optimizers("sgd", model)
    moving = moved(model, optimizer)
    step(model, optimizer)
    with torch.no_grad():
        model.weight[0, 0] = 15 / 16
    state = moving.state_dict()["tensors"]
    assert (float(state["factor"][0]), float(state["other factor"][0])) == (1.25, 0.75)
    torch.testing.assert_close(moving.dense_weights()["weight"][0, 0], torch.tensor(15 / 16))


def test_states_of_the_factors_optimizer_are_checked() -> None:
    model = layer()
    optimizer = optimizers("adam", model)
    moving = moved(model, optimizer)
    step(model, optimizer)
    state = copy.deepcopy(moving.state_dict())
    assert {name for name in state["tensors"] if name.startswith("optimizer.")} == {
        "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step",
    }  # fmt: skip
    moving.load_state_dict(state)
    for wrong in (torch.zeros(5), torch.zeros(18, dtype=torch.int64)):
        with pytest.raises(MaskError, match="is damaged"):
            moving.load_state_dict({**state, "tensors": {**state["tensors"], "optimizer.exp_avg": wrong}})


def test_a_training_of_less_than_an_epoch_is_refused() -> None:
    model = layer()
    with pytest.raises(MaskError, match="never reset its factors: every=5, n_steps=5"):
        moved(model, optimizers("sgd", model), n_steps=5)
