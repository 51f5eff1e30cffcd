"""Small networks whose answers are known by hand, and a problem around any network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panning.masks.layout import Layout
from panning.scoring.problem import Problem


def chain(*matrices: list[list[float]], activation: type[nn.Module] = nn.Identity, bias: bool = False) -> nn.Sequential:
    """Linear layers with the given weights [out][in] and zero biases, an activation between them."""
    layers: list[nn.Module] = []
    for rows in matrices:
        weight = torch.tensor(rows)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
        linear.weight.data = weight
        if bias:
            linear.bias.data.zero_()
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


class ResidualNet(nn.Module):
    """A small convolutional network with BatchNorm, an identity skip, a strided shortcut, max-pooling and a flatten."""

    def __init__(self, width: int = 4, n_classes: int = 3, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=inplace)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(2 * width * 4, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = x + self.block2(self.relu(self.block1(x)))
        x = self.relu(self.down(x) + self.shortcut(x))
        return self.classifier(self.drop(self.pool(x).flatten(1)))


def residual_problem(seed: int = 0, *, inplace: bool = False) -> Problem:
    """A ``ResidualNet`` with random weights and a fixed scoring batch of 12 images of 8x8 in 3 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualNet(inplace=inplace)
        images = torch.randn(12, 2, 8, 8)
    labels = torch.arange(12) % 3
    return Problem.of(model, (2, 8, 8), lambda number: (images, labels), seed=seed)


def mlp_problem(seed: int = 0, sizes: tuple[int, ...] = (6, 8, 8, 3), dtype: torch.dtype = torch.float32) -> Problem:
    """An MLP with tanh (smooth, so that finite differences are exact enough) and a fixed scoring batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), nn.Tanh()]
        model = nn.Sequential(*layers[:-1]).to(dtype)
        inputs = torch.randn(9, sizes[0], dtype=dtype)
    labels = torch.arange(9) % sizes[-1]
    return Problem.of(model, (sizes[0],), lambda number: (inputs, labels), seed=seed)


def flat_mask(layout: Layout, density: float, seed: int) -> Tensor:
    """A random mask, each weight kept with probability ``density``."""
    return torch.rand(layout.n_prunable, generator=torch.Generator().manual_seed(seed)) < density
