"""A network's modes and buffers, given back after what changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from panning.foundation.torch_private import every_module, n_writes, slots


@contextmanager
def in_evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and give each its own mode back: networks may mix modes."""
    modes = _modes(*models)
    try:
        _put(dict.fromkeys(modes, False))
        yield
    finally:
        _put(modes)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Give every module its mode and every buffer its value back."""
    modes = _modes(model)
    buffers = [(module, dict(slots(module).buffers)) for module in model.modules()]
    values = [(buffer, n_writes(buffer), buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        _put(modes)
        for module, own in buffers:
            slots(module).buffers.update(own)
        with torch.no_grad():
            for buffer, version, value in values:
                changed = n_writes(buffer) != version or not ((buffer == value) | (value != value)).all()
                if changed:  # batch norm counts no writes; an expanded buffer cannot be written into
                    buffer.copy_(value)


@contextmanager
def unwritten(model: nn.Module) -> Iterator[list[str]]:
    """Give a network back what code of others has written into it: parameters, buffers, gradients and modes.

    Yields:
        the names of what was written into, which are there when the context has ended.
    """
    modes = _modes(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    written: list[str] = []
    try:
        yield written
    finally:
        written += [type(module).__name__ for module, training in modes.items() if module.training != training]
        _put(modes)
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not ((tensor == values[name]) | (values[name] != values[name])).all():
                    tensor.copy_(values[name])
                    written.append(name)
                if name in grads and tensor.grad is not grads[name]:
                    tensor.grad = grads[name]
                    written.append(f"{name}.grad")


def _modes(*models: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for model in models for module in every_module(model)}


def _put(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        if module.training != training:
            object.__setattr__(module, "training", training)  # a module's own looks for tensors first
