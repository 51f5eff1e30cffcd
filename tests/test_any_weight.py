"""Whatever a network's weights are: scales that start at zero, weights that no kind covers, complex and mixed ones."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning import PanningWarning

# --- scales that start at zero: equal scores are kept evenly, and the user is told ---


class Block(nn.Module):
    """A residual block whose branch is shut at first, in one of the ways in which networks shut it."""

    def __init__(self, shut: str) -> None:
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.b1, self.b2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        if shut == "BatchNorm":
            nn.init.zeros_(self.b2.weight)
        elif shut == "ReZero":
            self.alpha = nn.Parameter(torch.zeros(()))
        elif shut == "LayerScale":
            self.gamma = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = getattr(self, "alpha", getattr(self, "gamma", 1.0))
        return F.relu(x + scale * self.b2(self.c2(F.relu(self.b1(self.c1(x))))))


def blocks(shut: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(shut), Block(shut), Block(shut), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("all_alive", [False, True])
@pytest.mark.parametrize("method", ["snip", "synflow", "grasp", "panning_staged"])
@pytest.mark.parametrize(
    ("shut", "scale"), [("BatchNorm", "1.b2.weight"), ("ReZero", "1.alpha"), ("LayerScale", "1.gamma")]
)
def test_alike_layers_behind_a_scale_of_zero_keep_alike_and_the_scale_is_named(
    shut: str, scale: str, method: str, all_alive: bool
) -> None:
    with pytest.warns(PanningWarning, match=rf"(?s)same score.*'1\.c1\.weight'.*starts at zero.*'{scale}'"):
        masks = panning.prune(blocks(shut), images(), density=0.2, method=method, all_alive=all_alive)
    shares = [density for name, density in masks.layer_densities().items() if ".c" in name]
    assert len(shares) == 6 and max(shares) - min(shares) < 0.01 and min(shares) > 0.1
    assert masks.n_kept == round(0.2 * masks.n_prunable)
    assert len(masks.manifest["warnings"]) == 1 and "same score" in masks.manifest["warnings"][0]


def test_nothing_is_said_where_the_scale_is_open() -> None:
    with warnings.catch_warnings(action="error"):
        masks = panning.prune(blocks("no"), images(), density=0.5, method="snip")
    assert "warnings" not in masks.manifest


def test_a_head_of_zeros_and_the_second_factor_of_lora() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.base, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 6
    with pytest.warns(PanningWarning, match=r"starts at zero.*: 'b.weight'\."):
        masks = panning.prune(Adapted(), batch, density=0.9, method="snip")
    assert masks.layer_densities()["base.weight"] == 1.0  # all that scores more
    # 54 of 60 weights, 36 of them the base's, 18 of the 24 that score 0.
    assert [int(masks[name].sum()) for name in ("a.weight", "b.weight")] == [9, 9]

    torch.manual_seed(0)
    headed = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    nn.init.zeros_(headed[2].weight)
    with pytest.warns(PanningWarning, match=r"72 weights|same score, 0,.*starts at zero.*: '2.weight'\."):
        masks = panning.prune(headed, density=0.5, method="synflow", input_shape=(6,))
    assert list(masks.layer_densities().values()) == [0.5, 0.5]


@pytest.mark.filterwarnings("error::panning.PanningWarning")
def test_layers_that_lose_all_their_weights_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight *= 1e-3
    with pytest.warns(
        PanningWarning, match=r"1 of 3 layers keep no weight at all: '2.weight'\..*starts at 0.001 or less"
    ):
        masks = panning.prune(model, density=0.2, method="magnitude", input_shape=(8,))
    assert "keep no weight" in masks.manifest["warnings"][0]
