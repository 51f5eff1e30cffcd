"""Where torch's gradient of a convolution is wrong, or ends the process, its maps do not lie channels last."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning.compaction.image_format import put_channels_last
from panning.flow.convolutions import convolution

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4


class Shortcut(nn.Module):
    """Maps of some channels, and of every other pixel twice as many by a 1x1 convolution, as a function or a module."""

    def __init__(self, channels: int, kernel: int = 1, stride: int = 2, as_function: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, kernel, stride, kernel // 2, bias=False)
        self.last = nn.Linear(2 * channels, 4)
        self.as_function = as_function

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        other = F.conv2d(x, self.second.weight, stride=self.second.stride) if self.as_function else self.second(x)
        return self.last(other.relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "format"),
    [
        (Shortcut(4), torch.contiguous_format),
        (Shortcut(15, as_function=True), torch.contiguous_format),
        (Shortcut(16), torch.channels_last),
        (Shortcut(4, kernel=3), torch.channels_last),
        (Shortcut(4, stride=1), torch.channels_last),
    ],
)
def test_only_networks_with_such_a_convolution_keep_the_usual_format(
    model: Shortcut, format: torch.memory_format
) -> None:
    assert put_channels_last(model, IMAGES[:2]) is format
    assert model.second.weight.is_contiguous(memory_format=format)


def test_gradients_of_a_training_are_those_of_float64() -> None:
    """With AVX2 the process ended here with a corrupted heap."""
    torch.manual_seed(0)
    model = Shortcut(4)
    exact = copy.deepcopy(model).double()
    images = IMAGES.contiguous(memory_format=put_channels_last(model, IMAGES[:2]))
    for _ in range(20):
        model.zero_grad()
        F.cross_entropy(model(images), LABELS).backward()
    F.cross_entropy(exact(IMAGES.double()), LABELS).backward()
    for parameter, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        torch.testing.assert_close(parameter.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [4, 15, 16])
def test_derivatives_of_the_gradient_are_those_of_float64_however_maps_lie(channels: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, channels, 8, 8), torch.randn(6, channels, 1, 1)
    found = []
    for dtype, last in ((torch.float32, True), (torch.float64, False)):
        a = x.to(dtype, memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
        w = weight.to(dtype).requires_grad_()
        y = convolution(F.conv2d, a, w, stride=2, last=last) if last else F.conv2d(a, w, stride=2)
        grads = torch.autograd.grad(y.square().sum(), (a, w), create_graph=True)
        found.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (a, w))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-2)


def test_scores_of_a_network_that_its_user_laid_channels_last_are_those_of_torchs_layout() -> None:
    torch.manual_seed(0)
    model = Shortcut(4)
    laid = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain, other = (
        panning.prune(one, (images, LABELS), density=0.3, method="snip")
        for one, images in ((model, IMAGES), (laid, IMAGES.contiguous(memory_format=torch.channels_last)))
    )
    assert plain.overlap(other) == 1.0
