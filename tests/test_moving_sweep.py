"""Masks that move, in a shape too, and orthogonal layers over torchvision's networks: counts are exact after every step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import panning
from panning.masks.layout import prunable_layout
from panning.masks.masks import n_kept_at
from panning.masks.shape import Shaped
from panning.training.moving.engine import MovingMasks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NETWORKS = dict.fromkeys(("mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0"), (3, 32, 32))
N_STEPS = 4
#: Method, options, shape.
WAYS = [
    ("rigl", {"every": 2}, None), ("rigl", {"every": 2}, "2:4"), ("set", {"every": 2}, "4x1"), ("dpf", {"every": 1}, "1:4"),
    ("gmp", {"every": 1}, "4x1"), ("sign_in", {"every": 2}, None), ("release", {"at": 0.5}, None),
    ("chts", {"every": 2}, None),
]  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=12)
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...]) -> Iterator[int]:
    for number in range(N_STEPS):
        generator = torch.Generator().manual_seed(number)
        optimizer.zero_grad()
        inputs = torch.randn(4, *shape, generator=generator)
        F.cross_entropy(model.train()(inputs), torch.arange(4)).backward()
        optimizer.step()
        yield number


def holds(shaped: Shaped, mask: Tensor) -> bool:
    counts = torch.cat([mask[groups].sum(1) for groups in shaped.groups.values()])
    if not shaped.shape.is_of_blocks:
        return bool((counts == shaped.shape.kept).all())
    return bool(((counts == 0) | (counts == shaped.shape.outputs * shaped.shape.inputs)).all())


@pytest.mark.parametrize(("method", "options", "shape"), WAYS, ids=[f"{way[0]}-{way[2]}" for way in WAYS])
@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_exact_after_every_step(
    name: str, method: str, options: dict[str, float], shape: str | None
) -> None:
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    layout = prunable_layout(model)
    shaped = None if shape is None else Shaped.of(model, layout, shape)
    density: float | None = 0.1
    if shaped is not None:
        blocks = shaped.shape.is_of_blocks
        density = shaped.near(n_kept_at(0.1, layout.n_prunable)) / layout.n_prunable if blocks else None
    with warnings.catch_warnings(action="ignore"):  # a density that falls in few moves; convolutions that stay
        moving: MovingMasks = panning.move_masks(
            model, optimizer, panning.make_dynamic(method, options), density=density, n_steps=N_STEPS, shape=shape,
            steps_per_epoch=2, input_shape=NETWORKS[name],
        )  # fmt: skip
        n_final = n_kept_at(moving.movement.density, layout.n_prunable)
        for _ in steps(model, optimizer, NETWORKS[name]):
            n_kept = int(moving.mask.sum())
            assert n_kept == n_final or method in ("gmp", "release")
            assert shaped is None or holds(shaped, moving.mask)
            assert not moving.flat.read()[~moving.mask].any()
        masks = moving.finish()
    assert masks.n_kept == (layout.n_prunable if method == "release" else n_final)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_orthogonal_layers_keep_every_layers_count(name: str) -> None:
    model = network(name)
    masks = panning.prune(model, density=0.1, method="erk", input_shape=NETWORKS[name])
    with warnings.catch_warnings(action="ignore"):  # layers of few weights
        found = panning.orthogonal(model, masks)
    assert found.layer_densities() == masks.layer_densities() and found != masks
    assert all(not model.get_parameter(layer).detach()[~kept].any() for layer, kept in found.items())
    assert model.eval()(torch.randn(2, *NETWORKS[name])).isfinite().all()
