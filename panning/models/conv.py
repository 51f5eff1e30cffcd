"""Conv-6, the small VGG of the lottery tickets (Frankle and Carbin, ICLR 2019, https://arxiv.org/abs/1803.03635, figure 2).

NOTE: with BatchNorm after every layer but the last, as in the code behind the tables that it is compared in (Cunegatti et
al. 2024); the paper's own has none. Layers before a BatchNorm have no bias.
"""

from __future__ import annotations

from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.models.initialization import initialize

WIDTHS = (64, 128, 256)
#: Three 2x2 pools leave one pixel of this many.
MIN_SIDE = 8


class Conv6(nn.Module):
    """Images [b, C, H, W] of at least 8x8 -> logits [b, n_classes]: three stages of two convolutions and a pool, two hidden
    layers of 256 units.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        n_inputs, height, width = input_shape
        if min(height, width) < MIN_SIDE:
            raise ModelError(
                f"conv6 needs images of at least {MIN_SIDE}x{MIN_SIDE}, given {height}x{width}; use 'mlp' for these."
            )
        self.stages = nn.Sequential()
        for number, n_channels in enumerate(WIDTHS, start=1):
            stage = nn.Sequential()
            for layer in (1, 2):
                stage.add_module(f"conv{layer}", nn.Conv2d(n_inputs, n_channels, 3, padding=1, bias=False))
                stage.add_module(f"norm{layer}", nn.BatchNorm2d(n_channels))
                stage.add_module(f"relu{layer}", nn.ReLU())
                n_inputs = n_channels
            stage.add_module("pool", nn.MaxPool2d(2))
            self.stages.add_module(f"stage{number}", stage)
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential()
        n_inputs *= (height // 8) * (width // 8)
        for layer in (1, 2):
            self.hidden.add_module(f"linear{layer}", nn.Linear(n_inputs, 256, bias=False))
            self.hidden.add_module(f"norm{layer}", nn.BatchNorm1d(256))
            self.hidden.add_module(f"relu{layer}", nn.ReLU())
            n_inputs = 256
        self.classifier = nn.Linear(256, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.flatten(self.stages(inputs))))
