"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016, https://arxiv.org/abs/1605.07146): WRN-28-2 and the like.

Blocks norm and activate before they convolve; where the number of channels changes, the shortcut is a 1x1 convolution of
what the block has activated.
"""

from __future__ import annotations

from torch import Tensor, nn

from panning.models.initialization import initialize


class WideBlock(nn.Module):
    """conv(relu(norm(conv(a)))) + shortcut, a = relu(norm(x)); the shortcut reads a where it is a convolution, else x."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        changes = stride != 1 or n_inputs != n_outputs
        self.shortcut = nn.Conv2d(n_inputs, n_outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, inputs: Tensor) -> Tensor:
        active = self.relu1(self.norm1(inputs))
        maps = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return maps + (inputs if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Images [b, C, H, W] of any size -> logits [b, n_classes].

    Args:
        depth: 6 n + 4 for n blocks a stage.
        widen: the three stages have 16, 32 and 64 channels times this.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int, depth: int, widen: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        n_inputs = 16
        for number, width in enumerate((16, 32, 64), start=1):
            stage = nn.Sequential()
            for block in range(1, (depth - 4) // 6 + 1):
                stride = 2 if number > 1 and block == 1 else 1
                stage.add_module(f"block{block}", WideBlock(n_inputs, width * widen, stride))
                n_inputs = width * widen
            self.stages.add_module(f"stage{number}", stage)
        self.norm = nn.BatchNorm2d(n_inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(n_inputs, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.relu(self.norm(self.stages(self.conv(inputs))))
        return self.classifier(self.flatten(self.pool(maps)))
