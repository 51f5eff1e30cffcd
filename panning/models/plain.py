"""Plain convolutional networks in any size: stages of convolutions with a pool behind each, as in LeNet, Conv-6 and VGG."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from panning.models.initialization import initialize
from panning.models.mlp import hidden_layers


class Plain(nn.Module):
    """Images [b, C, H, W] of any size -> logits [b, n_classes].

    A stage ends with a 2x2 pool, unless its map has one pixel a side. Without hidden layers the classifier reads the mean of
    the last map, with them they read all of it.

    Args:
        widths: channels of each stage.
        layers: convolutions of each stage.
        kernel: side of each convolution, odd.
        hidden: units of each hidden linear layer.
        norm: a BatchNorm after each layer but the last, which then has no bias.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], n_classes: int, widths: Sequence[int], layers: int = 1, kernel: int = 3,
        hidden: Sequence[int] = (), norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        n_inputs, height, width = input_shape
        self.stages = nn.Sequential()
        for number, n_channels in enumerate(widths, start=1):
            stage = nn.Sequential()
            for layer in range(1, layers + 1):
                stage.add_module(
                    f"conv{layer}", nn.Conv2d(n_inputs, n_channels, kernel, padding=kernel // 2, bias=not norm)
                )
                if norm:
                    stage.add_module(f"norm{layer}", nn.BatchNorm2d(n_channels))
                stage.add_module(f"relu{layer}", nn.ReLU())
                n_inputs = n_channels
            if min(height, width) >= 2:
                stage.add_module("pool", nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            self.stages.add_module(f"stage{number}", stage)
        self.pool = nn.Identity() if hidden else nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        read = (n_inputs * (height * width if hidden else 1), *hidden)
        self.hidden = hidden_layers(read, norm)
        self.classifier = nn.Linear(read[-1], n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.flatten(self.pool(self.stages(inputs)))))
