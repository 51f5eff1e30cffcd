"""Records: every number that is shown comes from one, with the config, seed, commit, versions and hardware behind it.

Files are written aside and renamed, so that a reader never sees half of one; the record store is JSON lines, appended
with fsync, and a torn last line (a killed process) is dropped by the next reader.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from panning.errors import ConfigError, OutputError, PanningError

#: More than this is no record of ours, and is not read.
MAX_RECORDS_BYTES = 2**30
MAX_IDENTITY_BYTES = 2**20

VERSIONED_PACKAGES = ("panning", "torch", "torchvision", "numpy", "gymnasium", "stable-baselines3", "ray")


@dataclass(frozen=True)
class RunRecord:
    """One finished evaluation.

    ``key`` identifies what was asked (a content hash of ``config``), so that a store never holds the same work twice.
    """

    key: str
    kind: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)


def content_key(config: Any) -> str:
    """A short hash that is equal for equal JSON-able values, whatever the order of their keys."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:20]


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text from outside.

    Raises:
        ValueError: also for a key that stands twice, NaN, infinity, and what is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        return values

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """All of a file from outside.

    Raises:
        OSError: also for a pipe or device, which might never end, and for more than ``max_bytes``.
    """
    # Non-blocking, or opening a named pipe would wait for somebody to write into it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or device, not a regular file")
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, at most {max_bytes} are allowed")
        return file.read(status.st_size)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds either what it held before or all of it."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a folder; name a file.")
    try:
        _write_aside_and_rename(path, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None


def _write_aside_and_rename(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def claim_folder(out: Path, identity: dict[str, Any]) -> None:
    """Make a folder the home of one run: what goes on there later must be the same run.

    Raises:
        ConfigError: if the folder holds another run, naming what differs.
    """
    path = out / "run.json"
    if not path.exists():
        write_atomic(path, json.dumps(identity, indent=2))
        return
    try:
        held = strict_json(read_regular(path, MAX_IDENTITY_BYTES))
        if not isinstance(held, dict):
            raise ValueError("not an object")
    except ValueError:
        raise ConfigError(f"{path} is damaged; delete {out} to start again.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    if held != identity:
        differing = sorted(k for k in {*held, *identity} if held.get(k) != identity.get(k))
        raise ConfigError(
            f"{out} holds another run (it differs in: {', '.join(differing)}); give another --out, or delete the folder "
            "to start again."
        )


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Within, no other process writes the records of a folder: it would do the same work again.

    Raises:
        OutputError: if one does already.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")  # the system's: a process that is killed gives it back
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"Another process writes to {out}: wait for it, or give another --out.") from None
    try:
        yield
    finally:
        lock.release()


class RecordStore:
    """An append-only file of records, one JSON object a line, one writing process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._records = {record.key: record for record in read_records(self.path)} if self.path.exists() else {}

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> RunRecord:
        return self._records[key]

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: RunRecord) -> None:
        """Add a record durably; one with a key that is already there is refused."""
        if record.key in self._records:
            raise PanningError(f"{self.path} already holds a record with the key {record.key}.")
        line = canonical_json(asdict(record)) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _mend_tail(self.path)
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from None
        self._records[record.key] = record


def read_records(path: str | Path) -> list[RunRecord]:
    """All complete records of a file; a last line that was torn is left out.

    Raises:
        PanningError: if the file cannot be read, or a line is no record.
    """
    try:
        lines = read_regular(path, MAX_RECORDS_BYTES).split(b"\n")
    except OSError as error:
        raise PanningError(f"{path} cannot be read: {error.strerror or error}.") from None
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(_record(strict_json(line)))
        except (ValueError, TypeError) as error:
            raise PanningError(f"{path}, line {number}: not a record ({error}).") from None
    return [*records, *_whole(lines[-1])]


def _whole(tail: bytes) -> list[RunRecord]:
    """The record of a last line that lacks its end of line alone; none if it is torn or empty."""
    try:
        return [_record(strict_json(tail))]
    except (ValueError, TypeError):
        return []


def _record(values: dict[str, Any]) -> RunRecord:
    record = RunRecord(**values)
    for name, kind in (("key", str), ("kind", str), ("config", dict), ("metrics", dict), ("environment", dict)):
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"'{name}' is no {kind.__name__}")
    return record


def _mend_tail(path: Path) -> None:
    """End the last line, or drop it if it was torn."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        data = file.read()
        start = data.rfind(b"\n") + 1
        if _whole(data[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)


@functools.cache
def _environment() -> str:
    versions = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return json.dumps(
        {
            "versions": {"python": platform.python_version(), **versions},
            "commit": _commit(),
            "hardware": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "system": platform.system(),
                "instructions": _instructions(),
            },
        }
    )


def environment_info() -> dict[str, Any]:
    """Versions of what computes, commit of the checkout (None outside one) and hardware; no path, no host name."""
    info: dict[str, Any] = json.loads(_environment())
    return info


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _instructions() -> str | None:
    """What kernels use of the processor, where torch computes: sums of another width round otherwise."""
    torch = sys.modules.get("torch")
    return None if torch is None else str(torch.backends.cpu.get_cpu_capability())


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
