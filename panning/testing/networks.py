"""A small network that has what makes masks go wrong, and a problem around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panning.scoring.problem import Problem


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
        logits: Tensor = self.classifier(self.drop(self.pool(x).flatten(1)))
        return logits


def residual_problem(seed: int = 0, *, inplace: bool = False) -> Problem:
    """A ``ResidualNet`` with random weights (776 of them prunable) and a scoring batch of 12 images of 3 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualNet(inplace=inplace)
        images = torch.randn(12, 2, 8, 8)
    labels = torch.arange(12) % 3
    return Problem.of(model, (2, 8, 8), lambda number: (images, labels), seed=seed)
