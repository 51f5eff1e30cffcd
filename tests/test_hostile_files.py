"""Every reader of outside files under crafted and fuzzed files: a PanningError that names the file, and nothing else.

Each reader gets a valid file that the package wrote. What is done to it below must end in a PanningError or, where a
byte means nothing or is under no checksum, in a sound result; nothing runs, and memory stays under ``PEAK_BYTES``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from panning import configs
from panning.agents.saving import load_agent, save_agent
from panning.cli import main
from panning.compaction import compact
from panning.data import load_data
from panning.data.folder import MAX_PIXELS, decode_image
from panning.episode.actions import ActionSpec
from panning.episode.observations import STANDARD
from panning.episode.policy_net import PolicyNet, load_policy, save_policy
from panning.export.folder import VECTORS, WEIGHTS, load_compact, save_compact
from panning.foundation.config import load_config
from panning.foundation.errors import MAX_MESSAGE, PanningError
from panning.foundation.files import claim_folder
from panning.foundation.records import RecordStore, RunRecord
from panning.masks.convert import read_any, write_as
from panning.masks.file import load_masks, save_masks
from panning.masks.layout import Layout
from panning.masks.masks import Masks
from panning.scoring.problem import Problem
from panning.searches.config import SearchConfig
from panning.training import make_dynamic
from panning.training.checkpoint import MOVED, Checkpoint, load_checkpoint, save_checkpoint
from panning.training.moving.engine import MovingMasks
from panning.training.moving.method import Movement

#: What Python and NumPy may hold while a file of these sizes is read.
PEAK_BYTES = 16 * 2**20
#: Of address space, on top of what the imports take, for those that allocate where Python cannot see it.
MORE_ADDRESSES = 2**29
N_FUZZED = 60

MARKER = Path(tempfile.gettempdir()) / f"panning-marker-{os.getpid()}"
Damage = Callable[[bytes], bytes]


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (MARKER,))


# Readers: a valid file, how it is read, what a sound result is


@dataclass(frozen=True)
class Reader:
    """One reader. ``exact``: any change is seen. ``harmless``: what may be read all the same, and why is said there.

    ``also``: readers whose files it takes as well.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    sound: Callable[[Any], bool]
    crafted: dict[str, Damage]
    exact: bool = False
    peak_bytes: int = PEAK_BYTES
    harmless: frozenset[str] = field(default_factory=frozenset)
    also: frozenset[str] = field(default_factory=frozenset)


def masks() -> Masks:
    layout = Layout(("a.weight", "b.weight"), ((3, 5), (2, 2, 3)))
    return Masks(layout, torch.arange(27) % 3 == 0, {"method": "snip", "seed": 3})


def write_mask(path: Path) -> None:
    save_masks(masks(), path)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@cache
