"""Layout and Masks: names, exact counts, what is refused, and that masks survive copies."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from panning.compaction import compact
from panning.foundation.errors import DensityError, MaskError, ModelError
from panning.masks.layout import Layout, prunable_layout
from panning.masks.masks import Masks, apply_masks, check_density, layout_difference, n_kept_at

LAYOUT = Layout(("a.weight", "b.weight"), ((2, 3), (4,)))


def masks_of(*kept: int) -> Masks:
    flat = torch.zeros(10, dtype=torch.bool)
    flat[list(kept)] = True
    return Masks(LAYOUT, flat)


def test_a_layout_has_sizes_offsets_and_slices() -> None:
    assert LAYOUT.sizes == (6, 4)
    assert LAYOUT.offsets == (0, 6, 10)
    assert LAYOUT.n_prunable == 10
    assert LAYOUT.slices() == [slice(0, 6), slice(6, 10)]


def test_views_share_storage_and_flatten_is_their_inverse() -> None:
    flat = torch.arange(10.0)
    views = LAYOUT.views(flat)
    assert views["a.weight"].shape == (2, 3)
    assert torch.equal(LAYOUT.flatten(views), flat)
    views["b.weight"][0] = -1.0
    assert flat[6] == -1.0


def test_prunable_are_linear_and_conv_weights_in_forward_order() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2), nn.Embedding(3, 2))
    layout = prunable_layout(model)
    assert layout == Layout(("0.weight", "3.weight"), ((2, 1, 3, 3), (2, 8)))


def test_include_and_exclude_are_patterns(tiny_mlp: nn.Module) -> None:
    assert prunable_layout(tiny_mlp, include=("0.*",)).names == ("0.weight",)
    assert prunable_layout(tiny_mlp, exclude=("0.*",)).names == ("2.weight",)
    with pytest.raises(ModelError, match=r"'fc\.\*' matches none .* 0\.weight, 2\.weight"):
        prunable_layout(tiny_mlp, exclude=("fc.*",))
    with pytest.raises(ModelError, match="no prunable weight"):
        prunable_layout(tiny_mlp, exclude=("*",))


@pytest.mark.parametrize(
    ("density", "n_prunable", "n_kept"), [(1.0, 7, 7), (0.5, 7, 4), (0.25, 10, 3), (0.24, 10, 2), (0.05, 10, 1)]
)
def test_n_kept_rounds_halves_up(density: float, n_prunable: int, n_kept: int) -> None:
    assert n_kept_at(density, n_prunable) == n_kept


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(DensityError, match=r"must be in \(0, 1\]"):
        check_density(density)


def test_a_density_that_keeps_nothing_names_one_that_keeps_a_weight() -> None:
    with pytest.raises(DensityError, match=r"none of 100 weights; a density of 0\.01 keeps one"):
        n_kept_at(0.004, 100)
    assert n_kept_at(0.01, 100) == 1


def test_masks_are_a_mapping_with_counts() -> None:
    masks = masks_of(0, 5, 6)
    assert list(masks) == ["a.weight", "b.weight"]
    assert masks["a.weight"].tolist() == [[True, False, False], [False, False, True]]
    assert (masks.n_kept, masks.density, masks.compression) == (3, 0.3, 10 / 3)
    assert masks.layer_densities() == {"a.weight": 2 / 6, "b.weight": 1 / 4}
    assert Masks.dense(LAYOUT).density == 1.0
    assert masks_of().compression == float("inf")
    assert "c.weight" not in masks
    with pytest.raises(KeyError):
        masks["c.weight"]


def test_equality_looks_at_layout_and_weights() -> None:
    assert masks_of(1) == masks_of(1).with_manifest(method="snip")
    assert masks_of(1) != masks_of(2)
    assert masks_of(1) != Masks(Layout(("x",), ((10,),)), masks_of(1).flat)


def test_overlap_is_jaccard() -> None:
    assert masks_of(0, 1, 2).overlap(masks_of(2, 3)) == 1 / 4
    assert masks_of().overlap(masks_of()) == 1.0
    with pytest.raises(MaskError, match=r"different networks(.|\n)*only in the second: x"):
        masks_of().overlap(Masks.dense(Layout(("x",), ((2,),))))


def test_masks_of_another_dtype_or_size_are_refused() -> None:
    with pytest.raises(MaskError, match=r"bool of shape \(10,\), given torch.float32"):
        Masks(LAYOUT, torch.ones(10))
    with pytest.raises(MaskError, match=r"of shape \(9,\)"):
        Masks(LAYOUT, torch.ones(9, dtype=torch.bool))


def test_from_tensors_takes_zeros_and_ones_only() -> None:
    masks = Masks.from_tensors({"w": torch.tensor([[1.0, 0.0]]), "v": torch.tensor([True])}, {"seed": 1})
    assert masks.flat.tolist() == [True, False, True] and masks.manifest == {"seed": 1}
    with pytest.raises(MaskError, match="'w' has entries other than 0 and 1"):
        Masks.from_tensors({"w": torch.tensor([0.5])})
    with pytest.raises(MaskError, match="at least one"):
        Masks.from_tensors({})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_masks_survive_copies(copied: type) -> None:
    masks = masks_of(3, 7).with_manifest(seed=4)
    other = copied(masks)
    assert other == masks and other.manifest == {"seed": 4} and other.layout.offsets == (0, 6, 10)


def test_apply_masks_zeros_in_place_and_keeps_every_key(tiny_mlp: nn.Module) -> None:
    layout = prunable_layout(tiny_mlp)
    before = {name: tensor.clone() for name, tensor in tiny_mlp.state_dict().items()}
    weight = tiny_mlp[0].weight  # type: ignore[index]
    weight.data[0, 0] = float("nan")
    flat = torch.arange(18) % 2 == 1
    apply_masks(tiny_mlp, Masks(layout, flat))
    after = tiny_mlp.state_dict()
    assert list(after) == list(before)
    assert tiny_mlp[0].weight is weight  # type: ignore[index]
    expected = torch.where(flat, layout.flatten(before), torch.zeros(18))
    assert torch.equal(layout.flatten(dict(after)), expected)
    assert not torch.signbit(layout.flatten(dict(after))[~flat]).any()
    assert torch.equal(after["0.bias"], before["0.bias"])


def test_a_mask_of_another_network_changes_nothing(tiny_mlp: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_mlp.state_dict().items()}
    wrong = Masks.from_tensors({"0.weight": torch.zeros(3, 4), "2.weight": torch.zeros(2, 9), "x": torch.zeros(1)})
    with pytest.raises(
        MaskError, match=r"2\.weight: \(2, 9\) in the mask, \(2, 3\) in the model\n  x: .* absent in the model"
    ):
        apply_masks(tiny_mlp, wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_mlp.state_dict().items())


def test_what_is_no_mask_is_told_how_to_become_one(tiny_mlp: nn.Module) -> None:
    plain = {"0.weight": torch.zeros(3, 4)}
    with pytest.raises(MaskError, match=r"masks is a dict; .*Masks\.from_tensors"):
        apply_masks(tiny_mlp, plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [[3, 1 << 40, 1 << 40], [0], "3,32,32", [3.0], [], {"a": 1}])
def test_an_input_shape_from_a_file_is_none_that_fills_the_memory(tiny_mlp: nn.Module, shape: Any) -> None:
    masks = Masks.from_tensors({"0.weight": torch.ones(3, 4)}, {"input_shape": shape})
    for use in (lambda: masks.effective_density(tiny_mlp), lambda: compact(tiny_mlp, masks)):
        with pytest.raises(MaskError, match="input shape"):
            use()


def test_layout_difference_says_order_and_is_bounded() -> None:
    other = Layout(LAYOUT.names[::-1], LAYOUT.shapes[::-1])
    assert layout_difference(LAYOUT, other) == "  the same names in another order"
    many = Layout(tuple(f"l{i}" for i in range(20)), ((1,),) * 20)
    assert layout_difference(LAYOUT, many).splitlines()[-1] == "  and 14 more"


def hooked(norm: str) -> nn.Module:
    with warnings.catch_warnings():  # torch calls these out of date
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Linear(4, 3), getattr(nn.utils, norm)(nn.Linear(3, 2)))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(2, 2)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: hooked("weight_norm"),
            r"'1' has a weight that a hook of torch.nn.utils.weight_norm .*parametrizations",
        ),
        (lambda: hooked("spectral_norm"), r"'1' has a weight that a hook of torch.nn.utils.spectral_norm .*remove_"),
        (on_meta, "'weight' is on the meta device .*to_empty"),
        (scripted, "The module '0' is a .*ScriptModule.* Pass the nn.Module"),
        (lambda: nn.DataParallel(nn.Linear(2, 2)), "The model is a DataParallel.* Pass .*model.module"),
    ],
)
def test_a_network_that_cannot_be_run_with_other_weights_is_refused(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        prunable_layout(make())


def test_a_layer_without_entries_has_nothing_to_prune() -> None:
    with warnings.catch_warnings():  # torch warns that there is nothing to initialise
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 0))
    assert prunable_layout(model).names == ("0.weight",)
    with pytest.raises(ModelError, match="no prunable weight"):
        prunable_layout(model[1:])
