"""The start of the kept weights: values known by hand, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import panning
from panning.foundation.errors import ConfigError, MaskError, PanningError
from panning.masks.start import STARTS


def one_layer(mask: list[list[int]], weights: list[list[float]]) -> tuple[nn.Module, panning.Masks]:
    layer = nn.Linear(len(mask[0]), len(mask), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
    return layer, panning.Masks.from_tensors({"weight": torch.tensor(mask)})


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_gain_rescales_each_unit_to_its_kept_inputs() -> None:
    layer, masks = one_layer([[1, 1, 0], [0, 1, 0]], [[3.0, -4.0, 5.0], [1.0, 0.1, 2.0]])
    panning.reinitialise(layer, masks, "gain")
    # Unit 0: root mean square sqrt(12.5) -> sqrt(2 / 2); unit 1: one kept weight -> sqrt(2 / 1).
    wanted = torch.tensor([[3 / 12.5**0.5, -4 / 12.5**0.5, 0.0], [0.0, 2**0.5, 0.0]])
    torch.testing.assert_close(layer.weight.data, wanted)
    panning.reinitialise(layer, masks, "gain", gain=0.5)
    torch.testing.assert_close(layer.weight.data, wanted / 2)


def test_a_unit_of_zeros_and_a_unit_without_weights_stay() -> None:
    layer, masks = one_layer([[1, 1], [0, 0], [1, 0]], [[0.0, 0.0], [1.0, 1.0], [2.0, 1.0]])
    panning.reinitialise(layer, masks, "gain")
    torch.testing.assert_close(layer.weight.data, torch.tensor([[0.0, 0.0], [0.0, 0.0], [2**0.5, 0.0]]))


def test_fan_in_draws_with_the_kept_inputs() -> None:
    """4 of 100 inputs kept: a deviation of 0.7071 in place of 0.1414."""
    layer = nn.Linear(100, 5000, bias=False)
    mask = torch.zeros(5000, 100, dtype=torch.bool)
    mask[:, :4] = True
    masks = panning.Masks.from_tensors({"weight": mask})
    panning.reinitialise(layer, masks, "fan_in", seed=1)
    kept = layer.weight.detach()[mask]
    assert kept.std() == pytest.approx(0.7071, rel=0.02) and abs(float(kept.mean())) < 0.02
    assert not layer.weight.detach()[~mask].any()
    first = layer.weight.detach().clone()
    panning.reinitialise(layer, masks, "fan_in", seed=1)
    assert torch.equal(first, layer.weight)
    panning.reinitialise(layer, masks, "fan_in", seed=2)
    assert not torch.equal(first, layer.weight)


def test_isometry_brings_a_layer_nearer_and_leaves_masked_weights_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 6, bias=False)
    mask = torch.rand(6, 16) < 0.5
    masks = panning.Masks.from_tensors({"weight": mask})

    def distance() -> float:
        a = layer.weight.detach().double() * mask
        return float((a @ a.T - 2.0 * torch.eye(6)).norm())

    panning.reinitialise(layer, masks, "gain")
    before = distance()
    panning.reinitialise(layer, masks, "isometry")
    assert distance() < 1e-3 * before
    assert not layer.weight.detach()[~mask].any()


def test_isometry_of_a_tall_layer_takes_its_smaller_side() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 12, bias=False)
    masks = panning.Masks.dense(panning.Masks.from_tensors({"weight": torch.ones(12, 4)}).layout)
    panning.reinitialise(layer, masks, "isometry", gain=0.5)
    a = layer.weight.detach().double()
    torch.testing.assert_close(a.T @ a, 0.5 * torch.eye(4).double(), atol=1e-2, rtol=0.0)


def test_isometry_leaves_layers_of_single_weights_at_gain_and_says_so() -> None:
    model, twin = three_layers(), three_layers()
    twin.load_state_dict(model.state_dict())
    masks = panning.Masks.from_tensors(
        {"0.weight": torch.ones(8, 8), "2.weight": torch.eye(8), "4.weight": torch.ones(2, 8)}
    )
    assert panning.reinitialise(model, masks, "isometry").at_gain == ("2.weight",)
    assert panning.reinitialise(twin, masks, "gain").at_gain == ()
    assert torch.equal(model[2].weight, twin[2].weight) and not torch.equal(model[0].weight, twin[0].weight)


def test_supar_scales_hidden_layers_and_their_learning_rates() -> None:
    """Density 0.25: the deviation doubles, the learning rate is four times as large."""
    model = three_layers()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = torch.zeros(8, 8)
    mask[:, :2] = 1
    masks = panning.Masks.from_tensors({"0.weight": mask, "2.weight": mask, "4.weight": torch.ones(2, 8)})
    started = panning.reinitialise(model, masks, "supar")
    assert started.learning_rates == {"2.weight": 4.0} and started.untouched == ()
    torch.testing.assert_close(model[2].weight.data, 2.0 * before["2.weight"] * mask)
    torch.testing.assert_close(model[0].weight.data, before["0.weight"] * mask)
    torch.testing.assert_close(model[4].weight.data, before["4.weight"])
    plain, scaled = started.parameter_groups(model, 0.1)
    assert scaled == {"params": [model[2].weight], "lr": pytest.approx(0.4)}
    assert plain["lr"] == 0.1 and len(plain["params"]) == 5  # type: ignore[arg-type]
    torch.optim.SGD([plain, scaled])


def test_layers_between_others_that_stay_dense_are_hidden() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    masks = panning.Masks.from_tensors({name: torch.eye(8) for name in ("1.weight", "3.weight")})
    assert panning.reinitialise(model, masks, "supar").learning_rates == {"1.weight": 8.0, "3.weight": 8.0}


@pytest.mark.parametrize(
    ("layer", "n_units"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), 6),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), 6),
        (nn.ConvTranspose2d(4, 6, 3, bias=False), 6),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), 6),
    ],
)
def test_units_of_convolutions(layer: nn.Module, n_units: int) -> None:
    """A unit's sum of squares is 2 under ``gain``; the unit's own output on one-hot taps tells which weights are its."""
    torch.manual_seed(0)
    mask = torch.rand(layer.weight.shape) < 0.5
    masks = panning.Masks.from_tensors({"weight": mask})
    panning.reinitialise(layer, masks, "gain")
    layer.weight.data.square_()
    squares = layer(torch.ones(1, 4, 9, 9))[0, :, 4, 4]
    torch.testing.assert_close(squares.detach(), torch.full((n_units,), 2.0))


def test_embeddings_are_named_and_keep_their_kept_weights() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2, bias=False))
    before = model[0].weight.detach().clone()
    mask = torch.ones(5, 4)
    mask[0] = 0
    masks = panning.Masks.from_tensors({"0.weight": mask, "1.weight": torch.ones(2, 4)})
    assert panning.reinitialise(model, masks, "gain").untouched == ("0.weight",)
    torch.testing.assert_close(model[0].weight.data, before * mask)


@pytest.mark.parametrize("scheme", ["gain", "isometry", "supar", "fan_in"])
def test_a_layer_that_is_0_throughout_is_named_where_the_scheme_leaves_it_so(scheme: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    nn.init.zeros_(model[2].weight)
    masks = panning.Masks.from_tensors({"0.weight": torch.ones(6, 4), "2.weight": torch.ones(2, 6)})
    started = panning.reinitialise(model, masks, scheme)
    assert started.untouched == (() if scheme == "fan_in" else ("2.weight",))
    assert bool(model[2].weight.any()) == (scheme == "fan_in")


def test_what_cannot_be_is_a_sentence_and_changes_nothing() -> None:
    model = three_layers()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    eye = torch.eye(8)
    masks = panning.Masks.from_tensors({"0.weight": torch.ones(8, 8), "2.weight": eye, "4.weight": torch.ones(2, 8)})
    with pytest.raises(PanningError, match="Did you mean 'fan_in'"):
        panning.reinitialise(model, masks, "fanin")
    single = panning.Masks.from_tensors({"0.weight": eye, "2.weight": eye, "4.weight": torch.eye(2, 8)})
    with pytest.raises(MaskError, match="no unit has two kept weights, neither of '0.weight'"):
        panning.reinitialise(model, single, "isometry")
    for gain in (0.0, -1.0, math.inf, math.nan, "2", True):
        with pytest.raises(ConfigError, match="gain is"):
            panning.reinitialise(model, masks, "gain", gain=gain)  # type: ignore[arg-type]
    for scheme in ("supar", "none"):
        with pytest.raises(ConfigError, match=f"'{scheme}' has no gain"):
            panning.reinitialise(model, masks, scheme, gain=2.0)
    with pytest.raises(PanningError, match=r"Unknown start '\['gain'\]'.* Allowed: .*none"):
        panning.reinitialise(model, masks, ["gain"])  # type: ignore[arg-type]
    for start in (panning.reinitialise, panning.orthogonal):
        arguments = (model, masks, "gain") if start is panning.reinitialise else (model, masks)
        with pytest.raises(PanningError, match="more than its float32 holds: take a smaller gain"):
            start(*arguments, gain=1e39)
    with pytest.raises(MaskError, match="another network"):
        panning.reinitialise(nn.Linear(3, 3), masks, "gain")
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_kept_weights_that_are_nan_are_refused_and_masked_ones_go() -> None:
    model = three_layers()
    with torch.no_grad():
        model[0].weight[0, 1] = math.nan
    kept, layers = torch.ones(8, 8), {"2.weight": torch.ones(8, 8), "4.weight": torch.ones(2, 8)}
    before = model[2].weight.clone()
    for scheme in ("gain", "isometry"):
        with pytest.raises(PanningError, match="'0.weight' has kept weights that are NaN or infinite"):
            panning.reinitialise(model, panning.Masks.from_tensors({"0.weight": kept, **layers}), scheme)
    assert torch.equal(model[2].weight, before)
    kept[0, 1] = 0
    panning.reinitialise(model, panning.Masks.from_tensors({"0.weight": kept, **layers}), "gain")
    assert model[0].weight[0, 1] == 0 and model[0].weight.isfinite().all()


@pytest.mark.parametrize("scheme", [scheme for scheme, row in STARTS.items() if not row.own_masks])
def test_every_start_keeps_the_mask_and_half_precision(scheme: str) -> None:
    model = three_layers().bfloat16()
    masks = panning.prune(three_layers(), density=0.5, method="erk", input_shape=(8,), seed=1)
    panning.reinitialise(model, masks, scheme)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert weight.dtype == torch.bfloat16 and not weight.detach()[~mask].any() and weight.isfinite().all()


def test_no_start_leaves_the_kept_weights_and_takes_the_masked_ones() -> None:
    model = three_layers()
    before = model[0].weight.clone()
    masks = panning.prune(model, input_shape=(8,), density=0.5, method="magnitude")
    started = panning.reinitialise(model, masks, "none")
    assert torch.equal(model[0].weight, before * masks["0.weight"])
    assert started.untouched == tuple(masks) and started.learning_rates == {}
