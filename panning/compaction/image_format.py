"""How images lie in memory: convolutions run fastest channels last, the more so the fewer channels they have."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from panning.foundation.modes import as_it_was
from panning.foundation.overruns import overruns
from panning.foundation.seeding import isolated_torch_rng
from panning.models.parts import PartialSum


def put_channels_last(model: nn.Module, inputs: Tensor, precision: str = "float32") -> torch.memory_format:
    """Lay the weights out channels last where the network runs so, and return the format for its inputs.

    Args:
        precision: that it is run in.
    """
    model.to(memory_format=torch.channels_last)
    found = image_format(model, inputs, precision)
    model.to(memory_format=found)
    return found


def image_format(model: nn.Module, inputs: Tensor, precision: str = "float32") -> torch.memory_format:
    """Channels last, or the usual format where the network, with its weights as they lie, does not run in it.

    Compact residual networks keep the usual one in float32: to gather and add units by their indices is slower channels
    last, and costs them about what their convolutions gain. In bfloat16 on a processor products of matrices do it
    (``modules.by_product``). Networks with a convolution whose gradient is wrong channels last keep it, too
    (``panning.foundation.overruns``).

    Args:
        inputs: a few of them. Only images [batch, C, H, W] have a channels-last format.
        precision: that the network is run in.
    """
    by_products = precision == "bfloat16" and inputs.device.type == "cpu"
    if inputs.dim() != 4 or (adds_parts(model) and not by_products):
        return torch.contiguous_format
    try:
        with as_it_was(model), torch.no_grad(), isolated_torch_rng(0), _Watch() as watch:
            model.eval()(inputs.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # x.view(len(x), -1), say, of a feature map
        return torch.contiguous_format
    return torch.contiguous_format if watch.overruns and inputs.device.type == "cpu" else torch.channels_last


class _Watch(TorchFunctionMode):
    """Looks for convolutions whose gradient is wrong channels last."""

    overruns = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, torch.convolution):
            self.overruns |= _overruns(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _overruns(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, *_: Any, **__: Any) -> bool:
    """With the arguments of ``F.conv2d``, by their names."""
    return overruns(weight, stride)


def adds_parts(model: nn.Module) -> bool:
    """Whether the network adds tensors that each have some of the units, as compact residual networks do."""
    return any(isinstance(module, PartialSum) for module in model.modules())
