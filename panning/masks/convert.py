"""Masks in the formats of others: what ``read_any`` takes and ``write_as`` makes.

    format          keys                          tensors                                   for
    panning         ``panning.masks.file``          one bit per weight, with the manifest     keeping
    panning-bytes   ``panning.masks.file``          bool, with the manifest                   any safetensors reader
    safetensors     NAME                          bool                                      any safetensors reader
    csr             NAME.crow_indices,            [rows + 1] and [kept], int32, of NAME     very sparse masks
                    NAME.col_indices, NAME.shape  as [rows, rest]; shape too is int32
    pth             NAME                          bool                                      torch.load
    openlth         NAME                          int32, as OpenLTH writes ``mask.pth``     OpenLTH
    prune           NAME_mask                     float32                                   torch.nn.utils.prune models

Read are all of these, the ``state_dict`` of a ``torch.nn.utils.prune`` model, and an .npz of arrays; entries are 0 and 1 in
any bool, integer or float type. What a file is, its content says and not its suffix. It may come from anyone: torch's files
are loaded with ``weights_only=True``, sizes are checked before memory is asked for, and nothing is run. Names are kept in
the file's order.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.foundation.files import write_atomic
from panning.foundation.registry import lookup
from panning.foundation.tensorfile import check_header
from panning.masks.file import dump_masks, load_masks
from panning.masks.masks import Masks

#: A larger file, or an archive that unpacks to more, is refused before it is read.
MAX_FILE_BYTES = 4 * 2**30
#: More weights than this are refused: a few bytes can stand for any number of them, in CSR or in an expanded tensor.
MAX_WEIGHTS = 2**30

READABLE = (
    "a mask file of panning, a torch file with a dict of 0/1 tensors or the state_dict of a torch.nn.utils.prune model, "
    "a safetensors file of 0/1 or CSR tensors, or an .npz of 0/1 arrays"
)
CSR = ("crow_indices", "col_indices", "shape")

#: What the pickle of a dict of tensors may name. torch's own list for ``weights_only`` is longer: it has bytearray and
#: empty tensors, which a few bytes make as large as they like.
GLOBALS = re.compile(
    r"collections OrderedDict|torch (Size|[A-Za-z0-9]+Storage|[a-z0-9_]+)|torch\.storage (Untyped|Typed)Storage"
    r"|torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
)

_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Format:
    """A row of ``FORMATS``.

    Attributes:
        dump: the bytes of a file.
        suffixes: what ``format_of`` takes for this format.
    """

    dump: Callable[[Masks], bytes]
    suffixes: tuple[str, ...] = ()


class _Broken(Exception):
    """What was found and what is expected; ``read_any`` adds the file."""


def _broken(found: str, expected: str = READABLE) -> NoReturn:
    raise _Broken(f"  found: {found}\n  expected: {expected}")


def read_any(path: str | Path) -> Masks:
    """Masks from a file of any format of this module.

    Raises:
        MaskError: with the file, what was found in it and what is expected.
    """
    path = Path(path)
    try:
        if not path.is_file():
            _broken("a folder, pipe or device" if path.exists() else "no such file", "a regular file")
        if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            _broken(f"{n_bytes} bytes", f"at most {MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            start = file.read(9)
        # First, since the header's length may begin like the others' marks.
        safetensors = start.endswith(b"{") and 8 + int.from_bytes(start[:8], "little") <= n_bytes
        if not safetensors and start.startswith(b"PK"):
            return _read_zip(path)
        if not safetensors and start.startswith(b"\x80"):  # a pickle; torch.save wrote such files up to 1.5
            return _masks(_read_torch(path))
        return _read_safetensors(path)
    except _Broken as error:
        raise MaskError(f"{path} holds no masks that can be read.\n{error}") from None
    except OSError as error:
        raise MaskError(f"The mask file {path} cannot be read: {error.strerror or error}.") from None


def write_as(masks: Masks, path: str | Path, format: str) -> None:
    """Write masks in a format of ``FORMATS``; only panning's own formats hold the manifest.

    Raises:
        UnknownNameError: if there is no such format.
        MaskError: if the masks cannot be stored.
        OutputError: if the file cannot be written.
    """
    row = lookup(FORMATS, format, "mask format")
    try:
        _check_sizes(zip(masks.layout.names, masks.layout.shapes, strict=True))
    except _Broken as error:
        raise MaskError(f"These masks cannot be saved as {format}; nothing was written.\n{error}") from None
    write_atomic(path, row.dump(masks))


def format_of(path: str | Path) -> str:
    """The format that a file's suffix stands for.

    Raises:
        MaskError: if it stands for none.
    """
    name = Path(path).name
    found = [(len(suffix), key) for key, row in FORMATS.items() for suffix in row.suffixes if name.endswith(suffix)]
    if not found:
        known = ", ".join(f"{suffix} ({key})" for key, row in FORMATS.items() for suffix in row.suffixes)
        raise MaskError(
            f"The suffix of '{name}' stands for no mask format. Known: {known}. Or name one of: {', '.join(FORMATS)}."
        )
    return max(found)[1]


def _masks(tensors: Mapping[str, Tensor]) -> Masks:
    """Masks from named tensors that came from outside."""
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_quantized:
            _broken(f"'{_short(name)}' of {tensor.dtype}", "bool, integer or float entries that are 0 or 1")
    _check_sizes((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    try:
        return Masks.from_tensors(tensors)
    except (MaskError, RuntimeError) as error:
        _broken(_short(error))


def _check_sizes(entries: Iterable[tuple[Any, tuple[int, ...]]]) -> None:
    n_weights = 0
    for name, shape in entries:
        # Names are shown on terminals; control characters there are an attack.
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 1000 or name == "__metadata__":
            _broken(f"a tensor called {_short(name)}", "a state_dict name of printable characters")
        if not shape or len(shape) > 16 or min(shape) < 1:
            _broken(f"'{_short(name)}' of shape {_short(shape)}", "1 to 16 sizes, each at least 1")
        n_weights += math.prod(shape)
        if n_weights > MAX_WEIGHTS:
            _broken(
                f"more weights than {MAX_WEIGHTS} (up to '{_short(name)}' of shape {_short(shape)})", "at most that"
            )
    if n_weights == 0:
        _broken("no tensor", "one 0/1 tensor for each masked parameter")


# torch files and .npz


def _read_zip(path: Path) -> Masks:
    """The two kinds of zip archive, once its directory is checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if (n_bytes := sum(entry.file_size for entry in entries)) > MAX_FILE_BYTES:
                _broken(f"an archive that unpacks to {n_bytes} bytes", f"at most {MAX_FILE_BYTES}")
            if entries and all(entry.filename.endswith(".npy") for entry in entries):
                return _masks({entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries})
    except (_Broken, OSError):
        raise
    except Exception as error:  # hostile bytes can take zipfile and NumPy into any error
        _broken(f"a damaged archive ({_short(error)})", "a whole one; is it cut?")
    return _masks(_read_torch(path))


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """An array whose header agrees with its size, which is known before memory is asked for."""
    name = _short(entry.filename)
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        if version not in _NPY_HEADERS:
            _broken(f"'{name}' in array format {version}", "1.0 or 2.0, as numpy.savez writes it")
        shape, _, dtype = _NPY_HEADERS[version](stream)
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or min(shape, default=1) < 0:
            _broken(f"'{name}' of {_short(dtype)} {_short(shape)}", "bool, integer or float entries that are 0 or 1")
        if math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            _broken(f"'{name}' of {_short(shape)} in {entry.file_size} bytes", "as many bytes as its shape needs")
    with archive.open(entry) as stream:
        array = npy.read_array(stream, allow_pickle=False)
    if not np.isin(array, (0, 1)).all():
        _broken(f"'{name}' with other entries", "entries that are 0 or 1")
    return torch.from_numpy(array.astype(np.bool_))


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about protocols; what does not load is refused anyhow
            _check_globals(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _Broken:
        raise
    except (pickle.UnpicklingError, ValueError):
        # torch's own message tells the reader to load it all the same.
        _broken("a torch file that is damaged or has other objects than tensors, maybe code; nothing in it was run")
    except Exception as error:  # hostile bytes can take torch's reader into any error
        _broken(f"a torch file that cannot be loaded ({type(error).__name__}); is it cut?")
    if not isinstance(loaded, dict):
        _broken(f"a torch file with a {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            # A name that is no text is not shown: a few nested tuples can stand for gigabytes of it.
            key = _short(name) if isinstance(name, str | int) else f"a {type(name).__name__} for a name"
            _broken(f"a dict with {key}: {type(value).__name__}", f"{READABLE}; save the inner dict alone")
        if value.is_nested or value.layout != torch.strided or value.device.type != "cpu":
            _broken(f"'{_short(name)}' as {_short(value.layout)} on {value.device.type}", "plain dense tensors")
    return _pruned(loaded)


def _check_globals(path: Path) -> None:
    """Refuse what names other things than ``GLOBALS``, before any of it is loaded."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":  # asked of torch's own reader: another might see another record of that name
            pickles: BinaryIO = io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
            n_pickles = 1
        else:  # the old form: a mark, a version, the machine's sizes, the dict, the names of the storages
            pickles, n_pickles = file, 5
            file.seek(0)
        for _ in range(n_pickles):
            for opcode, argument, _ in pickletools.genops(pickles):
                # torch's reader takes no other opcode that names something.
                if opcode.name == "GLOBAL" and GLOBALS.fullmatch(str(argument)) is None:
                    _broken(f"a torch file that names {_short(argument)}, maybe code; nothing in it was run")


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


def _torch_bytes(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


# safetensors


def _read_safetensors(path: Path) -> Masks:
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "panning" not in metadata:
                tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
                return _masks(_from_csr(tensors) if _is_csr(tensors) else tensors)
    except (SafetensorError, ValueError) as error:
        _broken(f"a file that is neither a zip archive, a pickle nor safetensors ({_short(error)}); is it cut?")
    return load_masks(path)  # whose errors name the file


def _safetensors_bytes(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """As ``safetensors.save``, but in forward order; it sorts by name."""
    types = {"bool": "BOOL", "int32": "I32"}  # no two of them in one file, so that all of it is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        header[name] = {"dtype": types[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    start = json.dumps(header, separators=(",", ":")).encode()
    start += b" " * (-len(start) % 8)
    return b"".join([len(start).to_bytes(8, "little"), start, *(array.tobytes() for array in arrays.values())])


def _csr_arrays(masks: Masks) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, mask in masks.items():
        kept = mask.numpy().reshape(mask.shape[0], -1)
        crow = np.concatenate([[0], kept.sum(axis=1).cumsum()])
        parts = (crow, kept.nonzero()[1], np.array(mask.shape))
        arrays |= {f"{name}.{part}": array.astype(np.int32) for part, array in zip(CSR, parts, strict=True)}
    return arrays


def _is_csr(names: Iterable[str]) -> bool:
    return any(name.endswith(f".{CSR[0]}") for name in names)


def _from_csr(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks that CSR tensors stand for; every index is checked before it is used."""
    names = [name.removesuffix(f".{CSR[0]}") for name in tensors if name.endswith(f".{CSR[0]}")]
    if set(tensors) != {f"{name}.{part}" for name in names for part in CSR}:
        _broken(
            "CSR tensors that are not complete, or others among them", f"of each parameter NAME.{', NAME.'.join(CSR)}"
        )
    shapes = {}
    for name in names:
        for part in CSR:
            if (tensor := tensors[f"{name}.{part}"]).dtype not in (torch.int32, torch.int64) or tensor.dim() != 1:
                _broken(f"'{name}.{part}' as {tensor.dtype} {list(tensor.shape)}", "int32 or int64 with one axis")
        shapes[name] = tuple(tensors[f"{name}.shape"][:17].tolist())  # 17 are too many already
    _check_sizes(shapes.items())
    return {
        name: _dense(name, shape, *(tensors[f"{name}.{part}"].long() for part in CSR[:2]))
        for name, shape in shapes.items()
    }


def _dense(name: str, shape: tuple[int, ...], crow: Tensor, col: Tensor) -> Tensor:
    """One mask from the CSR form of its view [rows, rest]."""
    n_rows, n_columns = shape[0], math.prod(shape[1:])
    counts = crow.diff()
    if len(crow) != n_rows + 1 or crow[0] != 0 or crow[-1] != len(col) or bool((counts < 0).any()):
        _broken(f"'{name}' with crow_indices that do not fit", f"0 to {len(col)}, rising, {n_rows + 1} of them")
    if bool(((col < 0) | (col >= n_columns)).any()):
        _broken(f"'{name}' with col_indices outside its shape", f"0 to {n_columns - 1}")
    places = torch.arange(n_rows).repeat_interleave(counts) * n_columns + col
    if bool((places.diff() <= 0).any()):
        _broken(f"'{name}' with col_indices out of order or twice", "each once in its row, rising")
    mask = torch.zeros(n_rows * n_columns, dtype=torch.bool)
    mask[places] = True
    return mask.view(shape)


def _short(value: object) -> str:
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


#: What ``write_as`` makes. Each suffix stands for one format.
FORMATS: dict[str, Format] = {
    "panning": Format(dump_masks, (".safetensors",)),
    "panning-bytes": Format(lambda masks: dump_masks(masks, packed=False)),
    "safetensors": Format(lambda masks: _safetensors_bytes({name: mask.numpy() for name, mask in masks.items()})),
    "csr": Format(lambda masks: _safetensors_bytes(_csr_arrays(masks)), (".csr.safetensors",)),
    # Clones: a view would take the storage of all masks into the file, once.
    "pth": Format(lambda masks: _torch_bytes({name: mask.clone() for name, mask in masks.items()}), (".pth", ".pt")),
    "openlth": Format(lambda masks: _torch_bytes({name: mask.int() for name, mask in masks.items()})),
    "prune": Format(lambda masks: _torch_bytes({f"{name}_mask": mask.float() for name, mask in masks.items()})),
}
