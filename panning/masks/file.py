"""The mask file, format version 1: a safetensors file with one bit (or one byte) per weight and a JSON description.

Layout of the file (safetensors: 8 bytes with the header's length, a JSON header, then the tensors without a gap)::

    fc1.weight   U8 [ceil(n / 8)]      encoding "bits": numpy.packbits order, the padding bits are 0
                 BOOL in its shape     encoding "bytes": any safetensors reader gets ready bool masks
    __metadata__ {"format": "pt", "panning": a JSON object with the fields of ``_Description``}

Keys are ``state_dict`` names in forward order. A file from outside is data and nothing else: it is read by the code
below, nothing is unpickled or imported, and nothing is allocated that the size of the file does not pay for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panning.foundation.errors import MaskError
from panning.foundation.files import named_within, read_regular, strict_json, write_atomic
from panning.foundation.records import canonical_json
from panning.foundation.tensorfile import in_order
from panning.masks.checks import Broken, broken, check_name, short
from panning.masks.layout import Layout
from panning.masks.masks import Masks
from panning.masks.packed import PackedMasks

FORMAT_VERSION = 1
#: The format's own limit is 100 MB; JSON becomes about ten times its size in memory, and 8 MiB describe 50,000 layers.
MAX_HEADER_BYTES = 8 * 2**20
#: A larger file is refused before it is read: its mask would be of more weights than any network has.
MAX_FILE_BYTES = 2**40
EXPECTED = "a safetensors file as panning.save_masks writes it"

_Size = Annotated[int, Field(ge=1, le=2**40)]


class _Description(BaseModel):
    """What the metadata key ``panning`` holds. Closed: a new field is a new format version."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format_version: int
    encoding: Literal["bits", "bytes"]
    layout: Annotated[list[tuple[str, list[_Size]]], Field(min_length=1)]
    fingerprint: str
    n_kept: int
    density: float
    sha256: str
    manifest: dict[str, Any]
    versions: dict[str, str]


def fingerprint(layout: Layout) -> str:
    """SHA-256 of names and shapes in forward order: equal for masks that fit the same network."""
    return hashlib.sha256(canonical_json(_pairs(layout)).encode()).hexdigest()


def save_masks(masks: Masks, path: str | Path, *, packed: bool = True) -> None:
    """Write masks and their manifest; the same masks and manifest give the same bytes.

    Args:
        packed: store one bit per weight. False stores one byte, which other safetensors readers take for a bool mask.

    Raises:
        MaskError: if the manifest is no JSON, or a name or shape cannot be stored.
        OutputError: if the file cannot be written.

    Examples:
        >>> import torch
        >>> import panning
        >>> masks = panning.Masks.from_tensors({"weight": torch.tensor([[1, 0], [1, 1]])})
        >>> panning.save_masks(masks, "mask.safetensors")
        >>> panning.load_masks("mask.safetensors") == masks
        True
    """
    if not isinstance(masks, Masks):
        raise MaskError(f"masks is a {type(masks).__name__}: panning.save_masks takes the masks, then the file's path.")
    data = dump_masks(masks, packed=packed)
    write_atomic(path, data)


def dump_masks(masks: Masks, *, packed: bool = True) -> bytes:
    """The bytes of a mask file; see ``save_masks``."""
    try:
        _check_layout(masks.layout)
        return _encode(masks, "bits" if packed else "bytes")
    except (Broken, ValueError, TypeError, RecursionError) as error:
        raise MaskError(f"These masks cannot be saved; nothing was written.\n{error}") from None


def parse_masks(data: bytes, source: str, *, packed: bool = False) -> Masks:
    """Masks from the bytes of a mask file, checked as in ``load_masks``. Errors call the bytes ``source``."""
    try:
        return _decode(*_parted(data), packed)
    except Broken as error:
        raise MaskError(f"{source} is not a usable mask file.\n{error}") from None


