"""NumPy archives with MedMNIST's keys: train_images, train_labels, test_images, test_labels, and optionally val_*.

Images are uint8 [n, H, W] or [n, H, W, C], labels integers [n] or [n, 1] (Yang et al., Scientific Data 2023,
https://arxiv.org/abs/2110.14795). The file may come from anyone: sizes are read from the zip directory and the array
headers, and checked, before memory is asked for; nothing is unpickled.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panning.data.splits import InMemorySplit, Parts
from panning.foundation.errors import DataError
from panning.foundation.npy import array_header, read_array

#: An archive that claims to unpack to more is refused.
MAX_NPZ_BYTES = 4 * 2**30
#: What an archive may unpack to for each of its bytes, since memory is asked for by what it claims: images compress by 2 to
#: 30 times, zeros by 1032. Small ones may be of one colour.
MAX_EXPANSION = 100
MIN_ALLOWED_BYTES = 2**26
#: More "channels" than this are most likely a width: the layout is [n, H, W, C].
MAX_CHANNELS = 4

#: What zipfile and the decompressors raise on a damaged or hostile archive, BadZipFile apart.
_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError, struct.error)


def check_npz(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of the images of each part of an archive, by its directory and headers alone; no data are read.

    Raises:
        DataError: as ``read_npz``, but for what is wrong with the data themselves.
    """
    with _opened(path) as archive:
        return _checked(archive, path)


def read_npz(path: Path) -> Parts:
    """Read the train (and validation) part of an archive; the test part's headers are checked, its data left for later.

    Raises:
        DataError: naming the file, the key, what was found and what is allowed.
    """
    with _opened(path) as archive:
        parts = _checked(archive, path)
        train = _load(archive, path, "train")
        validation = _load(archive, path, "val") if "val" in parts else None
    return Parts(train, validation, partial(_read_part, path, "test"))


def _checked(archive: zipfile.ZipFile, path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of the images of each part; all of one size."""
    parts = ["train", "test"]
    if any(f"val_{kind}.npy" in archive.namelist() for kind in ("images", "labels")):
        parts.append("val")
    shapes = {part: _check_part(archive, path, part) for part in parts}
    for part, shape in shapes.items():
        if shape[1:] != shapes["train"][1:]:
            raise DataError(f"{path}: {part}_images are {shape[1:]}, but train_images {shapes['train'][1:]} per image.")
    return shapes


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
            allowed = min(MAX_NPZ_BYTES, max(MIN_ALLOWED_BYTES, MAX_EXPANSION * path.stat().st_size))
            if n_bytes > allowed:
                raise DataError(
                    f"{path} unpacks to {n_bytes} bytes; at most {allowed} are allowed for a file of its size. Images that "
                    "compress so well are written with numpy.savez, uncompressed."
                )
            yield archive
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a complete .npz (zip) archive: {error}. Write it with numpy.savez.") from None
    except MemoryError:
        raise DataError(f"{path} unpacks to more than the memory of this machine.") from None
    except _DAMAGE as error:
        raise DataError(f"{path} is truncated or damaged, or cannot be read: {error}") from None


def _check_part(archive: zipfile.ZipFile, path: Path, part: str) -> tuple[int, ...]:
    """Check both headers of a part; the shape [n, H, W] or [n, H, W, C] of its images."""
    (images, kind), (labels, label_kind) = (_header(archive, path, f"{part}_{what}") for what in ("images", "labels"))
    if kind != np.uint8 or len(images) not in (3, 4):
        raise DataError(f"{path}: {part}_images is {kind} {list(images)}; allowed is uint8 [n, H, W] or [n, H, W, C].")
    if len(images) == 4 and images[3] > MAX_CHANNELS:
        raise DataError(
            f"{path}: {part}_images {list(images)} has {images[3]} channels, at most {MAX_CHANNELS} are allowed; the "
            "channels come last: [n, H, W, C]."
        )
    if label_kind.kind not in "iu" or not (len(labels) == 1 or labels[1:] == (1,)):
        raise DataError(
            f"{path}: {part}_labels is {label_kind} {list(labels)}; allowed is an integer array [n] or [n, 1]."
        )
    if images[0] != labels[0]:
        raise DataError(f"{path}: {part}_images has {images[0]} entries, but {part}_labels {labels[0]}.")
    return images


def _header(archive: zipfile.ZipFile, path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, checked against the size that the zip directory gives; no data are read."""
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist())[:20]) or "nothing"
        raise DataError(
            f"{path} has no array '{key}'; found: {found}. Needed: train_images, train_labels, test_images, "
            "test_labels; optional: val_images and val_labels together."
        )
    try:
        return array_header(archive, f"{key}.npy")
    except ValueError as error:
        raise DataError(f"{path}: '{key}' {error}.") from None


def _load(archive: zipfile.ZipFile, path: Path, part: str) -> InMemorySplit:
    """Read a part whose headers are checked."""
    arrays = []
    for key in (f"{part}_images", f"{part}_labels"):
        try:
            arrays.append(read_array(archive, f"{key}.npy"))
        except ValueError as error:
            raise DataError(f"{path}: '{key}' cannot be read: {error}") from None
    images, labels = arrays
    if labels.max() > np.iinfo(np.int64).max:  # would wrap around to a negative label
        raise DataError(f"{path}: {part}_labels holds {labels.max()}; labels must be 0..n_classes - 1.")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return InMemorySplit(
        torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.reshape(-1).astype(np.int64))
    )
