"""LeNet-5 in Caffe's widths 20-50-500, the network of the pruning papers (LeCun et al., Proc. IEEE 86, 1998)."""

from __future__ import annotations

from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.models.initialization import initialize

#: Two 5x5 convolutions without padding and two 2x2 pools leave one pixel of this many.
MIN_SIDE = 16


class LeNet5(nn.Module):
    """Images [b, C, H, W] of at least 16x16 -> logits [b, n_classes].

    NOTE: Caffe's prototxt has no ReLU after the convolutions; SNIP's and its successors' code has, and so do we.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < MIN_SIDE:
            raise ModelError(
                f"lenet5 needs images of at least {MIN_SIDE}x{MIN_SIDE}, given {height}x{width}; use 'mlp' for these."
            )
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(50 * _side_left(height) * _side_left(width), 500)
        self.relu3 = nn.ReLU()
        self.classifier = nn.Linear(500, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.pool1(self.relu1(self.conv1(inputs)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        return self.classifier(self.relu3(self.linear(self.flatten(maps))))


def _side_left(side: int) -> int:
    """Side of the map after both convolutions and pools."""
    return ((side - 4) // 2 - 4) // 2
