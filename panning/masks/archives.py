"""Masks in zip archives and pickles: torch's files and .npz. Nothing in them is run."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from panning.foundation.torch_private import stored_record
from panning.masks import checks
from panning.masks.checks import READABLE, Broken, broken, masks_of, short
from panning.masks.masks import Masks

#: What the pickle of a dict of tensors may name. torch's own list for ``weights_only`` is longer: it has bytearray and
#: empty tensors, which a few bytes make as large as they like.
GLOBALS = re.compile(
    r"collections OrderedDict|torch (Size|[A-Za-z0-9]+Storage|[a-z0-9_]+)|torch\.storage (Untyped|Typed)Storage"
    r"|torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
)

_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_zip(path: Path) -> Masks:
    """The two kinds of zip archive, once its directory is checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if (n_bytes := sum(entry.file_size for entry in entries)) > checks.MAX_FILE_BYTES:
                broken(f"an archive that unpacks to {n_bytes} bytes", f"at most {checks.MAX_FILE_BYTES}")
            if entries and all(entry.filename.endswith(".npy") for entry in entries):
                return masks_of({entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries})
    except (Broken, OSError):
        raise
    except Exception as error:  # hostile bytes can take zipfile and NumPy into any error
        broken(f"a damaged archive ({short(error)})", "a whole one; is it cut?")
    return masks_of(read_torch(path))


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """An array whose header agrees with its size, which is known before memory is asked for."""
    name = short(entry.filename)
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        if version not in _NPY_HEADERS:
            broken(f"'{name}' in array format {version}", "1.0 or 2.0, as numpy.savez writes it")
        shape, _, dtype = _NPY_HEADERS[version](stream)
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or min(shape, default=1) < 0:
            broken(f"'{name}' of {short(dtype)} {short(shape)}", "bool, integer or float entries that are 0 or 1")
        if math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            broken(f"'{name}' of {short(shape)} in {entry.file_size} bytes", "as many bytes as its shape needs")
    with archive.open(entry) as stream:
        array = npy.read_array(stream, allow_pickle=False)
    if not np.isin(array, (0, 1)).all():
        broken(f"'{name}' with other entries", "entries that are 0 or 1")
    return torch.from_numpy(array.astype(np.bool_))


def read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about protocols; what does not load is refused anyhow
            _check_globals(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Broken:
        raise
    except (pickle.UnpicklingError, ValueError):
        # torch's own message tells the reader to load it all the same.
        broken("a torch file that is damaged or has other objects than tensors, maybe code; nothing in it was run")
    except Exception as error:  # hostile bytes can take torch's reader into any error
        broken(f"a torch file that cannot be loaded ({type(error).__name__}); is it cut?")
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


def _check_globals(path: Path) -> None:
    """Refuse a file that names anything outside ``GLOBALS``, before any of it is loaded."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":  # asked of torch's own reader: another might see another record of that name
            pickles: BinaryIO = io.BytesIO(stored_record(path, "data.pkl"))
            n_pickles = 1
        else:  # the old form: a mark, a version, the machine's sizes, the dict, the names of the storages
            pickles, n_pickles = file, 5
            file.seek(0)
        for _ in range(n_pickles):
            for opcode, argument, _ in pickletools.genops(pickles):
                # torch's reader takes no other opcode that names something.
                if opcode.name == "GLOBAL" and GLOBALS.fullmatch(str(argument)) is None:
                    broken(f"a torch file that names {short(argument)}, maybe code; nothing in it was run")


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
