"""Arrays in .npz archives from outside: their headers are checked before memory is asked for, and nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def array_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, which agree with the size that the archive's directory gives; no data are read.

    Raises:
        ValueError: with what the array is or does, for a sentence that names it.
    """
    with archive.open(member) as stream:
        try:
            version = npy.read_magic(stream)
            if version not in _READ_HEADER:
                raise ValueError(f"array format {version} is not known")
            shape, _, dtype = _READ_HEADER[version](stream)
        except Exception as error:  # NumPy parses the header as Python and raises whatever that led to
            raise ValueError(f"is not a NumPy array: {error}") from None
        n_bytes = archive.getinfo(member).file_size - stream.tell()
    if dtype.hasobject:
        raise ValueError("holds pickled Python objects, which are never read; store plain numbers")
    if any(size < 1 for size in shape) or math.prod(shape) * dtype.itemsize != n_bytes:
        raise ValueError(
            f"claims {dtype} {list(shape)}, {math.prod(shape) * dtype.itemsize} bytes, but {n_bytes} bytes are stored; "
            "sizes must be at least 1 and agree"
        )
    return shape, dtype


def read_array(archive: zipfile.ZipFile, member: str) -> np.ndarray[Any, Any]:
    """An array whose header was checked; raises ValueError if its data are damaged."""
    with archive.open(member) as stream:
        array: np.ndarray[Any, Any] = npy.read_array(stream, allow_pickle=False)
        return array
