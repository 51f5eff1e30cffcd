"""Files: written aside and renamed, so that a reader never sees half of one; read with bounds, since anyone may have written
them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from filelock import FileLock, Timeout

from panning.foundation.errors import ConfigError, OutputError

MAX_IDENTITY_BYTES = 2**20


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text from outside. Its whole numbers may be of any size: who asks for one bounds it.

    Args:
        text: bytes are UTF-8; Python's own reader would take them for another code by their zeros, and load what decodes it.

    Raises:
        ValueError: also for a key that stands twice, NaN, infinity, 1e999, and what is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        return values

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    def finite(digits: str) -> float:
        if math.isinf(value := float(digits)):  # 1e999
            raise ValueError(f"{digits[:20]} is larger than any float")
        return value

    if isinstance(text, bytes):
        text = text.decode(errors="surrogatepass")
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """All of a file from outside.

    Raises:
        OSError: also for a pipe or device, which might never end, and for more than ``max_bytes``.
    """
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        if n_bytes > max_bytes:
            raise OSError(errno.EFBIG, f"it has {n_bytes} bytes, at most {max_bytes} are allowed")
        return file.read(n_bytes)


def open_regular(path: str | Path, flags: int = 0) -> BinaryIO:
    """A file from outside, opened for reading.

    The caller closes it.

    Args:
        flags: more of ``os.open``.

    Raises:
        OSError: also for a pipe or device, which might never end.
    """
    # Non-blocking, or opening a named pipe would wait for somebody to write into it.
    file = open(path, "rb", opener=lambda name, given: os.open(name, given | os.O_NONBLOCK | flags))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or device, not a regular file")
    return file


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
            # Half a letter (a surrogate), as of a name that is no UTF-8, is written out and loses no file.
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: str | Path) -> str:
    """The beginning of ``file_sha256``, by which manifests and jobs name a file's content."""
    return file_sha256(path)[:20]


def named_within(path: str | Path, *patterns: str) -> str:
    """What ends the refusal of a folder that was given in place of a file: the file in it that may be meant.

    Examples:
        >>> from pathlib import Path
        >>> from panning.foundation.files import named_within
        >>> Path("run").mkdir()
        >>> Path("run/mask.safetensors").touch()
        >>> named_within("run", "mask.safetensors", "*.safetensors")
        ' It is a folder: name a file in it, as run/mask.safetensors.'
    """
    found = [file for pattern in patterns for file in sorted(Path(path).glob(pattern))]
    return f" It is a folder: name a file in it, as {found[0]}." if found else ""


def claim_folder(out: Path, identity: dict[str, Any]) -> None:
    """Make a folder the home of one run: what goes on there later must be the same run.

    Raises:
        ConfigError: if the folder holds another run, naming what differs.
    """
    check_claim(out, identity)
    if not (path := out / "run.json").exists():
        write_atomic(path, json.dumps(identity, indent=2))


def check_claim(out: Path, identity: dict[str, Any]) -> None:
    """Raise what ``claim_folder`` would raise; nothing is written."""
    path = out / "run.json"
    if not path.exists():
        return
    try:
        held = strict_json(read_regular(path, MAX_IDENTITY_BYTES))
        if not isinstance(held, dict):
            raise ValueError("not an object")
    except ValueError:
        raise ConfigError(f"{path} is damaged; delete {out} to start again.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    if held.get("command") != identity.get("command"):
        raise ConfigError(f"{out} holds the run of another command; give another folder.")
    if held != identity:
        differing = ", ".join(_differing(held, identity))
        raise ConfigError(
            f"{out} holds another run (it differs in: {differing}); give another folder, or delete this one to start again."
        )


def _differing(held: dict[str, Any], identity: dict[str, Any], within: str = "") -> Iterator[str]:
    """Names of what differs, with both values where they are single ones."""
    for key in sorted({*held, *identity}):
        there, here, name = held.get(key), identity.get(key), f"{within}{key}"
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differing(there, here, f"{name}.")
        elif isinstance(there, dict | list) or isinstance(here, dict | list):
            yield name
        else:
            yield f"{name}: {there!r} there, {here!r} here"


def check_no_links(out: Path) -> None:
    """Refuse a run folder in which a symbolic link lies: what a run writes and believes lies in its folder, and a folder
    from elsewhere may point anywhere. The folder itself may be a link.

    Raises:
        OutputError: naming the first link.
    """
    folders = [out]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise OutputError(
                        f"{entry.path} is a link: a run writes and reads files of its own folder alone. Put the file itself "
                        "there, or give another folder."
                    )
                if entry.is_dir():
                    folders.append(Path(entry.path))


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Within, no other process writes the records of a folder: it would do the same work again.

    Raises:
        OutputError: if one does already, if links lie in the folder (``check_no_links``), or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}.") from None
    check_no_links(out)
    lock = FileLock(out / ".lock")  # the system's: a process that is killed gives it back
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"Another process writes to {out}: wait for it, or give another folder.") from None
    try:
        yield
    finally:
        lock.release()
