"""How images lie in memory: convolutions run fastest channels last, the more so the fewer channels they have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panning.foundation.modes import as_it_was
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
    (``modules.by_product``).

    Args:
        inputs: a few of them. Only images [batch, C, H, W] have a channels-last format.
        precision: that the network is run in.
    """
    by_products = precision == "bfloat16" and inputs.device.type == "cpu"
    if inputs.dim() != 4 or (adds_parts(model) and not by_products):
        return torch.contiguous_format
    try:
        with as_it_was(model), torch.no_grad(), isolated_torch_rng(0):
            model.eval()(inputs.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # x.view(len(x), -1), say, of a feature map
        return torch.contiguous_format
    return torch.channels_last


def adds_parts(model: nn.Module) -> bool:
    """Whether the network adds tensors that each have some of the units, as compact residual networks do."""
    return any(isinstance(module, PartialSum) for module in model.modules())
