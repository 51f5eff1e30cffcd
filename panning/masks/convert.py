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

``read_any`` reads all of these, the ``state_dict`` of a ``torch.nn.utils.prune`` model, and an .npz of arrays; entries are 0
and 1 in any bool, integer or float type. The content of a file says what it is, not its suffix. A file may come from anyone:
torch's files are loaded with ``weights_only=True``, sizes are checked before memory is asked for, and nothing is run. Names
keep the file's order; a prefix of wrappers (``module.``, ``_orig_mod.``) that all names begin with is left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.foundation.files import write_atomic
from panning.foundation.registry import lookup
from panning.foundation.tensorfile import check_header
from panning.masks import checks
from panning.masks.archives import read_torch, read_zip
from panning.masks.checks import Broken, broken, check_sizes, masks_of, short
from panning.masks.csr import csr_arrays, from_csr, is_csr, safetensors_bytes
from panning.masks.file import dump_masks, load_masks
from panning.masks.masks import Masks


@dataclass(frozen=True)
class Format:
    """A row of ``FORMATS``.

    Attributes:
        dump: the bytes of a file.
        suffixes: what ``format_of`` takes for this format.
    """

    dump: Callable[[Masks], bytes]
    suffixes: tuple[str, ...] = ()


def read_any(path: str | Path) -> Masks:
    """Masks from a file of any format of this module.

    Raises:
        MaskError: with the file, what was found in it and what is expected.
    """
    path = Path(path)
    try:
        if not path.is_file():
            broken("a folder, pipe or device" if path.exists() else "no such file", "a regular file")
        if (n_bytes := path.stat().st_size) > checks.MAX_FILE_BYTES:
            broken(f"{n_bytes} bytes", f"at most {checks.MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            start = file.read(9)
        # First, since the header's length may begin like the others' marks.
        safetensors = start.endswith(b"{") and 8 + int.from_bytes(start[:8], "little") <= n_bytes
        if not safetensors and start.startswith(b"PK"):
            return read_zip(path)
        if not safetensors and start.startswith(b"\x80"):  # a pickle; torch.save wrote such files up to 1.5
            return masks_of(read_torch(path))
        return _read_safetensors(path)
    except Broken as error:
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
        check_sizes(zip(masks.layout.names, masks.layout.shapes, strict=True))
    except Broken as error:
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


def _torch_bytes(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _read_safetensors(path: Path) -> Masks:
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "panning" not in metadata:
                tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
                return masks_of(from_csr(tensors) if is_csr(tensors) else tensors)
    except (SafetensorError, ValueError) as error:
        broken(f"a file that is neither a zip archive, a pickle nor safetensors ({short(error)}); is it cut?")
    return load_masks(path)  # whose errors name the file


#: The formats that ``write_as`` makes. Each suffix stands for one format.
FORMATS: dict[str, Format] = {
    "panning": Format(dump_masks, (".safetensors",)),
    "panning-bytes": Format(lambda masks: dump_masks(masks, packed=False)),
    "safetensors": Format(lambda masks: safetensors_bytes({name: mask.numpy() for name, mask in masks.items()})),
    "csr": Format(lambda masks: safetensors_bytes(csr_arrays(masks)), (".csr.safetensors",)),
    # Clones: a view would take the storage of all masks into the file, once.
    "pth": Format(lambda masks: _torch_bytes({name: mask.clone() for name, mask in masks.items()}), (".pth", ".pt")),
    "openlth": Format(lambda masks: _torch_bytes({name: mask.int() for name, mask in masks.items()})),
    "prune": Format(lambda masks: _torch_bytes({f"{name}_mask": mask.float() for name, mask in masks.items()})),
}
