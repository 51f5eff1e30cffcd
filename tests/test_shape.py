"""Masks with a shape: N of each M, and blocks."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import panning
from panning.foundation.errors import ConfigError, DensityError, MaskError, ModelError
from panning.masks.layout import prunable_layout
from panning.masks.shape import Shape, Shaped


def shaped(model: nn.Module, text: str) -> Shaped:
    return Shaped.of(model, prunable_layout(model), text)


def test_two_of_four_by_hand() -> None:
    """Scores (4, 1, 3, 2): positions 0 and 2."""
    found = shaped(nn.Linear(8, 1, bias=False), "2:4")
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0, -1.0, -4.0, -2.0, -3.0])
    assert found.mask(scores, None).tolist() == [True, False, True, False, True, False, True, False]
    assert found.mask(torch.zeros(8), None).tolist() == [True, True, False, False] * 2  # equals: the lower position


def test_blocks_go_by_their_sum() -> None:
    """Two inputs, four outputs: the blocks 4x1 are the columns; 2x1 are halves of columns."""
    model = nn.Linear(2, 4, bias=False)
    scores = torch.tensor([[1.0, 9.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])  # columns sum to 10 and 9
    assert shaped(model, "4x1").mask(scores.reshape(-1), 0.5).view(4, 2).tolist() == [[True, False]] * 4
    halves = shaped(model, "2x1").mask(scores.reshape(-1), 0.5).view(4, 2)  # sums 3, 9 above and 7, 0 below
    assert halves.tolist() == [[False, True], [False, True], [True, False], [True, False]]


@pytest.mark.parametrize("text", ["1:4", "2:4", "4:8", "8:32"])
def test_every_group_has_exactly_n(text: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.ConvTranspose2d(64, 8, 2, groups=2), nn.Conv2d(8, 32, 1, groups=8),
        nn.Linear(32, 10),
    )  # fmt: skip
    found = shaped(model, text)
    assert found.uncovered == ("0.weight", "3.weight")  # 3 inputs, and 1 in each group
    kept, of = (int(number) for number in text.split(":"))
    mask = found.layout.views(found.mask(torch.randn(found.layout.n_prunable), None))
    assert (mask["1.weight"].permute(0, 2, 3, 1).reshape(-1, of).sum(1) == kept).all()
    assert (mask["4.weight"].view(-1, of).sum(1) == kept).all()
    # [64 inputs, 4 outputs of a group, 2, 2]: 32 inputs in each of two groups.
    transposed = mask["2.weight"].view(2, 32, 4, 2, 2).permute(0, 2, 3, 4, 1)
    assert (transposed.reshape(-1, of).sum(1) == kept).all()
    assert mask["0.weight"].all() and mask["3.weight"].all()


def test_the_rest_of_the_budget_goes_to_the_best_single_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))  # 12 single, 8 in groups
    found = shaped(model, "2:4")
    scores = torch.arange(20.0)
    mask = found.mask(scores, 0.5)
    assert int(mask.sum()) == 10 and mask[6:12].all() and not mask[:6].any()
    with pytest.raises(DensityError, match=r"densities from 0.2 to 0.8 can be had, given 0.1"):
        found.mask(scores, 0.1)
    with pytest.raises(DensityError, match=r"given 0.9"):
        found.mask(scores, 0.9)


def best_sum(found: Shaped, scores: Tensor, n_kept: int) -> float:
    """By brute force over all sets of blocks and single weights."""
    blocks = torch.cat(list(found.groups.values()))
    single = [i for i in range(len(scores)) if i not in set(blocks.reshape(-1).tolist())]
    items = [*blocks.tolist(), *([i] for i in single)]
    sums = [
        float(scores[sum(chosen, [])].sum())
        for size in range(len(items) + 1)
        for chosen in itertools.combinations(items, size)
        if sum(map(len, chosen)) == n_kept
    ]
    return max(sums)


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_a_mask_of_blocks_has_the_budget_exactly_and_ranks_by_mean(seed: int, n_kept: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))  # 2x2: 8 covered, 12 of 2x3 not
    found = shaped(model, "2x2")
    assert found.uncovered == ("0.weight",)
    scores = torch.rand(20, generator=generator)
    mask = found.mask(scores, n_kept / 20)
    assert int(mask.sum()) == n_kept
    for groups in found.groups.values():
        assert mask[groups].all(1).logical_xor(~mask[groups].any(1)).all()  # whole or not at all
    if n_kept % 4 == 0:  # near the best set: greedy by means may lose one block's worth
        assert float(scores[mask].sum()) >= best_sum(found, scores, n_kept) - 4.0


def test_blocks_lie_in_one_group_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1))
    layout = prunable_layout(model)
    covered = {shape: set(Shaped.of(model, layout, shape).groups) for shape in ("4x1", "8x1", "1x2")}
    assert covered == {"4x1": {"1.weight", "2.weight"}, "8x1": {"2.weight"}, "1x2": {"1.weight", "2.weight"}}


def test_what_cannot_be_is_a_sentence() -> None:
    for wrong in ("", "2", "2-4", "0:4", "4:2", "4:4", "a:b", "2:4:8", " 2:4", 24):
        with pytest.raises(ConfigError, match="Shape"):
            Shape.parse(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        ModelError, match=r"Shape '2:4' covers no layer: .* multiples of 1 outputs and 4 inputs.*\(3, 6\)"
    ):
        shaped(nn.Linear(6, 3), "2:4")
    blocks = shaped(nn.Linear(4, 4), "4x1")
    with pytest.raises(DensityError, match="near densities that can be had are 0.25, 0.5"):
        blocks.mask(torch.rand(16), 0.375)
    with pytest.raises(DensityError, match="pass density"):
        blocks.mask(torch.rand(16), None)


def test_prune_gives_a_shape_by_any_ranking_and_says_what_it_does_not_cover() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    magnitude = panning.prune(model, method="magnitude", shape="2:4", input_shape=(3, 8, 8))
    kept = magnitude["3.weight"].view(-1, 4)
    weights = model[3].weight.detach().abs().view(-1, 4)
    assert (kept.sum(1) == 2).all() and magnitude["0.weight"].all()
    assert (weights.masked_fill(~kept, 9.0).min(1).values >= weights.masked_fill(kept, 0.0).max(1).values).all()
    assert magnitude.manifest["shape"] == "2:4" and magnitude.manifest["not_in_shape"] == ["0.weight"]
    for method in ("random", "erk", "synflow", "panning_staged", "force"):
        data = (torch.randn(6, 3, 8, 8), torch.arange(6) % 4)
        masks = panning.prune(model, data, density=0.3, method=method, shape="1:4")
        assert (masks["3.weight"].view(-1, 4).sum(1) == 1).all() and masks.n_kept == round(0.3 * masks.n_prunable)
    plain = panning.prune(model, density=0.5, method="magnitude", input_shape=(3, 8, 8))
    assert not {"shape", "not_in_shape"} & set(plain.manifest)
    with pytest.raises(MaskError, match="all_alive moves single weights"):
        panning.prune(model, density=0.5, shape="2:4", all_alive=True, input_shape=(3, 8, 8))
    with pytest.raises(DensityError, match="Pass density"):
        panning.prune(model, input_shape=(3, 8, 8))
    with pytest.raises(DensityError, match="Density is 2"):
        panning.prune(model, density=2.0, shape="2:4", input_shape=(3, 8, 8))


def test_a_linear_of_two_of_four_fits_torchs_semi_structured_tensors() -> None:
    """Their layout is checked without a GPU: two of each four along the inputs, in all rows."""
    model = nn.Linear(64, 32, bias=False)
    masks = panning.prune(model, method="magnitude", shape="2:4", input_shape=(64,))
    panning.apply_masks(model, masks)
    assert (model.weight.detach().view(32, 16, 4).count_nonzero(2) == 2).all()
