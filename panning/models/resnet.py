"""Residual networks for small images (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2).

ResNet-20, 32 and 56 have three stages of 16, 32 and 64 channels; ResNet-18 has four of 64 to 512 behind a 3x3 stem
without a pool, as the pruning papers use it for CIFAR and Tiny-ImageNet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from panning.models.initialization import initialize


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the first convolution takes the stride.

    NOTE: where the shape changes, the shortcut is a 1x1 convolution with BatchNorm (the paper's option B), as in the
    code of GraSP and SynFlow; the paper's CIFAR networks pad with zeros (option A).
    """

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_inputs != n_outputs:
            conv = nn.Conv2d(n_inputs, n_outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(n_outputs)))
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.relu1(self.norm1(self.conv1(inputs)))
        maps = self.norm2(self.conv2(maps))
        return self.relu2(maps + self.shortcut(inputs))


class ResNet(nn.Module):
    """Images [b, C, H, W] of any size -> logits [b, n_classes].

    Args:
        widths: channels of each stage; every stage but the first halves the map.
        n_blocks: basic blocks of each stage.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int, widths: Sequence[int], n_blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        n_inputs = widths[0]
        for number, width in enumerate(widths, start=1):
            stage = nn.Sequential()
            for block in range(1, n_blocks + 1):
                stride = 2 if number > 1 and block == 1 else 1
                stage.add_module(f"block{block}", BasicBlock(n_inputs, width, stride))
                n_inputs = width
            self.stages.add_module(f"stage{number}", stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(n_inputs, n_classes)
        initialize(self)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.stages(self.relu(self.norm(self.conv(inputs))))
        return self.classifier(self.flatten(self.pool(maps)))