def load_masks(path: str | Path, *, packed: bool = False) -> Masks:
    """Read a mask file that ``save_masks`` wrote. The file may come from anyone: all of it is checked.

    Args:
        packed: keep one bit a weight in memory (``panning.masks.packed.PackedMasks``), for networks of billions of weights.

    Raises:
        MaskError: with the file, what was found in it and what is expected.

    Examples:
        >>> import torch
        >>> import panning
        >>> masks = panning.Masks.from_tensors({"weight": torch.tensor([1, 0])}, {"method": "mine"})
        >>> panning.save_masks(masks, "mask.safetensors")
        >>> panning.load_masks("mask.safetensors").manifest["method"]
        'mine'
    """
    try:
        return parse_masks(read_regular(path, MAX_FILE_BYTES), str(path), packed=packed)
    except OSError as error:
        meant = named_within(path, "mask.safetensors", "choice-*.safetensors", "masks/*.safetensors")
        raise MaskError(f"The mask file {path} cannot be read: {error.strerror or error}.{meant}") from None


def _encode(masks: Masks, encoding: Literal["bits", "bytes"]) -> bytes:
    bits = [part.tobytes() for part in masks.packed_layers()]
    blobs = bits if encoding == "bits" else [masks[name].cpu().numpy().tobytes() for name in masks]
    description = {
        "format_version": FORMAT_VERSION,
        "encoding": encoding,
        "layout": _pairs(masks.layout),
        "fingerprint": fingerprint(masks.layout),
        "n_kept": masks.n_kept,
        "density": masks.density,
        "sha256": hashlib.sha256(b"".join(bits)).hexdigest(),
        "manifest": masks.manifest,
        "versions": _versions(),
    }
    text = canonical_json(description)
    _description(text)  # what could not be read again is not written
    entries = {
        name: ("U8", [len(blob)], blob) if encoding == "bits" else ("BOOL", shape, blob)
        for (name, shape), blob in zip(_pairs(masks.layout), blobs, strict=True)
    }
    file = in_order(entries, {"format": "pt", "panning": text})
    if (length := int.from_bytes(file[:8], "little")) > MAX_HEADER_BYTES:
        broken(f"{length} bytes of names, shapes and manifest", f"at most {MAX_HEADER_BYTES}; shorten the manifest")
    return file


