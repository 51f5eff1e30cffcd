"""Safetensors files from outside, read with bounds and without surprises."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from panning.foundation.files import strict_json

#: As of a mask file: JSON becomes about ten times its size in memory.
MAX_HEADER_BYTES = 8 * 2**20
#: What safetensors, JSON and ``load_state_dict`` raise on a broken file.
DAMAGE = (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)


def read_tensors(path: Path, key: str | None) -> tuple[Any, dict[str, Tensor]]:
    """The JSON in the metadata ``key`` of a safetensors file, None without a key, and its tensors.

    Raises:
        one of ``DAMAGE``.
    """
    check_header(path)
    with safe_open(path, "pt") as file:
        values = None if key is None else strict_json((file.metadata() or {})[key])
        return values, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def packed(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file; tied tensors are written under each of their names."""
    return save({name: _copied(tensor.detach()) for name, tensor in tensors.items()}, metadata)


def in_order(entries: Mapping[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file of (dtype, shape, bytes) by name.

    Unlike ``safetensors.save``, which sorts by dtype and name and orders the metadata by a hash that differs from call to
    call, this keeps the order of both, so that equal content gives equal bytes in every process.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, (dtype, shape, blob) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + len(blob)]}
        begin += len(blob)
    start = json.dumps(header, separators=(",", ":")).encode()
    start += b" " * (-len(start) % 8)  # readers that map the file want aligned tensors
    return b"".join([len(start).to_bytes(8, "little"), start, *(blob for _, _, blob in entries.values())])


def _copied(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor)


def check_header(path: Path) -> None:
    """What safetensors itself lets pass: a pipe, a header that fills the memory, the last of two equal names.

    Raises:
        OSError, ValueError: with what is wrong.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")  # opening a named pipe would wait for a writer
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header of {length} bytes has more than {MAX_HEADER_BYTES}")
        strict_json(raw.read(length))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The content of a tensor, in the order of its entries, for hashes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
