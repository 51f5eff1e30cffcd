"""EOI: layers that are exactly orthogonal under masks of exactly the wanted counts."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import panning
from panning.compare.grid import GridConfig
from panning.foundation.errors import ConfigError, MaskError, PanningWarning
from panning.jobs.spec import CellSpec
from panning.jobs.work import Job, execute
from panning.masks.orthogonal import orthogonal_layer, rotated_identity
from panning.tasks import DataSource, TaskSpec, load_task
from panning.training import Recipe
from panning.training.loop import train_copy


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_orthonormal(matrix: Tensor, within: float = 1e-12) -> bool:
    """Whether the smaller side of ``matrix`` is."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return bool((wide @ wide.T - torch.eye(len(wide), dtype=wide.dtype)).abs().max() < within)


@pytest.mark.parametrize("n_kept", [4, 5, 6, 7])
def test_one_rotation_of_the_identity_of_four_has_six_weights(n_kept: int) -> None:
    """Two rows of one weight each become two rows of two; 5 and 7 are met by no rotation."""
    for seed in range(5):
        turned = rotated_identity(4, 4, n_kept, drawn(seed))
        assert is_orthonormal(turned) and int(turned.count_nonzero()) == {4: 4, 5: 4, 6: 6, 7: 6}[n_kept]
    plain = rotated_identity(4, 4, 4, drawn())
    assert sorted(plain.flatten().tolist()) == [0.0] * 12 + [1.0] * 4


@pytest.mark.parametrize(("rows", "columns"), [(30, 30), (20, 50), (50, 20), (1, 9), (9, 1)])
@pytest.mark.parametrize("density", [0.1, 0.3, 0.99, 1.0])
def test_any_shape_and_density_is_orthonormal(rows: int, columns: int, density: float) -> None:
    n_kept = max(min(rows, columns), round(density * rows * columns))
    turned = rotated_identity(rows, columns, n_kept, drawn())
    assert turned.shape == (rows, columns) and is_orthonormal(turned)
    # The rotation that would have gone beyond fills at most two whole rows.
    assert n_kept - 2 * min(rows, columns) <= int(turned.count_nonzero()) <= n_kept


@pytest.mark.parametrize("n_kept", [3, 36, 100, 600, 15 * 8 * 9])
def test_a_convolution_has_its_matrix_at_one_tap_and_zeros_at_others(n_kept: int) -> None:
    weights, kept = orthogonal_layer((15, 8, 9), 4, n_kept, drawn())
    assert int(kept.sum()) == n_kept and not weights[~kept].any()
    beside = [tap for tap in range(9) if tap != 4]
    assert not weights[:, :, beside].any()
    n_centre = int(kept[:, :, 4].sum())
    share = math.sqrt(n_kept / (15 * 8 * 9))
    assert n_kept < 8 or is_orthonormal(weights[:, :, 4])
    if 8 <= n_kept < 15 * 8 * 9:
        assert max(8, share * 120 - 16) <= n_centre <= max(8, share * 120 + 1)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3), nn.ReLU(), nn.ConvTranspose2d(12, 6, 3, groups=2),
        nn.Flatten(), nn.Linear(6 * 6 * 6, 10),
    ).double()  # fmt: skip


def test_a_network_is_orthogonal_under_the_counts_of_its_mask() -> None:
    model = network()
    masks = panning.prune(network().float(), density=0.3, method="snip", data=some_batch(), seed=1)
    found = panning.orthogonal(model, masks, seed=3)
    assert found.layer_densities() == masks.layer_densities() and found.flat.ne(masks.flat).any()
    assert found.manifest == {"method": "eoi", "quotas": "snip", "seed": 3, "input_shape": [3, 8, 8]}
    for name, kept in found.items():
        assert not model.get_parameter(name).detach()[~kept].any()
    assert is_orthonormal(model[0].weight.detach()[:, :, 1, 1])
    for group in model[2].weight.detach()[:, :, 1, 1].split(4):
        assert is_orthonormal(group)
    for group in model[4].weight.detach()[:, :, 1, 1].split(6):  # [inputs of a group, outputs of each]
        assert is_orthonormal(group)
    assert is_orthonormal(model[6].weight.detach())


def some_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, 8, 8, generator=drawn()), torch.arange(20) % 10


