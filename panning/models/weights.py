"""Trained weights for a network, from a file of safetensors or ``torch.save``: tensors alone, nothing in it is run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.foundation.files import named_within
from panning.foundation.tensorfile import DAMAGE, read_tensors
from panning.foundation.torchfile import read_torch_file
from panning.foundation.wrappers import prefix_of

#: Under one of these, checkpoints of trainers hold the ``state_dict``.
_NESTED = ("state_dict", "model_state_dict", "model")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the ``state_dict`` in a file into a network, whole or not at all.

    Names may have the prefix of wrappers (``module.``, ``_orig_mod.``) in common. A tensor that the network has under
    several names may stand under one of them.

    Raises:
        ModelError: if the file cannot be read, or its names or shapes are not those of the network; says which.
    """
    model.load_state_dict(check_fit(model, _tensors(Path(path)), path), strict=False)


def check_fit(model: nn.Module, given: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file under the names that a network has for them; arguments and errors as of ``load_weights``."""
    own = model.state_dict(keep_vars=True)
    prefix = prefix_of(given)
    given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    places = {_place(own[name]) for name in given if name in own}
    wrong = {
        "missing": [name for name in own if name not in given and _place(own[name]) not in places],
        "unknown to the network": [name for name in given if name not in own],
        "of another shape or kind": [
            f"{name} {tuple(given[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in given and (given[name].shape != tensor.shape or _kind(given[name]) != _kind(tensor))
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in wrong.items() if names)
        raise ModelError(
            f"The weights in {path} do not fit this network ({found}). Give the state_dict of the same network, with as "
            "many classes."
        )
    return given


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return read_tensors(path, None)[1]
        found: Any = read_torch_file(path)
        for key in _NESTED:
            if isinstance(found, dict) and isinstance(found.get(key), dict):
                found = found[key]
                break
        if not isinstance(found, dict) or not all(isinstance(k, str) and _is_plain(v) for k, v in found.items()):
            raise ValueError("it holds other things than named dense tensors; save model.state_dict() alone")
        return found
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(
            f"No weights can be read from {path}: {reason}. Give a safetensors file, or a state_dict that torch.save wrote."
            + named_within(path, "model.safetensors", "weights.safetensors")
        ) from None


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _place(tensor: Tensor) -> tuple[int, ...]:
    return (id(tensor) if tensor.is_meta else tensor.data_ptr(), *tensor.shape)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
