"""Masks in the formats of others: round trips, what others write, and what a file from outside can do: be refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from panning import cli
from panning.foundation.errors import MaskError, OutputError, UnknownNameError
from panning.masks import checks
from panning.masks.convert import FORMATS, format_of, read_any, write_as
from panning.masks.file import load_masks, save_masks
from panning.masks.layout import Layout
from panning.masks.masks import Masks

#: Not in alphabetical order; every third weight.
LAYOUT = Layout(("b.weight", "a.weight", "c.bias"), ((3, 5), (2, 2, 3), (4,)))
MASKS = Masks(LAYOUT, torch.arange(31) % 3 == 0, {"method": "snip"})
FORMAT = pytest.mark.parametrize("format", FORMATS)


@st.composite
def any_masks(draw: st.DrawFn) -> Masks:
    shapes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4))
    names = draw(
        st.lists(st.text("ab.é_", min_size=1, max_size=8), min_size=len(shapes), max_size=len(shapes), unique=True)
    )
    layout = Layout(tuple(f"{name}.weight" for name in names), tuple(shapes))
    kept = draw(st.lists(st.booleans(), min_size=layout.n_prunable, max_size=layout.n_prunable))
    return Masks(layout, torch.tensor(kept))


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@FORMAT
@given(masks=any_masks())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, format: str, masks: Masks) -> None:
    path = tmp_path_factory.mktemp("masks") / "mask"
    write_as(masks, path, format)
    assert read_any(path) == masks


@FORMAT
def test_order_manifest_and_bytes(tmp_path: Path, format: str) -> None:
    write_as(MASKS, tmp_path / "a", format)
    masks = read_any(tmp_path / "a")
    assert masks == MASKS and masks.layout.names == LAYOUT.names
    assert masks.manifest == (MASKS.manifest if format.startswith("panning") else {})
    write_as(MASKS, tmp_path / "b", format)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_what_other_readers_get(tmp_path: Path) -> None:
    for format in FORMATS:
        write_as(MASKS, tmp_path / format, format)
    for name, tensors in {
        "bool": load_file(tmp_path / "safetensors"),
        "pth": torch.load(tmp_path / "pth", weights_only=True),
        "openlth": torch.load(tmp_path / "openlth", weights_only=True),
    }.items():
        assert set(tensors) == set(LAYOUT.names), name
        assert all(torch.equal(tensors[key].bool(), mask) for key, mask in MASKS.items()), name
        assert {tensor.dtype for tensor in tensors.values()} == {torch.int32 if name == "openlth" else torch.bool}
    csr = load_file(tmp_path / "csr")
    for key, mask in MASKS.items():
        values = torch.ones(len(csr[f"{key}.col_indices"]))
        shape = (mask.shape[0], mask[0].numel())
        dense = torch.sparse_csr_tensor(
            csr[f"{key}.crow_indices"], csr[f"{key}.col_indices"], values, shape, check_invariants=True
        ).to_dense()
        assert torch.equal(dense.bool().view(mask.shape), mask)
        assert csr[f"{key}.shape"].tolist() == list(mask.shape)


def test_a_pruned_model_takes_and_gives_masks(tmp_path: Path, tiny_mlp: nn.Module) -> None:
    for layer in (tiny_mlp[0], tiny_mlp[2]):
        prune.random_unstructured(layer, "weight", 2)
    wanted = {name.removesuffix("_mask"): mask.bool() for name, mask in tiny_mlp.named_buffers()}
    masks = read_any(saved(tmp_path / "model.pth", tiny_mlp.state_dict()))
    assert list(masks) == ["0.weight", "2.weight"]
    assert all(torch.equal(masks[name], mask) for name, mask in wanted.items())
    for layer in (tiny_mlp[0], tiny_mlp[2]):
        layer.weight_mask.zero_()
    write_as(masks, tmp_path / "masks.pth", "prune")
    loaded = tiny_mlp.load_state_dict(torch.load(tmp_path / "masks.pth", weights_only=True), strict=False)
    assert not loaded.unexpected_keys
    assert torch.equal(tiny_mlp[0].weight_mask.bool(), wanted["0.weight"])


def test_a_tied_weight_has_one_mask(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3))
    model[1].weight = model[0].weight
    for layer in model:
        prune.custom_from_mask(layer, "weight", torch.eye(3)[:, :2])
    assert list(read_any(saved(tmp_path / "model.pth", model.state_dict()))) == ["0.weight"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_entries_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: mask.to(dtype) for name, mask in MASKS.items()}
    assert read_any(saved(tmp_path / "mask.pt", tensors)) == MASKS
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_any(tmp_path / "old.pt") == MASKS
    save_file(tensors, tmp_path / "mask.safetensors")
    assert dict(read_any(tmp_path / "mask.safetensors")).keys() == tensors.keys()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float32, ">f8"])
def test_npz(tmp_path: Path, save: Any, dtype: Any) -> None:
    arrays = {name: mask.numpy().astype(dtype) for name, mask in MASKS.items()}
    arrays["a.weight"] = np.asfortranarray(arrays["a.weight"])
    save(tmp_path / "mask.npz", **arrays)
    assert read_any(tmp_path / "mask.npz") == MASKS


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "npz"])
def test_a_payload_does_not_run(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "mask.pth", tmp_path / "trace"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": Payload(trace)}))
    elif how == "npz":
        with open(path, "wb") as file:
            np.savez(file, weight=np.array([Payload(trace)], dtype=object))
    else:
        torch.save({"weight": Payload(trace)}, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(MaskError) as caught:
        read_any(path)
    assert not trace.exists()
    assert str(path) in str(caught.value) and "weights_only" not in str(caught.value)
    assert "nothing in it was run" in str(caught.value) or how == "npz"


WRONG: dict[str, tuple[Any, str]] = {
    "weights": ({"a": torch.rand(2, 2)}, "entries other than 0 and 1"),
    "nan": ({"a": torch.tensor([float("nan")])}, "entries other than 0 and 1"),
    "nothing": ({}, "no tensor"),
    "a list": ([torch.ones(2)], "with a list"),
    "nested": ({"state_dict": {"a": torch.ones(2)}}, "state_dict: dict"),
    "numbers for names": ({1: torch.ones(2)}, "1: Tensor"),
    "escapes in a name": ({"a\x1b[2J": torch.ones(2)}, r"called a\\x1b"),
    "no name": ({"_mask": torch.ones(2)}, "called"),
    "a number": ({"a": torch.tensor(1)}, r"shape \(\)"),
    "empty": ({"a": torch.ones(0, 3)}, r"shape \(0, 3\)"),
    "expanded": ({"a": torch.ones(1).expand(2**20, 2**20)}, "more weights than"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse_coo"),
    "meta": ({"a": torch.ones(3, device="meta")}, "on meta"),
    "complex": ({"a": torch.ones(3, dtype=torch.complex64)}, "complex64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_torch_files(tmp_path: Path, case: str) -> None:
    value, message = WRONG[case]
    with pytest.raises(MaskError, match=message):
        read_any(saved(tmp_path / "mask.pth", value))


CSR = {"w.crow_indices": [0, 1, 3], "w.col_indices": [2, 0, 3], "w.shape": [2, 2, 2]}
WRONG_CSR: dict[str, tuple[dict[str, list[int]], str]] = {
    "too short": ({"w.crow_indices": [0, 3]}, "crow_indices"),
    "not from 0": ({"w.crow_indices": [1, 1, 3]}, "crow_indices"),
    "falling": ({"w.crow_indices": [0, 4, 3]}, "crow_indices"),
    "too many": ({"w.crow_indices": [0, 1, 4]}, "crow_indices"),
    "outside": ({"w.col_indices": [2, 0, 4]}, "outside"),
    "negative": ({"w.col_indices": [-1, 0, 3]}, "outside"),
    "twice": ({"w.col_indices": [2, 3, 3]}, "twice"),
    "unordered": ({"w.col_indices": [2, 3, 0]}, "out of order"),
    "huge": ({"w.shape": [2, 2**29, 2]}, "more weights than"),
    "a negative size": ({"w.shape": [2, -2, -2]}, "shape"),
    "no size": ({"w.shape": []}, "shape"),
    "more tensors": ({"w": [1]}, "not complete"),
}


@pytest.mark.parametrize("case", WRONG_CSR)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_wrong_csr(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    path = tmp_path / "mask.safetensors"
    save_file({name: torch.tensor(values, dtype=dtype) for name, values in CSR.items()}, path)
    assert read_any(path)["w"].flatten().nonzero().flatten().tolist() == [2, 4, 7]
    change, message = WRONG_CSR[case]
    save_file({name: torch.tensor(values, dtype=dtype) for name, values in (CSR | change).items()}, path)
    with pytest.raises(MaskError, match=message):
        read_any(path)


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_header_whose_length_begins_like_another_mark(tmp_path: Path, length: int) -> None:
    header = b'{"w":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    (tmp_path / "mask").write_bytes(length.to_bytes(8, "little") + header + b"\1")
    assert read_any(tmp_path / "mask")["w"].tolist() == [True]


@FORMAT
def test_truncated_files(tmp_path: Path, format: str) -> None:
    write_as(MASKS, tmp_path / "mask", format)
    data = (tmp_path / "mask").read_bytes()
    for n in {0, 1, 2, 8, 9, len(data) // 4, len(data) // 2, len(data) - 1}:
        (tmp_path / "cut").write_bytes(data[:n])
        with pytest.raises(MaskError, match="cut"):
            read_any(tmp_path / "cut")


@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04"]), data=st.binary(max_size=60))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, start: bytes, data: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "mask"
    path.write_bytes(start + data)
    with pytest.raises(MaskError):
        read_any(path)


def test_an_array_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|b1", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "mask.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(MaskError, match="as many bytes as its shape needs"):
        read_any(tmp_path / "mask.npz")


@pytest.mark.parametrize("packed", [True, False])
def test_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    path = tmp_path / "mask.npz"
    (np.savez_compressed if packed else np.savez)(path, a=np.zeros(100_000, dtype=np.int8))
    monkeypatch.setattr(checks, "MAX_FILE_BYTES", 50_000)
    with pytest.raises(MaskError, match="unpacks to" if packed else "found: 1..... bytes"):
        read_any(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, found in {"pipe": "a folder, pipe or device", ".": "a folder, pipe", "absent": "no such file"}.items():
        with pytest.raises(MaskError, match=found):
            read_any(tmp_path / name)


def test_wrong_output(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'openlth'.*panning-bytes"):
        write_as(MASKS, tmp_path / "mask", "openlht")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_as(MASKS, tmp_path / "file" / "mask", "pth")
    with pytest.raises(MaskError, match="cannot be saved as csr.*\n.*called"):
        write_as(Masks(Layout(("a\n",), ((1,),)), torch.ones(1, dtype=torch.bool)), tmp_path / "mask", "csr")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_suffixes() -> None:
    names = ("mask.safetensors", "mask.csr.safetensors", "mask.pth", "runs/mask.v2.pt")
    assert [format_of(name) for name in names] == ["panning", "csr", "pth", "pth"]
    with pytest.raises(MaskError, match="'mask.npz' stands for no mask format. Known: .safetensors .panning.*openlth"):
        format_of("mask.npz")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return caught.value.code or 0, captured.out, captured.err


def test_the_command_converts_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other, back = tmp_path / "a.safetensors", tmp_path / "mask.pth", tmp_path / "b.safetensors"
    save_masks(MASKS, source)
    code, out, err = run(capsys, "mask", "convert", source, other, "--to", "openlth")
    assert code == 0 and "as openlth: 3 layers, 11 of 31 weights kept, density 0.354839" in out
    assert "manifest was left behind" in err
    code, out, err = run(capsys, "mask", "convert", other, back)
    assert code == 0 and "as panning" in out and err == ""
    assert load_masks(back) == MASKS


def test_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.safetensors"
    save_masks(MASKS, source)
    for arguments, message in {
        (source, tmp_path / "out"): "stands for no mask format",
        (source, tmp_path / "out", "--to", "nni"): "Unknown mask format 'nni'",
        (tmp_path / "absent", tmp_path / "out.pth"): "no such file",
    }.items():
        code, _, err = run(capsys, "mask", "convert", *arguments)
        assert code == 2 and message in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
