"""Residual networks for small images (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2).

ResNet-20, 32 and 56 have three stages of 16, 32 and 64 channels; ResNet-18 has four of 64 to 512 behind a 3x3 stem
without a pool, as the pruning papers use it for CIFAR and Tiny-ImageNet.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from panning.models.initialization import initialize


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the first convolution takes the stride.

    NOTE: where the shape changes, the shortcut is a 1x1 convolution with BatchNorm (the paper's option B), as in the
    code of GraSP and SynFlow; the paper's CIFAR networks pad with zeros (option A).

    Args:
        kernel: side of both convolutions, odd.
        norm: without, the convolutions have biases in place of norms.
    """

    def __init__(self, n_inputs: int, n_outputs: int, stride: int, kernel: int = 3, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, kernel, stride=stride, padding=kernel // 2, bias=not norm)
        self.norm1 = _norm(n_outputs, norm)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, kernel, padding=kernel // 2, bias=not norm)
        self.norm2 = _norm(n_outputs, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_inputs != n_outputs:
            conv = nn.Conv2d(n_inputs, n_outputs, 1, stride=stride, bias=not norm)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=_norm(n_outputs, norm)))
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.relu1(self.norm1(self.conv1(inputs)))
        maps = self.norm2(self.conv2(maps))
        return self.relu2(maps + self.shortcut(inputs))


def _norm(n_channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(n_channels) if norm else nn.Identity()


class ResNet(nn.Module):
    """Images [b, C, H, W] of any size -> logits [b, n_classes].

    Args:
        widths: channels of each stage; every stage but the first halves the map.
        n_blocks: basic blocks of each stage.
        kernel: side of all convolutions but those of shortcuts, odd.
        norm: without, blocks start at their last convolutions' weights divided by the root of the number of blocks, so that
            the sums of all blocks have the scale of one (Zhang et al., ICLR 2019, https://arxiv.org/abs/1901.09321).
    """

    def __init__(
        self, input_shape: tuple[int, int, int], n_classes: int, widths: Sequence[int], n_blocks: int, kernel: int = 3,
        norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], widths[0], kernel, padding=kernel // 2, bias=not norm)
        self.norm = _norm(widths[0], norm)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        n_inputs = widths[0]
        for number, width in enumerate(widths, start=1):
            stage = nn.Sequential()
            for block in range(1, n_blocks + 1):
                stride = 2 if number > 1 and block == 1 else 1
                stage.add_module(f"block{block}", BasicBlock(n_inputs, width, stride, kernel, norm))
                n_inputs = width
            self.stages.add_module(f"stage{number}", stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(n_inputs, n_classes)
        initialize(self)
        if not norm:
            for part in self.modules():
                if isinstance(part, BasicBlock):
                    part.conv2.weight.data.div_(math.sqrt(n_blocks * len(widths)))

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.stages(self.relu(self.norm(self.conv(inputs))))
        return self.classifier(self.flatten(self.pool(maps)))
