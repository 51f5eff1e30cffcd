"""A network's modes and buffers, given back after what changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Give every module its mode and every buffer its value back."""
    training = {module: module.training for module in model.modules()}
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for module, own in buffers:
            module._buffers.update(own)
        with torch.no_grad():
            for buffer, version, value in values:
                if buffer._version != version:  # an expanded one cannot be written into
                    buffer.copy_(value)
