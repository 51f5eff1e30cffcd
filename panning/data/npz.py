"""NumPy archives with MedMNIST's keys: train_images, train_labels, test_images, test_labels, and optionally val_*.

Images are uint8 [n, H, W] or [n, H, W, C], labels integers [n] or [n, 1] (Yang et al., Scientific Data 2023,
https://arxiv.org/abs/2110.14795). The file may come from anyone: sizes are read from the zip directory and the array
headers, and checked, before memory is asked for; nothing is unpickled.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from panning.data.splits import InMemorySplit, Parts
from panning.foundation.errors import DataError

#: An archive that claims to unpack to more is refused.
MAX_NPZ_BYTES = 4 * 2**30
#: Deflate makes at most 1032 bytes of one; an archive that claims more lies.
MAX_EXPANSION = 1100
#: More "channels" than this are most likely a width: the layout is [n, H, W, C].
MAX_CHANNELS = 4

#: What zipfile and the decompressors raise on a damaged or hostile archive, BadZipFile apart.
_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError, struct.error)

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    shape: tuple[int, ...]


def read_npz(path: Path) -> Parts:
    """Read the train (and validation) part of an archive; the test part's headers are checked, its data left for later.

    Raises:
        DataError: naming the file, the key, what was found and what is allowed.
    """
    with _opened(path) as archive:
        parts = ["train", "test"]
        if any(f"val_{kind}.npy" in archive.namelist() for kind in ("images", "labels")):
            parts.append("val")
        shapes = {part: _check_part(archive, path, part) for part in parts}
        for part, shape in shapes.items():
            if shape != shapes["train"]:
                raise DataError(f"{path}: {part}_images are {shape}, but train_images {shapes['train']} per image.")
        train = _load(archive, path, "train")
        validation = _load(archive, path, "val") if "val" in parts else None
    return Parts(train, validation, partial(_read_part, path, "test"))


def _read_part(path: Path, part: str) -> InMemorySplit:
    with _opened(path) as archive:
        _check_part(archive, path, part)
        return _load(archive, path, part)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, once its directory is checked; what breaks while it is read becomes a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if len(set(archive.namelist())) != len(archive.namelist()):
                raise DataError(f"{path} holds two arrays of one name.")
            n_bytes = sum(entry.file_size for entry in archive.infolist())
            allowed = min(MAX_NPZ_BYTES, MAX_EXPANSION * path.stat().st_size)
            if n_bytes > allowed:
                raise DataError(f"{path} unpacks to {n_bytes} bytes; at most {allowed} are allowed.")
            yield archive
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a complete .npz (zip) archive: {error}. Write it with numpy.savez.") from None
    except MemoryError:
        raise DataError(f"{path} unpacks to more than the memory of this machine.") from None
    except _DAMAGE as error:
        raise DataError(f"{path} is truncated or damaged, or cannot be read: {error}") from None


def _check_part(archive: zipfile.ZipFile, path: Path, part: str) -> tuple[int, ...]:
    """Check both headers of a part; the shape (H, W) or (H, W, C) of one image."""
    images, labels = (_header(archive, path, f"{part}_{kind}") for kind in ("images", "labels"))
    if images.dtype != np.uint8 or len(images.shape) not in (3, 4):
        raise DataError(
            f"{path}: {part}_images is {images.dtype} {list(images.shape)}; allowed is uint8 [n, H, W] or [n, H, W, C]."
        )
    if len(images.shape) == 4 and images.shape[3] > MAX_CHANNELS:
        raise DataError(
            f"{path}: {part}_images {list(images.shape)} has {images.shape[3]} channels, at most {MAX_CHANNELS} are "
            "allowed; the channels come last: [n, H, W, C]."
        )
    if labels.dtype.kind not in "iu" or not (len(labels.shape) == 1 or labels.shape[1:] == (1,)):
        raise DataError(
            f"{path}: {part}_labels is {labels.dtype} {list(labels.shape)}; allowed is an integer array [n] or [n, 1]."
        )
    if images.shape[0] != labels.shape[0]:
        raise DataError(f"{path}: {part}_images has {images.shape[0]} entries, but {part}_labels {labels.shape[0]}.")
    return images.shape[1:]


def _header(archive: zipfile.ZipFile, path: Path, key: str) -> _Header:
    """Type and shape of an array, checked against the size that the zip directory gives; no data are read."""
    member = f"{key}.npy"
    if member not in archive.namelist():
        found = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist())[:20]) or "nothing"
        raise DataError(
            f"{path} has no array '{key}'; found: {found}. Needed: train_images, train_labels, test_images, "
            "test_labels; optional: val_images and val_labels together."
        )
    with archive.open(member) as stream:
        try:
            version = npy.read_magic(stream)
            if version not in _READ_HEADER:
                raise ValueError(f"array format {version} is not known")
            shape, _, dtype = _READ_HEADER[version](stream)
        except Exception as error:  # NumPy parses the header as Python and raises whatever that led to
            raise DataError(f"{path}: '{key}' is not a NumPy array: {error}") from None
        n_bytes = archive.getinfo(member).file_size - stream.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: '{key}' holds pickled Python objects, which are never read; store plain numbers.")
    if any(size < 1 for size in shape) or math.prod(shape) * dtype.itemsize != n_bytes:
        raise DataError(
            f"{path}: '{key}' claims {dtype} {list(shape)}, {math.prod(shape) * dtype.itemsize} bytes, but {n_bytes} "
            "bytes are stored; sizes must be at least 1 and agree."
        )
    return _Header(dtype, shape)


def _load(archive: zipfile.ZipFile, path: Path, part: str) -> InMemorySplit:
    """Read a part whose headers are checked."""
    arrays = []
    for key in (f"{part}_images", f"{part}_labels"):
        with archive.open(f"{key}.npy") as stream:
            try:
                arrays.append(npy.read_array(stream, allow_pickle=False))
            except ValueError as error:
                raise DataError(f"{path}: '{key}' cannot be read: {error}") from None
    images, labels = arrays
    if labels.max() > np.iinfo(np.int64).max:  # would wrap around to a negative label
        raise DataError(f"{path}: {part}_labels holds {labels.max()}; labels must be 0..n_classes - 1.")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return InMemorySplit(
        torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.reshape(-1).astype(np.int64))
    )
