"""Fully connected networks: LeNet-300-100 (LeCun et al., Proc. IEEE 86, 1998) and a small one for the digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from panning.models.initialization import initialize


class MLP(nn.Module):
    """Flattened inputs [b, *input_shape] -> hidden layers with ReLU -> logits [b, n_classes].

    Args:
        hidden: units of each hidden layer.
        norm: a BatchNorm after each of them, which then has no bias.
    """

    def __init__(self, input_shape: Sequence[int], n_classes: int, hidden: Sequence[int], norm: bool = False) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        width = math.prod(input_shape)
        self.hidden = nn.Sequential()
        for number, next_width in enumerate(hidden, start=1):
            self.hidden.add_module(f"linear{number}", nn.Linear(width, next_width, bias=not norm))
            if norm:
                self.hidden.add_module(f"norm{number}", nn.BatchNorm1d(next_width))
            self.hidden.add_module(f"relu{number}", nn.ReLU())
            width = next_width
        self.classifier = nn.Linear(width, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.flatten(inputs)))
