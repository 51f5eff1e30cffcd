"""Fully connected networks: LeNet-300-100 (LeCun et al., Proc. IEEE 86, 1998) and a small one for the digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from panning.models.initialization import initialize


def hidden_layers(widths: Sequence[int], norm: bool) -> nn.Sequential:
    """Linear layers from each width to the next, each with ReLU; with ``norm`` a BatchNorm takes the place of the bias."""
    layers = nn.Sequential()
    for number, (n_inputs, n_units) in enumerate(pairwise(widths), start=1):
        layers.add_module(f"linear{number}", nn.Linear(n_inputs, n_units, bias=not norm))
        if norm:
            layers.add_module(f"norm{number}", nn.BatchNorm1d(n_units))
        layers.add_module(f"relu{number}", nn.ReLU())
    return layers


class MLP(nn.Module):
    """Flattened inputs [b, *input_shape] -> hidden layers with ReLU -> logits [b, n_classes].

    Args:
        hidden: units of each hidden layer.
        norm: a BatchNorm after each of them, which then has no bias.
    """

    def __init__(self, input_shape: Sequence[int], n_classes: int, hidden: Sequence[int], norm: bool = False) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        widths = (math.prod(input_shape), *hidden)
        self.hidden = hidden_layers(widths, norm)
        self.classifier = nn.Linear(widths[-1], n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.flatten(inputs)))
