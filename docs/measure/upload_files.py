"""Files of every kind that may be uploaded, as the package writes them, and mutated or generated ones by seed: what
upload_fuzz.py shows to the check process of the service.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import panning
from panning.episode.actions import ActionSpec
from panning.episode.observations import STANDARD
from panning.episode.policy_net import PolicyNet, dump_policy
from panning.foundation.tensorfile import packed
from panning.masks.file import dump_masks
from panning.models.vocabulary import FUNCTIONS, LAYERS, METHODS
from panning.service.files import KINDS

#: What stands in place of a header's values.
HOSTILE: list[Any] = [
    "os.system", "__import__", "builtins.eval", "../../etc/passwd", "/etc/passwd", "__class__", "__init__", "__dict__",
    "forward", "a" * 300, "\x00", "\u202e", "", "cuda", "meta", "inf", None, True, False, 0, -1, 1, 2, 3, 7, 64,
    10**6, 2**31, 2**40, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e308, [], {}, [[]], [0] * 50, {"node": 0}, {"node": -1},
    {"node": 10**9},
    {"tuple": []}, {"slice": [None, None, None]}, {"slice": [0, 2**62, 1]}, {"dtype": "float64"}, {"dtype": "object"},
    {"dict": {"a": 1}}, {"float": "nan"}, {"ellipsis": "..."}, {"memory_format": "channels_last"}, {"code": "print(1)"},
]  # fmt: skip
DESCR = [
    "|O",
    "|u1",
    "<f8",
    "<i8",
    "|V4096",
    "<U1000000",
    "[('a','|O')]",
    "|S2147483647",
    "<M8[ns]",
    "__import__('os')",
]
FIELDS = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "num_features", "p", "function", "axis",
)  # fmt: skip
#: What a file is said to be, and its bytes.
File = tuple[str, bytes]


# --- good files ---


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        x = x + self.norm(self.b(x)) * self.shift
        return self.last(x.mean((2, 3)).reshape(x.shape[0], -1))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.gru, self.last = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LSTM(8, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, x[:, :1]], dim=1)
        x = self.attention(x, x, x)[0]
        return self.last(self.gru(x)[0][:, -1])  # type: ignore[no-any-return]


def _network(model: nn.Module, *shape: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        panning.save_network(model, path := Path(folder) / "n", torch.ones(2, *shape))
        return path.read_bytes()


def _npz(compression: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for part in ("train", "test"):
            for name, array in (("images", np.zeros((6, 8, 8), np.uint8)), ("labels", np.arange(6) % 3)):
                data = io.BytesIO()
                np.save(data, array)
                archive.writestr(f"{part}_{name}.npy", data.getvalue())
    return made.getvalue()


def _policy(form: str) -> bytes:
    spec = ActionSpec(form=form)  # type: ignore[arg-type]
    sizes = [len(STANDARD), 8, len(spec.dimensions) if form == "mix" else sum(spec.choices)]
    weights = tuple(np.zeros((out, n), np.float32) for n, out in zip(sizes[:-1], sizes[1:], strict=True))
    biases = tuple(np.zeros(out, np.float32) for out in sizes[1:])
    log_std = np.zeros(sizes[-1] if form == "mix" else 0, np.float32)
    return dump_policy(PolicyNet(spec, 5, weights, biases, log_std, {"seed": 1}))


def good_files() -> list[File]:
    """Files of every kind, as the package writes them."""
    masks = panning.Masks.from_tensors({"a": torch.arange(27) % 3 == 0, "b.weight": torch.ones(4, 5)}, {"seed": 3})
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    return [
        ("network", _network(small, 1, 8, 8)), ("network", _network(_Residual(), 3, 8, 8)),
        ("network", _network(_Attention(), 5, 8)),
        ("masks", dump_masks(masks)), ("masks", dump_masks(masks, packed=False)),
        ("weights", packed({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.int64)})),
        ("policy", _policy("mix")), ("policy", _policy("pick")),
        *(("data", _npz(how)) for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
    ]  # fmt: skip


# --- mutations ---


def _bytes_changed(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        at = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(min(len(changed), 64))
        changed[at] = rng.choice((rng.randrange(256), 0, 255, changed[at] ^ (1 << rng.randrange(8))))
    return bytes(changed)


def _cut_or_spliced(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice(
        (data[:a], data[b:], data[:a] + data[b:], data[:b] + data[a:], data[:a] + rng.randbytes(b - a) + data[b:])
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def _json_changed(value: Any, rng: random.Random, words: list[Any]) -> None:
    """Change some of the values, keys and lengths of a JSON value."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not (places := list(_places(value))):
            return
        holder, key = rng.choice(places)
        old = holder[key]
        match rng.randrange(7):
            case 0:
                holder[key] = copy.deepcopy(rng.choice(HOSTILE))
            case 1:
                other, its = rng.choice(places)
                holder[key] = json.loads(json.dumps(other[its]))
            case 2 if isinstance(holder, dict):
                holder[str(rng.choice(words))[:300]] = holder.pop(key)
            case 3:
                del holder[key]
            case 4 if isinstance(old, int) and not isinstance(old, bool):
                holder[key] = rng.choice((old + 1, old - 1, -old, old * 2**20, old * 1000, 2 ** rng.randrange(70)))
            case 5 if isinstance(old, list) and old:
                holder[key] = old * rng.choice((2, 3, 100))
            case _:
                holder[key] = copy.deepcopy(rng.choice(words))


