"""A network of our own."""

from torch import nn


def bottleneck(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    n = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(n, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_classes)
    )
