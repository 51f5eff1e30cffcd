"""Mask files: the round trip, equal bytes for equal masks, and what a file from outside can do: be refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from panning.foundation.errors import MaskError, OutputError
from panning.masks.file import MAX_HEADER_BYTES, fingerprint, load_masks, save_masks
from panning.masks.layout import Layout
from panning.masks.masks import Masks

LAYOUT = Layout(("a.weight", "b.weight"), ((3, 5), (2, 2, 3)))
#: Every third weight; 15 + 12 weights leave 1 and 4 padding bits.
MASKS = Masks(LAYOUT, torch.arange(27) % 3 == 0, {"method": "snip", "seed": 3, "input_shape": [1, 28, 28]})


class Parts:
    """A mask file taken apart, to be put together wrongly."""

    def __init__(self, file: Path, packed: bool = True) -> None:
        save_masks(MASKS, file, packed=packed)
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        self.header: Any = json.loads(raw[8 : 8 + length])
        self.about: Any = json.loads(self.header["__metadata__"]["panning"])
        self.data = raw[8 + length :]

    def sign(self) -> None:
        """Make fingerprint and checksum right for what is described, so that another check has to see what is wrong."""
        self.about["fingerprint"] = hashlib.sha256(
            json.dumps(self.about["layout"], separators=(",", ":")).encode()
        ).hexdigest()
        self.about["sha256"] = hashlib.sha256(self.data).hexdigest()

    def join(self) -> bytes:
        if isinstance(self.header, dict) and isinstance(self.header.get("__metadata__"), dict):
            text = self.about if isinstance(self.about, str) else json.dumps(self.about)
            if "panning" in self.header["__metadata__"]:
                self.header["__metadata__"]["panning"] = text
        return frame(json.dumps(self.header).encode(), self.data)


def frame(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def about(**changes: Any) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        parts.about.update(changes)
        return parts.join()

    return change


def layout(*pairs: Any) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        parts.about["layout"] = list(pairs)
        parts.sign()
        return parts.join()

    return change


def tensor(name: str, **changes: Any) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        parts.header[name].update(changes)
        return parts.join()

    return change


def edit(change: Callable[[Parts], object]) -> Callable[[Parts], bytes]:
    def changed(parts: Parts) -> bytes:
        change(parts)
        return parts.join()

    return changed


def with_data(data: bytes) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        parts.data = data
        parts.sign()
        return parts.join()

    return change


def with_names(first: str, second: str) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        parts.header = {
            "__metadata__": parts.header["__metadata__"],
            first: parts.header["a.weight"],
            second: parts.header["b.weight"],
        }
        parts.about["layout"] = [[first, [3, 5]], [second, [2, 2, 3]]]
        parts.sign()
        return parts.join()

    return change


A, B = ["a.weight", [3, 5]], ["b.weight", [2, 2, 3]]
OTHER_BIT = (MASKS.flat[:15].logical_not(), MASKS.flat[15:])
SWAPPED = b"".join(np.packbits(part.numpy()).tobytes() for part in OTHER_BIT)

#: What is in the file, and what its message must say.
BROKEN: dict[str, tuple[Callable[[Parts], bytes], str]] = {
    "empty": (lambda p: b"", "0 bytes"),
    "seven bytes": (lambda p: b"\x10\0\0\0\0\0\0", "7 bytes"),
    "header length alone": (lambda p: p.join()[:8], "is it cut"),
    "cut in the header": (lambda p: p.join()[:100], "is it cut"),
    "cut in the data": (lambda p: p.join()[:-1], "3 bytes of data"),
    "bytes behind": (lambda p: p.join() + b"\0", "5 bytes of data"),
    "header of 0 bytes": (lambda p: bytes(8) + p.data, "header of 0"),
    "header of 2**64 - 1 bytes": (lambda p: b"\xff" * 8 + p.join()[8:], "header of 18446744073709551615"),
    "header of 2**63 bytes": (lambda p: (2**63).to_bytes(8, "little") + p.join()[8:], "header of 9223372036854775808"),
    "header over the cap": (lambda p: frame(b" " * (MAX_HEADER_BYTES + 8)), "at most 8388608"),
    "text": (lambda p: b"mask: a.weight\n" * 20, "announce a header"),
    "zip archive": (lambda p: b"PK\x03\x04\x14\0\x08\x08" + bytes(200), "pickle or archive"),
    "pickle": (lambda p: pickle.dumps({"a.weight": list(range(99))}), "pickle or archive"),
    "header not UTF-8": (lambda p: frame(b"\xff\xfe{}"), "not JSON"),
    "header not JSON": (lambda p: frame(b"{'a': 1}"), "not JSON"),
    "header a list": (lambda p: frame(b"[1, 2]"), "header that is a list"),
    "header nested deeply": (lambda p: frame(b"[" * 100_000), "not JSON"),
    "header with a huge integer": (lambda p: frame(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "header with one key twice": (lambda p: frame(b'{"a": 1, "a": 2}'), "a key stands twice"),
    "no metadata": (edit(lambda p: p.header.pop("__metadata__")), "without the metadata 'panning'"),
    "metadata not an object": (edit(lambda p: p.header.update(__metadata__="x")), "without the metadata 'panning'"),
    "metadata of another tool": (edit(lambda p: p.header.update(__metadata__={"format": "pt"})), "without the"),
    "description not JSON": (edit(lambda p: setattr(p, "about", "import os")), "description that is not JSON"),
    "description a list": (edit(lambda p: setattr(p, "about", "[]")), "description that is a list"),
    "description with a lone surrogate": (edit(lambda p: setattr(p, "about", '{"\ud800": 1}')), "not JSON"),
    "newer version": (about(format_version=2), "upgrade panning"),
    "older version": (about(format_version=0), "format version 0"),
    "version as text": (about(format_version="1"), "format version '1'"),
    "version true": (about(format_version=True), "format version True"),
    "no version": (edit(lambda p: p.about.pop("format_version")), "format version None"),
    "unknown encoding": (about(encoding="zlib"), "encoding"),
    "unknown field": (about(loader="os.system"), "loader"),
    "manifest not an object": (about(manifest=[1]), "manifest"),
    "n_kept as text": (about(n_kept="9"), "n_kept"),
    "density not finite": (about(density=float("nan")), "NaN is no number"),
    "layout empty": (layout(), "layout"),
    "layout without shapes": (layout("a.weight", "b.weight"), "layout"),
    "negative size": (layout(["a.weight", [-3, -5]], B), "layout"),
    "size 0": (layout(["a.weight", [0, 5]], B), "layout"),
    "size 2**62": (layout(["a.weight", [2**62, 4]], B), "layout"),
    "size as float": (layout(["a.weight", [3.0, 5]], B), "layout"),
    "size true": (layout(["a.weight", [True, 15]], B), "layout"),
    "sizes that multiply to 2**80": (layout(["a.weight", [2**40, 2**40]], B), "expected: U8 of shape"),
    "seventeen sizes": (layout(["a.weight", [1] * 16 + [15]], B), "at most 16 sizes"),
    "more weights than bits": (layout(["a.weight", [17]], B), "expected: U8 of shape"),
    "fewer weights than bits": (layout(["a.weight", [8]], B), "expected: U8 of shape"),
    "name listed twice": (layout(A, B, A), "listed twice"),
    "layer without a tensor": (layout(A, B, ["c", [1]]), "no tensor for ['c']"),
    "tensor without a layer": (layout(A), "without a layer ['b.weight']"),
    "name with an escape sequence": (with_names("a\x1b[2J", "b"), "printable characters"),
    "name empty": (with_names("", "b"), "printable characters"),
    "name too long": (with_names("a" * 1001, "b"), "printable characters"),
    "fingerprint wrong": (about(fingerprint="0" * 64), "fingerprint"),
    "layers in another order": (about(layout=[B, A]), "fingerprint"),
    "checksum wrong": (about(sha256="0" * 64), "sha256"),
    "weights flipped": (edit(lambda p: setattr(p, "data", SWAPPED)), "sha256"),
    "weights flipped, checksum too": (with_data(SWAPPED), "n_kept 9"),
    "density wrong": (about(density=0.5), "density 0.5"),
    "padding bit set": (with_data(bytes([146, 73, 36, 146 | 1])), "padding bits"),
    "dtype float": (tensor("a.weight", dtype="F16"), "expected: U8"),
    "dtype bool for bits": (tensor("a.weight", dtype="BOOL"), "expected: U8"),
    "dtype a list": (tensor("a.weight", dtype=["U8"]), "expected: U8"),
    "tensor of another shape": (tensor("a.weight", shape=[1, 2]), "expected: U8 of shape [2]"),
    "tensor not an object": (edit(lambda p: p.header.update({"a.weight": 5})), "data_offsets"),
    "no offsets": (edit(lambda p: p.header["a.weight"].pop("data_offsets")), "data_offsets"),
    "three offsets": (tensor("a.weight", data_offsets=[0, 2, 4]), "data_offsets"),
    "negative offsets": (tensor("a.weight", data_offsets=[-2, 0]), "data_offsets"),
    "offsets as text": (tensor("a.weight", data_offsets=["0", "2"]), "data_offsets"),
    "offsets backwards": (tensor("a.weight", data_offsets=[2, 0]), "expected: U8 of shape"),
    "offsets behind the end": (tensor("b.weight", data_offsets=[2**40, 2**40 + 2]), "without gap or overlap"),
    "tensors overlap": (tensor("b.weight", data_offsets=[0, 2]), "without gap or overlap"),
    "gap between tensors": (tensor("b.weight", data_offsets=[3, 5]), "without gap or overlap"),
}  # fmt: skip


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=4).map(tuple), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    packed=st.booleans(),
    manifest=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.floats(0, 1))
    ),
)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[Any], seed: int, packed: bool, manifest: dict[str, Any]
) -> None:
    layout = Layout(tuple(f"layer{i}.weight" for i in range(len(shapes))), tuple(shapes))
    flat = torch.rand(layout.n_prunable, generator=torch.Generator().manual_seed(seed)) > 0.5
    file = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    save_masks(Masks(layout, flat, manifest), file, packed=packed)
    loaded = load_masks(file)
    assert loaded.layout == layout and torch.equal(loaded.flat, flat) and loaded.manifest == manifest


def test_the_bytes_are_those_of_packbits_and_other_readers_agree(tmp_path: Path) -> None:
    file = tmp_path / "mask.safetensors"
    save_masks(MASKS, file)
    assert file.read_bytes()[-4:] == bytes([0b10010010, 0b01001000, 0b10010010, 0b01000000])
    assert file.read_bytes()[0] % 8 == 0
    save_masks(MASKS, file, packed=False)
    with safe_open(file, "pt") as reader:
        assert reader.metadata()["format"] == "pt"
        assert all(torch.equal(reader.get_tensor(name), mask) for name, mask in MASKS.items())


def test_equal_masks_are_equal_files_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom panning.masks.layout import Layout\nfrom panning.masks.masks import Masks\n"
        "from panning.masks.file import save_masks\n"
        "manifest = {'seed': 3, 'input_shape': [1, 28, 28], 'method': 'snip'}\n"  # in another order
        "layout = Layout(('a.weight', 'b.weight'), ((3, 5), (2, 2, 3)))\n"
        "save_masks(Masks(layout, torch.arange(27) % 3 == 0, manifest), sys.argv[1])\n"
    )
    other, file = tmp_path / "other", tmp_path / "this"
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for _ in range(8):
        save_masks(MASKS, file)
        assert file.read_bytes() == other.read_bytes()


def test_a_fingerprint_is_that_of_names_and_shapes_in_order() -> None:
    assert fingerprint(LAYOUT) == hashlib.sha256(b'[["a.weight",[3,5]],["b.weight",[2,2,3]]]').hexdigest()
    assert fingerprint(Layout(LAYOUT.names[::-1], LAYOUT.shapes[::-1])) != fingerprint(LAYOUT)


def test_the_untouched_parts_load(tmp_path: Path) -> None:
    """Otherwise the broken files below might be refused for how this test puts them together."""
    for packed in (True, False):
        file = tmp_path / "mask.safetensors"
        parts = Parts(file, packed)
        file.write_bytes(parts.join())
        assert load_masks(file) == MASKS


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_and_costs_no_memory(case: str, tmp_path: Path) -> None:
    file = tmp_path / "mask.safetensors"
    make, message = BROKEN[case]
    file.write_bytes(make(Parts(file)))
    tracemalloc.start()
    try:
        with pytest.raises(MaskError) as caught:
            load_masks(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith(f"{file} is not a usable mask file.\n  found: ") and "\n  expected: " in text
    assert message in text and len(text) < 1000
    assert text.replace("\n", "").isprintable()
    assert peak < 5e6 + file.stat().st_size  # what the file itself pays for


def test_there_are_enough_broken_files() -> None:
    assert len(BROKEN) >= 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(lambda p: setattr(p, "data", b"\2" + p.data[1:])), "'a.weight' with the entry 2"),
        (tensor("a.weight", shape=[15]), "BOOL or U8 of shape [3, 5], 15 bytes"),
        (tensor("a.weight", dtype="I8"), "BOOL or U8"),
        (about(encoding="bits"), "U8 of shape [2], 2 bytes"),
    ],
)
def test_a_broken_file_of_bytes_is_refused(change: Callable[[Parts], bytes], message: str, tmp_path: Path) -> None:
    file = tmp_path / "mask.safetensors"
    file.write_bytes(change(Parts(file, packed=False)))
    with pytest.raises(MaskError) as caught:
        load_masks(file)
    assert message in str(caught.value)


@given(st.data())
def test_no_damage_gives_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    save_masks(MASKS, file)
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    with suppress(MaskError):
        assert load_masks(file) == MASKS  # what was damaged is the manifest or a space


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_pickle_does_not_run(tmp_path: Path) -> None:
    target, file = tmp_path / "was_here", tmp_path / "mask.safetensors"
    for save in (torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload))):
        save({"a.weight": Payload(target)}, file)
        with pytest.raises(MaskError, match="pickle or archive"):
            load_masks(file)
        assert not target.exists()
    pickle.loads(file.read_bytes())
    assert target.exists()  # the payload is a live one


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in [(tmp_path / "none", "No such file"), (tmp_path, "directory"), (tmp_path / "pipe", "a pipe")]:
        with pytest.raises(MaskError, match=message):
            load_masks(path)
    with pytest.raises(MaskError, match="a pipe or device"):
        load_masks("/dev/zero")


@pytest.mark.parametrize(
    ("layout", "manifest", "message"),
    [
        (LAYOUT, {"loss": float("nan")}, "not JSON compliant"),
        (LAYOUT, {"model": object()}, "not JSON serializable"),
        (LAYOUT, json.loads('{"a":' * 300 + "0" + "}" * 300), "recursion limit"),
        (LAYOUT, ["snip"], "manifest"),
        (LAYOUT, {"notes": "x" * MAX_HEADER_BYTES}, "shorten the manifest"),
        (Layout(("a\n", "b"), LAYOUT.shapes), {}, "printable"),
        (Layout(("__metadata__", "b"), LAYOUT.shapes), {}, "printable"),
        (Layout(("a", "a"), LAYOUT.shapes), {}, "listed twice"),
        (Layout(("a", "b"), ((27,), (0, 3))), {}, "each from 1"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    layout: Layout, manifest: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MaskError, match=message):
        save_masks(Masks(layout, MASKS.flat, manifest), tmp_path / "mask.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_masks(MASKS, tmp_path)
