"""Generated and mutated files of every kind against what the check process of the service does with uploads.

    python docs/measure/upload_fuzz.py [N_FILES] [FIRST_SEED] [RECORD.json]

A worker makes and looks at one file after the other, as the check process does: each may take 2 s of the processor, or the
worker ends, and 1 GiB beside what it has. An audit hook sees what Python does meanwhile: code that is run from text, modules
that were not loaded, processes, sockets, libraries, pickles, other files. A worker that ends is counted, and another goes on
behind. The record says how many were found good, refused, or failed by what is no sentence of ours.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import platform
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
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
from panning.foundation.errors import PanningError
from panning.foundation.tensorfile import packed
from panning.masks.file import dump_masks
from panning.models.vocabulary import FUNCTIONS, LAYERS, METHODS
from panning.service.checker import at_most
from panning.service.checks import FILE_BYTES, FILE_S
from panning.service.files import KINDS, look_at
from panning.service.words import UploadError

#: Audit events that the check of an upload may not cause. "import" counts for modules that are not loaded yet, and
#: "open" for files other than the upload.
WATCHED = (
    "import", "exec", "open", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "ctypes.dlopen", "ctypes.dlsym",
    "pickle.find_class", "marshal.loads", "marshal.load", "shutil.rmtree", "os.remove", "os.rename", "os.mkdir", "os.chmod",
    "os.symlink", "os.link", "os.putenv",
)  # fmt: skip
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
#: Files that one worker looks at.
PER_WORKER = 10_000
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


# --- looking ---


class Watch:
    """Counts the events of ``WATCHED`` that Python reports while the watch is on."""

    def __init__(self) -> None:
        self.allowed = ""
        self.is_on = False
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.is_on or event not in WATCHED:
            return
        if event == "open" and args and str(args[0]) in (self.allowed, "/proc/self/statm"):
            return
        if event == "import" and args[0] in sys.modules:
            return
        self.seen[f"{event} {str(args[0])[:60] if args else ''}"] += 1


def look(path: Path, kind: str, watch: Watch) -> str:
    """How a file is found: good, refused, or by which exception it fails."""
    watch.allowed, watch.is_on = str(path), True
    try:
        with at_most(FILE_BYTES):
            look_at(path, kind)  # type: ignore[arg-type]
        return "good"
    except UploadError as error:
        watch.is_on = False
        assert str(path) not in str(error)
        return "refused"
    except (PanningError, MemoryError):
        return "refused"
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error)[:80]}"
    finally:
        watch.is_on = False


def work(first: int, last: int) -> None:
    """Look at the files of these seeds; a line of JSON before each hundredth, and one at the end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    good, watch = good_files(), Watch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        for kind, data in good:
            path.write_bytes(data)
            assert (found := look(path, kind, watch)) == "good", (kind, found)
        for seed in range(500):  # what is imported once is loaded now
            kind, data = mutated(-seed - 1, good)
            path.write_bytes(data)
            look(path, kind, watch)
        watch.seen.clear()
        for seed in range(first, last):
            kind, data = mutated(seed, good)
            path.write_bytes(data)
            print(json.dumps({"begun": seed}), flush=True)
            signal.setitimer(signal.ITIMER_PROF, FILE_S)
            began = time.process_time()
            found = look(path, kind, watch)
            signal.setitimer(signal.ITIMER_PROF, 0)
            took = time.process_time() - began
            print(json.dumps({"kind": kind, "found": found, "s": round(took, 4), "seen": watch.seen}), flush=True)
            watch.seen.clear()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_mib": int(peak.split()[1]) // 1024}), flush=True)


def fuzz(n: int, first: int) -> dict[str, Any]:
    """Look at ``n`` files in workers, or until SIGTERM; what was found."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    found, seen, slow, ends, slowest, peak, seed = Counter[str](), Counter[str](), 0, list[str](), 0.0, 0, first
    while seed < first + n and not stops:
        last = min(first + n, seed + PER_WORKER)
        command = [sys.executable, __file__, "--work", str(seed), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                if stops:
                    worker.kill()
                    break
                values = json.loads(line)
                if "begun" in values:
                    seed = values["begun"] + 1
                elif "peak_mib" in values:
                    peak = max(peak, values["peak_mib"])
                else:
                    found[f"{values['kind']}: {values['found']}"] += 1
                    seen.update(values["seen"])
                    slowest = max(slowest, values["s"])
        if stops:
            break
        if worker.returncode == -signal.SIGPROF:
            slow += 1
        elif worker.returncode:
            ends.append(f"seed {seed - 1}: exit code {worker.returncode}")
            if len(ends) > 20:
                break
        print(f"{seed - first} of {n}: {dict(found)}, {slow} too slow, {len(ends)} ended", file=sys.stderr, flush=True)
    return {
        "n_files": seed - first, "first_seed": first, "found": dict(sorted(found.items())), "executed": dict(seen),
        "took_over_2_s": slow, "crashed": ends, "slowest_s": slowest, "peak_mib": peak, "torch": torch.__version__,
        "python": platform.python_version(), "machine": platform.machine(),
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
        return
    n, first = (int(text) for text in [*sys.argv[1:3], *("100000", "0")[len(sys.argv[1:3]) :]])
    record = json.dumps(fuzz(n, first), indent=2)
    print(record)
    with contextlib.suppress(IndexError):
        Path(sys.argv[3]).write_text(record + "\n")


if __name__ == "__main__":
    main()