#: Names that mean something to a reader, where a name stands.
WORDS: list[Any] = [*FUNCTIONS, *LAYERS, *METHODS, "function", "method", "layer", "tensor", *HOSTILE]


def _header_changed(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or another graph, description or set of facts in it."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    held = header.get("__metadata__", {})
    inner = [key for key, text in held.items() if text.startswith("{")]
    if inner and rng.random() < 0.8:
        key = rng.choice(inner)
        value = json.loads(held[key])
        _json_changed(value, rng, WORDS)
        held[key] = json.dumps(value)
    else:
        _json_changed(header, rng, ["F32", "U8", "BOOL", "I64", "F8_E4M3", "__metadata__", *HOSTILE])
    text = json.dumps(header).encode()
    size = len(text) if rng.random() < 0.95 else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63))
    return (size % 2**64).to_bytes(8, "little") + text + rest


def _generated(rng: random.Random) -> bytes:
    """A network file of steps drawn from the tables."""
    nodes: list[Any] = []
    for _ in range(rng.randrange(1, 12)):
        args = [{"node": rng.randrange(len(nodes) + 1)}, *rng.choices(HOSTILE, k=rng.randrange(3))]
        op = rng.choice(("function", "function", "method", "layer"))
        target = rng.choice(list({"function": FUNCTIONS, "method": METHODS, "layer": ["l"]}[op]))
        nodes.append({"op": op, "target": target, "args": args, "kwargs": {}})
        if rng.random() < 0.1:
            nodes[-1]["kwargs"] = {rng.choice(("dim", "dtype", "device", "out", "size")): rng.choice(HOSTILE)}
    shape = [rng.choice((1, 2, 2, 3, 8, 2**20, 0)) for _ in range(rng.randrange(1, 5))]
    layer = rng.choice(list(LAYERS))
    fields = {name: rng.choice((1, 2, 3, *HOSTILE)) for name in rng.choices(FIELDS, k=3)}
    layers = {"l": {"kind": layer, "fields": fields}} if rng.random() < 0.4 else {}
    graph = {
        "format": "panning-network", "version": 1, "inputs": [{"name": "x", "shape": shape, "dtype": "float32"}],
        "layers": layers, "nodes": nodes, "output": {"node": len(nodes)},
    }  # fmt: skip
    text = json.dumps({"__metadata__": {"network": json.dumps(graph)}}).encode()
    return len(text).to_bytes(8, "little") + text


def _archive_changed(data: bytes, rng: random.Random) -> bytes:
    """An .npz with other headers of arrays, names or sizes in its directory."""
    made = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w", how) as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if rng.random() < 0.4:
                shape = tuple(rng.choice((0, 1, 6, 8, 28, -1, 2**20, 2**40, 2**63)) for _ in range(rng.randrange(5)))
                header = f"{{'descr': '{rng.choice(DESCR)}', 'fortran_order': False, 'shape': {shape}, }}"
                header = rng.choice(
                    (header, header, header[: rng.randrange(len(header))], "[" * 90, "9**9**9", "lambda: 0")
                )
                text = header.encode().ljust(118) + b"\n"
                content = (
                    b"\x93NUMPY\x01\x00"
                    + struct.pack("<H", len(text))
                    + text
                    + rng.choice((content[128:], b"", b"\0" * 99))
                )
            elif rng.random() < 0.02:
                content = content[:128] + bytes(1 << rng.randrange(10, 24))  # packs a thousand to one
            changed.writestr(rng.choice((name, name, name, name, "../" + name, "val_images.npy")), content)
    found = made.getvalue()
    return _bytes_changed(found[-300:], rng).join((found[:-300], b"")) if rng.random() < 0.3 else found


def mutated(seed: int, good: list[File]) -> File:
    """The file of a seed, and what it is said to be."""
    rng = random.Random(seed)
    kind, data = rng.choice(good)
    if rng.random() < 0.05:
        return rng.choice(list(KINDS)), data  # a good file of another kind, mostly
    if kind == "network" and rng.random() < 0.2:
        return kind, _generated(rng)
    deep = _archive_changed if kind == "data" else _header_changed
    ways: list[Callable[[bytes, random.Random], bytes]] = [deep, deep, deep, _bytes_changed, _cut_or_spliced]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        return kind, rng.choice(ways)(data, rng)