def compact_files() -> dict[str, bytes]:
    """The files of a compact network that has lost a unit."""
    model = dense()
    mask = {"0.weight": torch.ones(4, 3, dtype=torch.bool), "2.weight": torch.ones(2, 4, dtype=torch.bool)}
    mask["2.weight"][:, 1] = False
    kept = Masks.from_tensors(mask, {"input_shape": [3]})
    with tempfile.TemporaryDirectory() as folder:
        save_compact(compact(model, kept), kept, folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_of_compact(name: str, path: Path) -> None:
    path.write_bytes(compact_files()[name])


def read_of_compact(name: str, path: Path) -> Any:
    """The network of a folder called ``run`` whose file ``name`` is the one at ``path``."""
    (folder := path.parent / "run").mkdir(exist_ok=True)
    for file, content in compact_files().items():
        if file != name:
            (folder / file).write_bytes(content)
    (link := folder / name).unlink(missing_ok=True)
    link.symlink_to(path)
    return load_compact(dense(), folder).model(torch.ones(1, 3)).shape == (1, 2)


def write_policy(path: Path) -> None:
    spec, n = ActionSpec(indices=("snip",)), len(STANDARD)
    weights = (np.ones((4, n), np.float32), np.ones((3, 4), np.float32))
    biases = (np.zeros(4, np.float32), np.zeros(3, np.float32))
    save_policy(PolicyNet(spec, 2, weights, biases, np.zeros(3, np.float32), {"rollouts": 1}), path)


def network(optimizer: type[torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and an optimizer after one step."""
    model = nn.Linear(3, 2)
    made = optimizer(model.parameters(), 0.1, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))
    model(torch.ones(1, 3)).sum().backward()
    made.step()
    return model, made


def write_checkpoint(path: Path) -> None:
    history = [{"epoch": 1.0, "train_loss": 0.5, "accuracy": 0.5}]
    save_checkpoint(path, *network(torch.optim.SGD), Checkpoint(history), "it")


def agent() -> Any:
    """What ``load_agent`` needs of Stable-Baselines3's PPO."""
    policy, optimizer = network(torch.optim.Adam)
    policy.optimizer = optimizer
    return SimpleNamespace(policy=policy)


def can_step(module: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return True


def read_checkpoint(path: Path) -> Any:
    model, optimizer = network(torch.optim.SGD)
    loaded = load_checkpoint(path, model, optimizer, "it")
    return loaded and can_step(model, optimizer) and loaded.history


def read_agent(path: Path) -> Any:
    made = agent()
    facts = load_agent(path, made)
    return can_step(made.policy, made.policy.optimizer) and facts["rollouts"]


def moving() -> MovingMasks:
    """Masks that move, after one step."""
    model, optimizer = network(torch.optim.SGD)
    problem, start = Problem.of(model, (3,), None), torch.tensor([True, False] * 3)
    method = make_dynamic("deep_r")
    masks = MovingMasks(Movement(method, problem, 0.5), optimizer, start, n_steps=4, epoch=1)
    can_step(model, optimizer)
    return masks


def write_moving(path: Path) -> None:
    made = moving()
    history = [{"epoch": 1.0, "train_loss": 0.5, "accuracy": 0.5, **dict.fromkeys(MOVED, 0.5)}]
    save_checkpoint(path, made.problem.model, made.optimizer, Checkpoint(history), "it", made)


def read_moving(path: Path) -> Any:
    made = moving()
    loaded = load_checkpoint(path, made.problem.model, made.optimizer, "it", made)
    return loaded and can_step(made.problem.model, made.optimizer) and loaded.history


def write_npz(path: Path) -> None:
    labels = np.arange(20) % 2
    with open(path, "wb") as file:
        np.savez_compressed(
            file, train_images=np.full((20, 4, 4), 7, np.uint8), train_labels=labels,
            test_images=np.zeros((20, 4, 4), np.uint8), test_labels=labels,
        )  # fmt: skip


def read_npz(path: Path) -> Any:
    data = load_data(f"npz:{path}")
    test = data.test_split()
    return [*data.train.labels.tolist(), *data.mean, *test.labels.tolist(), int(test.images(torch.arange(20)).sum())]


def write_image(path: Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path, "PNG")


def write_records(path: Path) -> None:
    path.unlink(missing_ok=True)
    store = RecordStore(path)
    for key in ("a", "b", "c"):
        store.append(RunRecord(key, "train", {"seed": 1}, {"accuracy": 0.5, "error": None}, {}))


def sound_records(store: RecordStore) -> bool:
    return all(isinstance(r.key, str) and isinstance(r.config, dict) and isinstance(r.metrics, dict) for r in store)


IDENTITY = {"model": "mlp", "seed": 3}


def write_identity(path: Path) -> None:
    path.unlink(missing_ok=True)
    claim_folder(path.parent, IDENTITY)


def write_config(path: Path) -> None:
    path.write_bytes((Path(configs.__file__).parent / "demo" / "digits.yaml").read_bytes())


# Damage: safetensors


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header, a dict; the data behind stay."""

    def damage(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        return frame(json.dumps(header).encode(), raw[8 + length :])

    return damage


def frame(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def first(header: dict[str, Any]) -> str:
    return next(name for name in sorted(header) if name != "__metadata__" and header[name]["shape"])


def entry(**changes: Any) -> Damage:
    return tensors(lambda header: header[first(header)].update(changes))


def renamed(name: str) -> Damage:
    return tensors(lambda header: header.update({name: header.pop(first(header))}))


def described(text: str) -> Damage:
    """Another text in the one metadata key that is ours."""

    def change(header: dict[str, Any]) -> None:
        key = next(key for key in header["__metadata__"] if key != "format")
        header["__metadata__"][key] = text

    return tensors(change)


def announce(length: int) -> Damage:
    return lambda raw: length.to_bytes(8, "little") + raw[8:]


def twice(raw: bytes) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = first(header)
    again = f",{json.dumps(name)}:{json.dumps(header[name])}}}"
    return frame((json.dumps(header)[:-1] + again).encode(), raw[8 + length :])


SAFETENSORS: dict[str, Damage] = {
    **{f"header length {n}": announce(n) for n in (0, 1, 9 * 2**20, 2**31, 2**62, 2**63, 2**64 - 1)},
    **{f"first {n} bytes": (lambda raw, n=n: raw[:n]) for n in (1, 7, 8, 9, 40)},  # type: ignore[misc]
    "header alone": lambda raw: raw[: 8 + int.from_bytes(raw[:8], "little")],
    "last byte lost": lambda raw: raw[:-1],
    "a byte more": lambda raw: raw + b"\0",
    "header not UTF-8": lambda raw: frame(b"\xff\xfe{}", raw),
    "header a list": lambda raw: frame(b"[]", raw),
    "header a number": lambda raw: frame(b"17", raw),
    "header nested deeply": lambda raw: frame(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "header of 9 MiB": lambda raw: frame(b"{" + b" " * (9 * 2**20) + b"}"),
    "header with a long number": lambda raw: frame(b'{"a":' + b"9" * 5000 + b"}"),
    "tensor twice": twice,
    "no metadata": tensors(lambda header: header.pop("__metadata__")),
    "metadata a list": tensors(lambda header: header.update(__metadata__=[1])),
    "metadata of numbers": tensors(lambda header: header.update(__metadata__={"panning": 1, "history of it": 1})),
    "metadata of another tool": tensors(lambda header: header.update(__metadata__={"format": "pt"})),
    "description no JSON": described("import os"),
    "description a list": described("[1]"),
    "description a number": described("17"),
    "description empty": described("{}"),
    "description null": described("null"),
    "description NaN": described("NaN"),
    "description nested deeply": described("[" * 100_000),
    "description a long number": described("9" * 5000),
    "dtype I64": entry(dtype="I64"),
    "dtype U16": entry(dtype="U16"),
    "dtype F4": entry(dtype="F4"),
    "dtype unknown": entry(dtype="PICKLE"),
    "dtype a list": entry(dtype=["F32"]),
    "shape negative": entry(shape=[-1]),
    "shape huge": entry(shape=[2**62]),
    "shape overflows": entry(shape=[2**32, 2**32, 2]),
    "shape empty": entry(shape=[]),
    "shape zero": entry(shape=[0]),
    "shape text": entry(shape="3"),
    "shape of a thousand": entry(shape=[1] * 1000),
    "offsets outside": entry(data_offsets=[2**40, 2**40 + 2]),
    "offsets beyond 64 bits": entry(data_offsets=[0, 2**64 + 2]),
    "offsets backwards": entry(data_offsets=[2, 0]),
    "offsets negative": entry(data_offsets=[-2, 0]),
    "offsets of all": tensors(lambda header: [e.update(data_offsets=[0, 2]) for e in header.values() if "shape" in e]),
    "offsets with a gap": entry(data_offsets=[1, 3]),
    "tensor missing": tensors(lambda header: header.pop(first(header))),
    "tensor more": tensors(lambda header: header.update(x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})),
    "tensor a number": tensors(lambda header: header.update({first(header): 5})),
    **{f"tensor called {name[:20]!a}": renamed(name) for name in
       ("", "../x", "/etc/passwd", "a\0b", "a\x1b[2J", "a\u202eb", "optimizer.x.y", "optimizer.-1.step", "model.",
        "optimizer.0", "layers.0.weight.", "é" * 2000)},
}  # fmt: skip


# Damage: NumPy archives, images, JSON lines, YAML


def archive(change: Callable[[dict[str, bytes]], object]) -> Damage:
    """Change the members of a zip archive, name -> content."""

    def damage(raw: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(raw)) as old:
            members = {name: old.read(name) for name in old.namelist()}
        change(members)
        return zipped(members)

    return damage


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return buffer.getvalue()


def array(value: Any, key: str = "train_images") -> Damage:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return archive(lambda members: members.update({f"{key}.npy": buffer.getvalue()}))


def npy(header: str, data: bytes = b"", key: str = "train_images") -> Damage:
    text = header.encode("latin1") + b"\n"
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data
    return archive(lambda members: members.update({f"{key}.npy": content}))


def described_array(shape: str, descr: str = "'|u1'") -> Damage:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", bytes(320))


def claims(size: int) -> Damage:
    """The directory's first entry says that it unpacks to ``size`` bytes."""

    def damage(raw: bytes) -> bytes:
        at = raw.index(b"PK\1\2") + 24
        return raw[:at] + struct.pack("<I", size) + raw[at + 4 :]

    return damage


def twice_in_archive(raw: bytes) -> bytes:
    with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(raw)) as old:
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for name in [*old.namelist(), "train_labels.npy"]:
                new.writestr(name, old.read(name) if name in new.namelist() else old.read(name)[:-8] + bytes(8))
    return buffer.getvalue()


NPZ: dict[str, Damage] = {
    "objects": array(np.array([Payload()] * 20, dtype=object)),
    "object labels": array(np.array([Payload()] * 20, dtype=object), "train_labels"),
    "labels float": array(np.zeros(20), "train_labels"),
    "labels text": array(np.array(["a"] * 20), "train_labels"),
    "labels negative": array(np.arange(20) - 1, "train_labels"),
    "labels huge": array(np.full(20, 2**64 - 1, np.uint64), "train_labels"),
    "labels sparse": array(np.arange(20) * 10**9, "train_labels"),
    "labels structured": array(np.zeros(20, [("a", "<i4")]), "train_labels"),
    "labels too few": array(np.zeros(19, np.int64), "train_labels"),
    "images float": array(np.zeros((20, 4, 4))),
    "images of 2 dimensions": array(np.zeros((20, 16), np.uint8)),
    "images none": array(np.zeros((0, 4, 4), np.uint8)),
    "images with 99 channels": array(np.zeros((20, 1, 1, 99), np.uint8)),
    "test images of another size": array(np.zeros((20, 5, 5), np.uint8), "test_images"),
    "shape negative": described_array("(-20, -4, 4)"),
    "shape huge": described_array("(2**62, 4, 4)"),
    "shape overflows": described_array(f"({2**62}, {2**62}, 4)"),
    "shape beyond the data": described_array("(1000000, 4, 4)"),
    "shape of a thousand": described_array("(" + "1, " * 1000 + ")"),
    "shape no tuple": described_array("320"),
    "shape of floats": described_array("(20.0, 4, 4)"),
    "dtype pickled": described_array("(20, 4, 4)", "'|O'"),
    "dtype unknown": described_array("(20, 4, 4)", "'\x1b[2J'"),
    "dtype nested": described_array("(20, 4, 4)", "[('a', " * 50 + "'|u1'" + ")]" * 50),
    "header code": npy("__import__('pathlib').Path('marker').touch()"),
    "header nested deeply": npy("(" * 9000),
    "header without shape": npy("{'descr': '|u1', 'fortran_order': False}"),
    "header of 64 KiB": npy("{" + " " * 65000 + "}"),
    "member no array": archive(lambda members: members.update({"train_images.npy": b"\x80\x04junk"})),
    "member empty": archive(lambda members: members.update({"train_labels.npy": b""})),
    "member of another version": archive(lambda m: m.update({"train_images.npy": b"\x93NUMPY\x09\0" + bytes(400)})),
    "member missing": archive(lambda members: members.pop("test_labels.npy")),
    "member renamed outwards": archive(lambda m: m.update({"../../train_images.npy": m.pop("train_images.npy")})),
    "member with an escape": archive(lambda m: m.update({"\x1b[2Jx.npy": m.pop("train_images.npy")})),
    "no members": lambda raw: zipped({}),
    "bomb": lambda raw: zipped({"train_images.npy": bytes(2**24)}),
    "bomb that says so": claims(2**32 - 1),
    "bomb that hides": claims(2**31),
    "zip within": lambda raw: zipped({"train_images.npy": raw}, zipfile.ZIP_STORED),
    "directory cut": lambda raw: raw[: raw.index(b"PK\1\2") + 30],
    "directory lost": lambda raw: raw[raw.index(b"PK\1\2") :],
    "first member cut": lambda raw: raw[60:],
    "member twice": twice_in_archive,
}


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


SIDE = int(MAX_PIXELS**0.5) + 1
POSTSCRIPT = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({MARKER}) (w) file closefile\n%%EOF\n".encode()

IMAGE: dict[str, Damage] = {
    "PostScript": lambda raw: POSTSCRIPT,
    "GIF": lambda raw: b"GIF89a" + raw,
    "SVG": lambda raw: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "too many pixels": lambda raw: png(SIDE, SIDE, (b"IDAT", zlib.compress(bytes(99)))),
    "pixels overflow": lambda raw: png(2**31 - 1, 2**31 - 1, (b"IDAT", zlib.compress(bytes(99)))),
    "no pixels": lambda raw: png(0, 0, (b"IDAT", zlib.compress(bytes(99)))),
    "no data": lambda raw: png(8, 8),
    "text bomb": lambda raw: png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))), (b"IDAT", b"")),
    "chunk of 2 GiB": lambda raw: raw[:33] + b"\x7f\xff\xff\xff" + raw[37:],
    "header cut": lambda raw: raw[:20],
    "data cut": lambda raw: raw[:48],
    "pixmap that lies": lambda raw: b"P6 4000 4000 255\n" + bytes(10),
    "pixmap negative": lambda raw: b"P6 -8 8 255\n" + bytes(10),
    "bitmap negative": lambda raw: b"BM" + struct.pack("<IIIIiiHH", 100, 0, 54, 40, -8, -8, 1, 24) + bytes(24),
    "TIFF in a circle": lambda raw: b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
}

