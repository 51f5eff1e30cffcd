"""A network's modes and buffers, given back after what changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from panning.foundation.torch_private import n_writes, slots


@contextmanager
def in_evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and give each its own mode back: networks may mix modes."""
    modes = _modes(*models)
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        _put_back(modes)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Give every module its mode and every buffer its value back."""
    modes = _modes(model)
    buffers = [(module, dict(slots(module).buffers)) for module in model.modules()]
    values = [(buffer, n_writes(buffer), buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        _put_back(modes)
        for module, own in buffers:
            slots(module).buffers.update(own)
        with torch.no_grad():
            for buffer, version, value in values:
                changed = n_writes(buffer) != version or not ((buffer == value) | (value != value)).all()
                if changed:  # batch norm counts no writes; an expanded buffer cannot be written into
                    buffer.copy_(value)


def _modes(*models: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for model in models for module in model.modules()}


def _put_back(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