def _parted(file: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of the tensors."""
    length = int.from_bytes(file[:8], "little")
    if len(file) < 10 or length < 2 or 8 + length > len(file):
        if file.startswith((b"PK", b"\x80")):
            broken("a pickle or archive as torch.save makes; not opened, it may hold code", EXPECTED)
        broken(f"{len(file)} bytes, the first of which announce a header of {length}", f"{EXPECTED}; is it cut?")
    if length > MAX_HEADER_BYTES:
        broken(f"a header of {length} bytes", f"at most {MAX_HEADER_BYTES}")
    return _json_object(file[8 : 8 + length], "header"), file[8 + length :]


def _decode(header: dict[str, Any], data: bytes, packed: bool) -> Masks:
    """Masks from a parsed header and the bytes behind it; everything in both is checked against the other."""
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("panning"), str):
        broken("a safetensors file without the metadata 'panning'", EXPECTED)
    description = _description(metadata["panning"])
    layout = Layout(
        tuple(name for name, _ in description.layout), tuple(tuple(shape) for _, shape in description.layout)
    )
    _check_layout(layout)
    _equal("fingerprint", description.fingerprint, fingerprint(layout))
    spans = _spans(header, layout, description.encoding, len(data))
    decode = _unpack if description.encoding == "bits" else _binary
    parts: list[Any] = []
    digest = hashlib.sha256()
    for (begin, end), n, name in zip(spans, layout.sizes, layout.names, strict=True):
        part = decode(data[begin:end], n, name)
        bits = np.packbits(part)
        digest.update(bits.tobytes())
        parts.append(bits if packed else part)
    _equal("sha256", description.sha256, digest.hexdigest())
    if packed:
        masks: Masks = PackedMasks(layout, parts, description.manifest)
    else:
        masks = Masks(layout, torch.from_numpy(np.concatenate(parts)), description.manifest)
    _equal("n_kept", description.n_kept, masks.n_kept)
    _equal("density", description.density, masks.density)
    return masks


def _description(text: str) -> _Description:
    values = _json_object(text.encode(errors="surrogatepass"), "description")
    version = values.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        broken(f"format version {version}", f"at most {FORMAT_VERSION}; a newer panning wrote it: upgrade panning")
    if type(version) is not int or version != FORMAT_VERSION:
        broken(f"format version {short(repr(version))}", str(FORMAT_VERSION))
    try:
        # As JSON, since strict mode takes a JSON list for a tuple and a Python list for an error.
        return _Description.model_validate_json(text)
    except ValidationError as error:
        first, n_more = error.errors(include_url=False)[0], error.error_count() - 1
        where = ".".join(map(str, first["loc"])) or "description"
        more = f" ({n_more} more)" if n_more else ""
        broken(f"in its description, {short(where)} = {short(first['input'])}", f"{first['msg']}{more}")


def _check_layout(layout: Layout) -> None:
    for name in layout.names:
        check_name(name)
    if len(set(layout.names)) != len(layout.names):
        broken("a layer that is listed twice", "each name once")
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) > 16 or any(not 1 <= size <= 2**40 for size in shape):
            broken(f"'{name}' of shape {short(shape)}", "at most 16 sizes, each from 1 to 2**40")


def _spans(header: dict[str, Any], layout: Layout, encoding: str, n_bytes: int) -> list[tuple[int, int]]:
    """The byte range of each parameter. All together tile the data: no gap, no overlap, nothing behind."""
    missing, unexpected = set(layout.names) - set(header), set(header) - set(layout.names)
    if missing or unexpected:
        broken(
            f"no tensor for {short(sorted(missing))}, tensors without a layer {short(sorted(unexpected))}",
            "one tensor for each layer of its description",
        )
    spans = []
    for name, shape, n in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        n_stored, stored = (-(-n // 8), [-(-n // 8)]) if encoding == "bits" else (n, list(shape))
        entry = header[name]
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int or o < 0 for o in offsets):
            broken(f"'{name}' at {short(entry)}", "dtype, shape and two data_offsets")
        allowed = ("U8",) if encoding == "bits" else ("BOOL", "U8")
        if entry.get("dtype") not in allowed or entry.get("shape") != stored or offsets[1] - offsets[0] != n_stored:
            broken(f"'{name}' as {short(entry)}", f"{' or '.join(allowed)} of shape {stored}, {n_stored} bytes")
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            broken(f"a tensor at byte {begin} of the data", f"byte {end}: tensors without gap or overlap")
        end = stop
    if end != n_bytes:
        broken(f"{n_bytes} bytes of data", f"{end} bytes; is the file cut or lengthened?")
    return spans


def _unpack(blob: bytes, n: int, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    bits = np.unpackbits(np.frombuffer(blob, dtype=np.uint8))
    if bits[n:].any():
        broken(f"'{name}' with bits behind its {n} weights", "padding bits that are 0")
    return bits[:n].view(np.bool_)


def _binary(blob: bytes, n: int, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    values = np.frombuffer(blob, dtype=np.uint8)
    if (values > 1).any():
        broken(f"'{name}' with the entry {int(values.max())}", "entries that are 0 or 1")
    return values.view(np.bool_)


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    try:
        values = strict_json(text.decode())
    except ValueError as error:
        broken(f"a {what} that is not JSON ({short(str(error))})", EXPECTED)
    if not isinstance(values, dict):
        broken(f"a {what} that is a {type(values).__name__}", "a JSON object")
    return values


def _equal(what: str, found: object, expected: object) -> None:
    if found != expected:
        broken(f"{what} {short(found)}", f"{short(expected)}, as its content gives; the file was changed or damaged")


def _pairs(layout: Layout) -> list[list[Any]]:
    return [[name, list(shape)] for name, shape in zip(layout.names, layout.shapes, strict=True)]


def _versions() -> dict[str, str]:
    """What wrote the file: no time, no host, no commit, or equal masks would be unequal files."""
    try:
        return {"panning": importlib.metadata.version("panning"), "torch": torch.__version__}
    except importlib.metadata.PackageNotFoundError:
        return {"torch": torch.__version__}  # a checkout on the path that is not installed