RECORD = {"key": "a", "kind": "k", "config": {}, "metrics": {}, "environment": {}}


def record(**changes: Any) -> Damage:
    return lambda raw: json.dumps({**RECORD, **changes}).encode() + b"\n"


RECORDS: dict[str, Damage] = {
    "key a list": record(key=["a"]),
    "key a number": record(key=1),
    "kind null": record(kind=None),
    "config text": record(config="x"),
    "metrics a list": record(metrics=[1]),
    "environment a number": record(environment=1),
    "NaN": record(metrics={"accuracy": float("nan")}),
    "infinity": record(metrics={"accuracy": float("inf")}),
    "unknown field": record(evil=1),
    "field with an escape": record(**{"\x1b[2J": 1}),
    "field missing": lambda raw: b'{"key":"a"}\n',
    "field twice": lambda raw: raw.replace(b'"key":"a"', b'"key":"a","key":"b"'),
    "a list": lambda raw: b'["a","k",{},{},{}]\n',
    "a string": lambda raw: b'"key"\n',
    "null": lambda raw: b"null\n",
    "empty line": lambda raw: b"\n" + raw,
    "not UTF-8": lambda raw: b'{"key":"\xff"}\n',
    "nested deeply": lambda raw: b'{"key":' * 100_000 + b"\n",
    "a long number": lambda raw: b'{"key":' + b"9" * 5000 + b"}\n",
    "carriage returns": lambda raw: raw.replace(b"\n", b"\r"),
    "a line in two": lambda raw: raw.replace(b',"key"', b'\n,"key"'),
    "NUL bytes between": lambda raw: raw.replace(b"\n", b"\0\n"),
}

