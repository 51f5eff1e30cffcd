"""Masks in zip archives and pickles: torch's files and .npz. Nothing in them is run."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panning.foundation.npy import array_header, read_array
from panning.foundation.torchfile import read_torch_file
from panning.masks import checks
from panning.masks.checks import READABLE, Broken, broken, masks_of, short
from panning.masks.masks import Masks

#: What an archive may unpack to for each of its bytes. A mask at density 0.001 compresses by some 500 times where an entry
#: is 4 bytes; deflate reaches 1032.
MAX_EXPANSION = 600
MIN_ALLOWED_BYTES = 2**28


def read_zip(path: Path) -> Masks:
    """The two kinds of zip archive, once its directory is checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            allowed = min(checks.MAX_FILE_BYTES, max(MIN_ALLOWED_BYTES, MAX_EXPANSION * path.stat().st_size))
            if (n_bytes := sum(entry.file_size for entry in entries)) > allowed:
                broken(f"an archive that unpacks to {n_bytes} bytes", f"at most {allowed} of a file of its size")
            if entries and all(entry.filename.endswith(".npy") for entry in entries):
                names = [entry.filename for entry in entries]
                return masks_of({name.removesuffix(".npy"): _read_array(archive, name) for name in names})
    except (Broken, OSError):
        raise
    except Exception as error:  # hostile bytes can take zipfile and NumPy into any error
        broken(f"a damaged archive ({short(error)})", "a whole one; is it cut?")
    return masks_of(read_torch(path))


def _read_array(archive: zipfile.ZipFile, member: str) -> Tensor:
    name = short(member)
    try:
        shape, dtype = array_header(archive, member)
    except ValueError as error:
        broken(f"'{name}', which {short(error)}", "an array of numpy.savez with as many bytes as its shape needs")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        broken(f"'{name}' of {short(dtype)} {short(shape)}", "bool, integer or float entries that are 0 or 1")
    array = read_array(archive, member)
    if not np.isin(array, (0, 1)).all():
        broken(f"'{name}' with other entries", "entries that are 0 or 1")
    return torch.from_numpy(array.astype(np.bool_))


def read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = read_torch_file(path)
    except ValueError as error:
        broken(str(error))
    if not isinstance(loaded, dict):
        broken(f"a torch file with a {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            # A name that is no text is not shown: a few nested tuples can stand for gigabytes of it.
            key = short(name) if isinstance(name, str | int) else f"a {type(name).__name__} for a name"
            broken(f"a dict with {key}: {type(value).__name__}", f"{READABLE}; save the inner dict alone")
        if value.is_nested or value.layout != torch.strided or value.device.type != "cpu":
            broken(f"'{short(name)}' as {short(value.layout)} on {value.device.type}", "plain dense tensors")
    return _pruned(loaded)


def _pruned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks of a ``state_dict`` of ``torch.nn.utils.prune``, or of its masks alone; any other dict as it is."""
    masks = {name.removesuffix("_mask"): tensor for name, tensor in tensors.items() if name.endswith("_mask")}
    if len(masks) == len(tensors):
        return masks
    found: dict[str, Tensor] = {}
    owners: dict[tuple[int, ...], str] = {}
    for name, mask in masks.items():
        if (original := tensors.get(f"{name}_orig")) is None:
            continue
        # A tied parameter is listed under each of its names; its mask belongs to the first.
        memory = (original.untyped_storage().data_ptr(), original.storage_offset(), *original.shape)
        first = owners.setdefault(memory, name)
        if first == name or not torch.equal(masks[first], mask):
            found[name] = mask
    return found or tensors