@pytest.mark.parametrize("taps", [1, 3])
def test_each_group_of_a_convolution_is_a_layer_of_its_own(taps: int) -> None:
    model = nn.Sequential(nn.Conv2d(12, 12, taps, groups=3, bias=False))
    masks = panning.prune(model, density=0.5, method="erk", input_shape=(12, 4, 4))
    panning.orthogonal(model, masks)
    for group in model[0].weight.detach().double()[:, :, taps // 2, taps // 2].split(4):
        torch.testing.assert_close(group @ group.T, torch.eye(4).double(), rtol=0, atol=1e-6)


def test_lengths_stay_through_an_orthogonal_layer() -> None:
    layer = nn.Linear(40, 60, bias=False).double()
    masks = panning.prune(nn.Linear(40, 60), density=0.1, method="random", input_shape=(40,))
    panning.orthogonal(layer, masks, gain=2.0)
    inputs = torch.randn(5, 40, generator=drawn(), dtype=torch.float64)
    torch.testing.assert_close(layer(inputs).norm(dim=1), 2.0 * inputs.norm(dim=1))


def test_equal_seeds_give_equal_weights() -> None:
    masks = panning.prune(nn.Linear(10, 20), density=0.3, method="random", input_shape=(10,))
    layers = [nn.Linear(10, 20) for _ in range(3)]
    found = [panning.orthogonal(layer, masks, seed=seed) for layer, seed in zip(layers, (0, 0, 1), strict=True)]
    assert torch.equal(layers[0].weight, layers[1].weight) and found[0] == found[1]
    assert not torch.equal(layers[0].weight, layers[2].weight) and found[0] != found[2]


def test_a_layer_of_too_few_weights_is_said() -> None:
    layer = nn.Linear(6, 4, bias=False)
    mask = torch.zeros(4, 6)
    mask[0] = 0
    mask[0, :3] = 1
    with pytest.warns(PanningWarning, match="'weight' among them, have fewer weights than their smaller side"):
        found = panning.orthogonal(layer, panning.Masks.from_tensors({"weight": mask}))
    assert found.n_kept == 3 and len(found.manifest["warnings"]) == 1
    values = layer.weight.detach()
    assert values.sum() == 3.0 and values.sum(0).max() == values.sum(1).max() == 1.0


def test_embeddings_keep_mask_and_weights_and_errors_change_nothing() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4, bias=False))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = torch.ones(5, 4)
    mask[0] = 0
    masks = panning.Masks.from_tensors({"0.weight": mask, "1.weight": torch.ones(4, 4)})
    for gain in (0.0, "1", math.inf):
        with pytest.raises(ConfigError, match="gain is"):
            panning.orthogonal(model, masks, gain=gain)  # type: ignore[arg-type]
    with pytest.raises(MaskError, match="another network"):
        panning.orthogonal(nn.Linear(3, 3), masks)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = panning.orthogonal(model, masks)
    assert torch.equal(found["0.weight"], masks["0.weight"])
    torch.testing.assert_close(model[0].weight.data, before["0.weight"] * mask)


def test_a_recipe_that_starts_so_trains_under_masks_of_its_own() -> None:
    recipe = Recipe.model_validate({"epochs": 2, "batch_size": 50, "start": "eoi"})
    assert recipe.start is not None and recipe.start.label == "EOI masks and start"
    task = load_task(TaskSpec(model="mlp", data="digits", n_train=200), 0)
    masks = panning.prune(task.network(), density=0.1, method="synflow", input_shape=(1, 8, 8))
    model, result = train_copy(task, masks, recipe, seed=3)
    assert result.masks is not None and result.masks != masks
    assert result.masks.layer_densities() == masks.layer_densities()
    assert result.masks == panning.orthogonal(task.network(), masks, seed=3)
    for name, kept in result.masks.items():
        assert not model.get_parameter(name).detach()[~kept].any()
    again, _ = train_copy(task, masks, recipe, seed=3)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    with pytest.raises(ConfigError, match=r"call panning.orthogonal\(model, masks\)"):
        panning.reinitialise(model, masks, "eoi")


@pytest.mark.parametrize("by", [{"method": "snip"}, {"method": "snip", "dynamic": "release"}])
def test_a_cell_tells_of_the_masks_that_it_trained(by: dict[str, str]) -> None:
    values = {
        "task": {"model": "mlp", "data": "digits", "n_train": 200}, "seed": 0, "density": 0.1, "by": by,
        "recipe": {"epochs": 2, "batch_size": 20},
    }  # fmt: skip
    plain, eoi = (
        execute(Job(CellSpec.model_validate({**values, "recipe": {**recipe, "start": start}}), DataSource()))
        for recipe in [values["recipe"]]
        for start in ("none", "eoi")
    )
    assert eoi.n_kept == plain.n_kept and eoi.test_accuracy != plain.test_accuracy  # type: ignore[union-attr]
    if "dynamic" not in by:
        assert eoi.mask != plain.mask and eoi.layer_densities == plain.layer_densities  # type: ignore[union-attr]
    shaped = {**values, "density": 0.5, "by": {"method": "snip", "shape": "2:4"}}
    with pytest.raises(ValueError, match="finds masks of its own, without a shape"):
        CellSpec.model_validate({**shaped, "recipe": {"start": "eoi"}})
    grid = {
        "name": "x", "tasks": [{"task": values["task"], "recipe": values["recipe"], "starts": ["none", "eoi"]}],
        "densities": [0.5], "seeds": [0], "controls": False, "methods": ["erk", {"method": "snip", "shape": "2:4"}],
    }  # fmt: skip
    with pytest.raises(ValueError, match="finds masks of its own, without the shape '2:4'"):
        GridConfig.model_validate(grid)
