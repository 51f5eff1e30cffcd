"""A convolution whose gradient torch computes wrongly on the processor, so that it is kept from where it happens.

oneDNN writes past its workspace in the gradient by the weights of a 1x1 convolution with a stride, if its maps lie channels
last and the groups have fewer input channels than a vector register has numbers (8 with AVX2, 16 with AVX-512): the process
ends, or gradients are wrong without a word. Found with torch 2.14.1 (oneDNN 3.12): uxlfoundation/oneDNN#6035, open then.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: Numbers of float32 in a vector register, the widest there is.
WIDEST = 16


def overruns(weight: Tensor, stride: Any) -> bool:
    """Whether such a convolution must not have its maps channels last.

    Args:
        weight: [output channels, input channels of a group, height, width].
        stride: a number, or one for each axis.

    Examples:
        >>> import torch
        >>> from panning.foundation.overruns import overruns
        >>> overruns(torch.ones(8, 4, 1, 1), stride=2), overruns(torch.ones(8, 4, 3, 3), stride=2)
        (True, False)
    """
    steps = (stride,) if isinstance(stride, int) else tuple(stride)
    return tuple(weight.shape[2:]) == (1, 1) and max(steps) > 1 and weight.shape[1] < WIDEST
