"""VGG-16 and VGG-19 for small images (Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556, table 1).

As in the pruning papers' code: BatchNorm after each convolution, which then has no bias, a pool between stages, the
mean of the last map, and one linear classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from panning.models.initialization import initialize

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Images [b, C, H, W] of any size -> logits [b, n_classes].

    The pool before a stage is left out where the map is down to one pixel a side, so that 8x8 images pass too.

    Args:
        n_convs: convolutions of each of the five stages.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int, n_convs: Sequence[int]) -> None:
        super().__init__()
        n_inputs, side = input_shape[0], min(input_shape[1:])
        self.stages = nn.Sequential()
        for number, (width, n_layers) in enumerate(zip(WIDTHS, n_convs, strict=True), start=1):
            stage = nn.Sequential()
            if number > 1 and side >= 2:
                stage.add_module("pool", nn.MaxPool2d(2))
                side //= 2
            for layer in range(1, n_layers + 1):
                stage.add_module(f"conv{layer}", nn.Conv2d(n_inputs, width, 3, padding=1, bias=False))
                stage.add_module(f"norm{layer}", nn.BatchNorm2d(width))
                stage.add_module(f"relu{layer}", nn.ReLU())
                n_inputs = width
            self.stages.add_module(f"stage{number}", stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(n_inputs, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.stages(inputs))))