IDENTITY_FILES: dict[str, Damage] = {
    "cut": lambda raw: raw[:-1],
    "a list": lambda raw: b"[[1]]",
    "a number": lambda raw: b"17",
    "null": lambda raw: b"null",
    "NaN": lambda raw: b'{"model": NaN}',
    "key twice": lambda raw: raw.replace(b"{", b'{"seed": 4,'),
    "nested deeply": lambda raw: b'{"a":' * 100_000,
    "not UTF-8": lambda raw: b'"\xff"',
    "a long number": lambda raw: b"9" * 5000,
    "2 MiB": lambda raw: raw + b" " * 2**21,
    "key with an escape": lambda raw: raw.replace(b"{", b'{"\\u001b[2J": 4,'),
    "key of a megabyte": lambda raw: b'{"' + b"x" * 10**6 + b'": 1}',
}


def yaml_key(line: str) -> Damage:
    return lambda raw: raw + b"\n" + line.encode() + b"\n"


YAML: dict[str, Damage] = {
    "python object": lambda raw: f"!!python/object/apply:pathlib.Path.touch [{MARKER}]".encode(),
    "python name": yaml_key("x: !!python/name:os.system"),
    "python module": yaml_key("x: !!python/module:os"),
    "python tag in a key": yaml_key("? !!python/object/apply:os.getcwd []\n: 1"),
    "alias bomb": lambda raw: ("a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))).encode(),
    "merge bomb": lambda raw: ("a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))).encode(),
    "alias to itself": lambda raw: b"&a [*a]",
    "aliases to wrong tasks": lambda raw: ("a: &a {" + ", ".join(f"k{i}: 1" for i in range(900)) + "}\nagent:\n  tasks: ["
        + "*a, " * 9000 + "]").encode(),
    "alias for a name": yaml_key("x: &a 1\ny: *a"),
    "unknown key": yaml_key("evil: 1"),
    "key twice": lambda raw: raw + b"\nname: again\n",
    "key with an escape": yaml_key('"\\e[2J": 1'),
    "key of 50,000 letters": yaml_key(f"? {'x' * 50_000}\n: 1"),
    "key a list": yaml_key("? [a]\n: 1"),
    "NaN": yaml_key("job_timeout_s: .nan"),
    "infinity": yaml_key("job_timeout_s: .inf"),
    "negative": yaml_key("job_timeout_s: -1"),
    "a number of 60,000 digits": yaml_key("job_timeout_s: 0x" + "f" * 60_000),
    "a number to base 60": yaml_key("job_timeout_s: " + ":".join(["1"] * 20_000)),
    "a date that is none": yaml_key("x: 2001-99-99"),
    "a tag without its value": yaml_key("x: !!timestamp y"),
    "binary that is none": yaml_key("x: !!binary é"),
    "nested deeply": lambda raw: b"[" * 20_000,
    "keys within keys": lambda raw: b"? " * 20_000,
    "two documents": lambda raw: raw + b"\n---\n" + raw,
    "a list": lambda raw: b"- name",
    "a directive": lambda raw: b"%YAML 9.9\n---\n" + raw,
    "not UTF-8": lambda raw: b"name: \xff",
    "a control character": lambda raw: b"name: \x1b[2J",
    "NUL": lambda raw: b"name: a\0b",
    "2 MiB": lambda raw: raw + b"#" * 2**21,
    "a model to import": lambda raw: raw.replace(b"model: ", b"model: os:getcwd #"),
    "a wrong type everywhere": lambda raw: b"name: [1]\ntask: 3\ndensities: x\nrungs: {}\nrecipe: null\nseeds: a\n",
}  # fmt: skip


def torch_saved(raw: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a.weight": Payload()}, buffer)
    return buffer.getvalue()


def saved(value: Any, **options: Any) -> Damage:
    def damage(raw: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    return damage


def torch_pickled(value: bytes) -> Damage:
    """A torch file whose pickle is a dict with ``value`` under the name of a mask."""
    data = b"\x80\x02}X\x08\x00\x00\x00a.weight" + value + b"s."
    return lambda raw: zipped({"archive/data.pkl": data, "archive/version": b"3\n"})


#: A hundred bytes of pickle: a pair of pairs of pairs, 22 deep, which as text would have many megabytes.
TUPLES = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(22))

TORCH: dict[str, Damage] = {
    "huge bytearray": torch_pickled(b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R"),
    "huge empty tensor": torch_pickled(b"ctorch\nTensor\nJ\x00\x00\x00\x02\x85R"),
    "huge name of tuples": lambda raw: zipped(
        {"archive/data.pkl": b"\x80\x02}" + TUPLES + b"Ns.", "archive/version": b"3\n"}
    ),
    "an old payload": saved({"a.weight": Payload()}, _use_new_zipfile_serialization=False),
    "a list": saved([torch.ones(3)]),
    "a tensor": saved(torch.ones(3)),
    "numbers": saved({"a.weight": 1}),
    "names that are numbers": saved({1: torch.ones(3)}),
    "no entry": saved({}),
    "entries other than 0 and 1": saved({"a.weight": torch.full((3,), 0.5)}),
    "NaN": saved({"a.weight": torch.full((3,), torch.nan)}),
    "complex": saved({"a.weight": torch.ones(3, dtype=torch.complex64)}),
    "a huge tensor of one element": saved({"a.weight": torch.ones(1).expand(2**40)}),
    "a sparse tensor": saved({"a.weight": torch.ones(3).to_sparse()}),
    "an empty tensor": saved({"a.weight": torch.ones(0)}),
    "a name with an escape": saved({"\x1b[2J": torch.ones(3)}),
    "a module": saved({"a.weight": nn.Linear(2, 2)}),
    "nested": saved({"a": {"b": {"c": torch.ones(3)}}}),
    "directory cut": lambda raw: raw[: raw.index(b"PK\1\2") + 30],
    "a bomb": lambda raw: zipped({"archive/data.pkl": bytes(2**24)}),
}

#: For files whose metadata mean nothing.
UNDESCRIBED = {case: damage for case, damage in SAFETENSORS.items() if not case.startswith("description")}
METADATA = frozenset({"no metadata", "metadata of another tool"})

#: What every reader gets.
COMMON: dict[str, Damage] = {
    "empty": lambda raw: b"",
    "zeros": lambda raw: bytes(4096),
    "ones": lambda raw: b"\xff" * 4096,
    "text": lambda raw: b"What is this?\n" * 20,
    "a pickle": lambda raw: pickle.dumps(Payload()),
    "a text pickle": lambda raw: pickle.dumps(Payload(), 0),
    "a torch.save file": torch_saved,
    "half": lambda raw: raw[: len(raw) // 2],
    "first byte lost": lambda raw: raw[1:],
    "backwards": lambda raw: raw[::-1],
}

READERS = {reader.name: reader for reader in [
    Reader("mask", write_mask, load_masks, lambda m: m.n_kept == 9, SAFETENSORS, exact=True),
    Reader("policy", write_policy, load_policy,
           lambda p: p(np.zeros(len(STANDARD), np.float32)).shape == (3,), SAFETENSORS),
    Reader("checkpoint", write_checkpoint, read_checkpoint, lambda h: h is None or len(h) <= 1, SAFETENSORS,
           harmless=frozenset({"a link to nothing", "a link to itself"})),  # no file: training starts anew
    Reader("checkpoint of moving masks", write_moving, read_moving, lambda h: h is None or len(h) <= 1, SAFETENSORS,
           harmless=frozenset({"a link to nothing", "a link to itself"})),
    Reader("agent", lambda path: save_agent(path, agent(), {"rollouts": 1}), read_agent,
           lambda rollouts: rollouts >= 0, SAFETENSORS),
    Reader("npz", write_npz, read_npz, lambda figures: len(figures) > 20, NPZ, exact=True),
    Reader("image", write_image, partial(decode_image, size=(4, 4)),
           lambda image: isinstance(image, Tensor) and image.shape == (3, 4, 4), IMAGE,
           peak_bytes=8 * MAX_PIXELS,  # as stored and as RGB, both with 4 bytes a pixel
           harmless=frozenset({"chunk of 2 GiB"})),  # Pillow takes what there is
    Reader("records", write_records, RecordStore, sound_records, RECORDS,
           # A torn last line is what a killed process leaves, and all of these are one; no file is an empty store.
           harmless=frozenset({"empty", "zeros", "ones", "half", "a link to nothing", "a link to itself",
                               "carriage returns", "backwards", "a torch.save file", "a pickle", "a text pickle"})),
    Reader("run.json", write_identity, lambda path: claim_folder(path.parent, IDENTITY), lambda none: none is None,
           IDENTITY_FILES, exact=True, harmless=frozenset({"a link to nothing", "a link to itself"})),
    Reader(VECTORS, partial(write_of_compact, VECTORS), partial(read_of_compact, VECTORS), bool, SAFETENSORS),
    Reader(WEIGHTS, partial(write_of_compact, WEIGHTS), partial(read_of_compact, WEIGHTS), bool, UNDESCRIBED,
           harmless=METADATA),
    # A policy of ones and zeros is a mask too, for a reader that takes any tensors of these.
    Reader("CSR mask", lambda path: write_as(masks(), path, "csr"), read_any, lambda m: isinstance(m, Masks), UNDESCRIBED,
           harmless=METADATA, also=frozenset({"mask", "torch mask", "policy"})),
    Reader("torch mask", lambda path: write_as(masks(), path, "pth"), read_any, lambda m: isinstance(m, Masks), TORCH,
           also=frozenset({"mask", "CSR mask", "policy"})),
    Reader("config", write_config, partial(load_config, SearchConfig), lambda c: isinstance(c, SearchConfig), YAML),
]}  # fmt: skip

FILES = [(name, case) for name, reader in READERS.items() for case in {**COMMON, **reader.crafted}]
PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@cache
def valid(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].write(file := Path(folder) / "run.json")
        return file.read_bytes()


def outcome(reader: Reader, file: Path) -> Any:
    """What the reader gives, or its PanningError; anything else it raises is a failed test."""
    tracemalloc.start()
    try:
        return reader.read(file)
    except PanningError as error:
        text = str(error)
        assert file.stem in text, text
        assert text.replace("\n", "").isprintable() and len(text) < MAX_MESSAGE + 100
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < reader.peak_bytes + 2 * (file.stat().st_size if file.is_file() else 0), f"{peak} bytes"
        assert not MARKER.exists()


@pytest.fixture(autouse=True)
def no_marker() -> Iterator[None]:
    yield
    assert not MARKER.exists()


@pytest.mark.parametrize("name", READERS)
def test_the_untouched_file_is_read(name: str, tmp_path: Path) -> None:
    """Otherwise the broken files below might be refused for how this test makes them."""
    (file := tmp_path / "run.json").write_bytes(valid(name))
    assert READERS[name].sound(outcome(READERS[name], file))


@pytest.mark.parametrize(("name", "case"), FILES)
def test_a_crafted_file_is_refused(name: str, case: str, tmp_path: Path) -> None:
    reader = READERS[name]
    (file := tmp_path / "run.json").write_bytes({**COMMON, **reader.crafted}[case](valid(name)))
    found = outcome(reader, file)
    assert isinstance(found, PanningError) or (case in reader.harmless and reader.sound(found))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("other", READERS)
def test_the_file_of_another_reader_is_refused(name: str, other: str, tmp_path: Path) -> None:
    (file := tmp_path / "run.json").write_bytes(valid(other))
    found = outcome(READERS[name], file)
    torn = name == "records" and b"\n" not in valid(other)
    assert isinstance(found, PanningError) != (name == other or torn or other in READERS[name].also)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(name: str, place: str, tmp_path: Path) -> None:
    reader = READERS[name]
    PLACES[place](file := tmp_path / "run.json")
    found = outcome(reader, file)
    assert isinstance(found, PanningError) or (place in reader.harmless and reader.sound(found))


def fuzzed(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to three bits flipped, stretches lost or put in, or blocks swapped."""
    data = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at, other, n = rng.integers(len(data)), rng.integers(len(data)), rng.integers(1, 17)
        match rng.integers(4):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1 if len(data) > 32:
                del data[at : at + n]
            case 2:
                data[at:at] = rng.bytes(int(n))
            case _:
                data[at : at + n], data[other : other + n] = data[other : other + n], data[at : at + n]
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_a_fuzzed_file_is_refused_or_read_soundly(name: str, tmp_path: Path) -> None:
    reader, rng = READERS[name], np.random.default_rng(0)
    (file := tmp_path / "run.json").write_bytes(valid(name))
    whole = outcome(reader, file)
    n_refused = 0
    for _ in range(N_FUZZED):
        file.write_bytes(fuzzed(valid(name), rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow and zipfile warn of what they can live with
            found = outcome(reader, file)
        if isinstance(found, PanningError):
            n_refused += 1
        else:
            assert reader.sound(found) and (not reader.exact or found == whole)
    assert n_refused > N_FUZZED / 4


def test_there_are_enough_cases() -> None:
    assert len(FILES) >= 200 and N_FUZZED * len(READERS) >= 200


def test_the_payloads_are_live() -> None:
    pickle.loads(COMMON["a pickle"](b""))
    assert MARKER.exists()
    MARKER.unlink()


BOMBS = [
    (name, case)
    for name, case in FILES
    if any(word in case for word in ("bomb", "huge", "overflow", "2**", "length", "pixels", "chunk", "lies"))
    and case not in READERS[name].harmless
]

UNDER_LIMIT = """
import resource, sys
from pathlib import Path
import test_hostile_files as hostile
torch_is_up = hostile.torch.ones(9).sum()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + hostile.MORE_ADDRESSES
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        hostile.READERS[folder.name.split("-")[1]].read(folder / "run.json")
    except hostile.PanningError:
        print("refused")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_bombs_do_not_go_off_in_little_memory(tmp_path: Path) -> None:
    """Under a limit of address space: what libraries in C allocate is bounded too."""
    for number, (name, case) in enumerate(BOMBS):
        (folder := tmp_path / f"{number}-{name}").mkdir()
        (folder / "run.json").write_bytes({**COMMON, **READERS[name].crafted}[case](valid(name)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNDER_LIMIT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert len(BOMBS) > 40 and result.stdout.split() == ["refused"] * len(BOMBS)


@pytest.mark.parametrize("case", [*COMMON, *list(SAFETENSORS)[::8], *PLACES])
@pytest.mark.parametrize("command", ["show", "verify", "diff"])
def test_the_command_line_says_what_is_wrong(
    command: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, good = tmp_path / "mask.safetensors", tmp_path / "good.safetensors"
    good.write_bytes(valid("mask"))
    if case in PLACES:
        PLACES[case](file)
    else:
        file.write_bytes({**COMMON, **SAFETENSORS}[case](valid("mask")))
    with pytest.raises(SystemExit) as stopped:
        main(["mask", command, *([str(good)] if command == "diff" else []), str(file)])
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and not shown.out
    assert shown.err.startswith("error: ") and str(file) in shown.err and "Traceback" not in shown.err
    assert shown.err.replace("\n", "").isprintable()
