"""Masks in CSR form, and safetensors files in forward order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panning.foundation.tensorfile import in_order
from panning.masks.checks import broken, check_sizes
from panning.masks.masks import Masks

CSR = ("crow_indices", "col_indices", "shape")


def safetensors_bytes(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """A safetensors file of bool or int32 arrays, in forward order."""
    types = {"bool": "BOOL", "int32": "I32"}  # no two of them in one file, so that all of it is aligned
    entries = {name: (types[a.dtype.name], list(a.shape), a.tobytes()) for name, a in arrays.items()}
    return in_order(entries, {"format": "pt"})


def csr_arrays(masks: Masks) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, mask in masks.items():
        kept = mask.numpy().reshape(mask.shape[0], -1)
        crow = np.concatenate([[0], kept.sum(axis=1).cumsum()])
        parts = (crow, kept.nonzero()[1], np.array(mask.shape))
        arrays |= {f"{name}.{part}": array.astype(np.int32) for part, array in zip(CSR, parts, strict=True)}
    return arrays


def is_csr(names: Iterable[str]) -> bool:
    return any(name.endswith(f".{CSR[0]}") for name in names)


def from_csr(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks that CSR tensors stand for; every index is checked before it is used."""
    names = [name.removesuffix(f".{CSR[0]}") for name in tensors if name.endswith(f".{CSR[0]}")]
    if set(tensors) != {f"{name}.{part}" for name in names for part in CSR}:
        broken(
            "CSR tensors that are not complete, or others among them", f"of each parameter NAME.{', NAME.'.join(CSR)}"
        )
    shapes = {}
    for name in names:
        for part in CSR:
            if (tensor := tensors[f"{name}.{part}"]).dtype not in (torch.int32, torch.int64) or tensor.dim() != 1:
                broken(f"'{name}.{part}' as {tensor.dtype} {list(tensor.shape)}", "int32 or int64 with one axis")
        shapes[name] = tuple(tensors[f"{name}.shape"][:17].tolist())  # 17 are too many already
    check_sizes(shapes.items())
    return {
        name: _dense(name, shape, *(tensors[f"{name}.{part}"].long() for part in CSR[:2]))
        for name, shape in shapes.items()
    }


def _dense(name: str, shape: tuple[int, ...], crow: Tensor, col: Tensor) -> Tensor:
    """One mask from the CSR form of its view [rows, rest]."""
    n_rows, n_columns = shape[0], math.prod(shape[1:])
    counts = crow.diff()
    if len(crow) != n_rows + 1 or crow[0] != 0 or crow[-1] != len(col) or bool((counts < 0).any()):
        broken(f"'{name}' with crow_indices that do not fit", f"0 to {len(col)}, rising, {n_rows + 1} of them")
    if bool(((col < 0) | (col >= n_columns)).any()):
        broken(f"'{name}' with col_indices outside its shape", f"0 to {n_columns - 1}")
    places = torch.arange(n_rows).repeat_interleave(counts) * n_columns + col
    if bool((places.diff() <= 0).any()):
        broken(f"'{name}' with col_indices out of order or twice", "each once in its row, rising")
    mask = torch.zeros(n_rows * n_columns, dtype=torch.bool)
    mask[places] = True
    return mask.view(shape)
