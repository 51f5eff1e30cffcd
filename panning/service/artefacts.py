"""The files that a job has left, by the hash of their content: what is asked for by a hash is that content and no other."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from panning.foundation.files import open_regular
from panning.service.folder import JobFolder

#: At most so many files of a job are told, and so many hashes remembered.
MOST_FILES, MOST_HASHES = 10_000, 50_000


@dataclass(frozen=True)
class Artefact:
    """A file that a run has left.

    Attributes:
        path: within the run's folder, with slashes.
        sha256: of the content, as 64 hexadecimal digits.
    """

    path: str
    n_bytes: int
    sha256: str


class Artefacts:
    """Finds the files of jobs, and remembers their hashes.

    >>> from pathlib import Path
    >>> from panning.service.artefacts import Artefacts
    >>> from panning.service.folder import JobFolder
    >>> folder = JobFolder(Path("jobs/9"))
    >>> folder.run.mkdir(parents=True, exist_ok=True)
    >>> _ = (folder.run / "mask").write_bytes(b"abc")
    >>> [found] = Artefacts().all(folder)
    >>> found.path, found.n_bytes, found.sha256[:8]
    ('mask', 3, 'ba7816bf')
    """

    def __init__(self) -> None:
        self._hashes: OrderedDict[tuple[int, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def all(self, folder: JobFolder) -> list[Artefact]:
        """What lies in the run's folder now: regular files, no links, and none whose name begins with a dot."""
        found = []
        for path in _files(folder.run):
            try:
                with open_regular(path, os.O_NOFOLLOW) as file:
                    found.append(Artefact(path.relative_to(folder.run).as_posix(), _size(file), self._hash(file)))
            except OSError:
                continue  # it is gone by now, or is no file
            if len(found) == MOST_FILES:
                break
        return found

    def open(self, folder: JobFolder, sha256: str) -> tuple[Artefact, BinaryIO] | None:
        """The file whose content has a hash, opened; None if there is none. The caller closes it."""
        for path in _files(folder.run):
            try:
                file = open_regular(path, os.O_NOFOLLOW)
            except OSError:
                continue
            if self._hash(file) == sha256:
                return Artefact(path.relative_to(folder.run).as_posix(), _size(file), sha256), file
            file.close()
        return None

    def _hash(self, file: BinaryIO) -> str:
        key = _state(file)
        with self._lock:
            if key in self._hashes:
                self._hashes.move_to_end(key)
                return self._hashes[key]
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        file.seek(0)
        found = digest.hexdigest()
        if _state(file) == key:  # a file that is still written has no hash that would stay
            with self._lock:
                self._hashes[key] = found
                while len(self._hashes) > MOST_HASHES:
                    self._hashes.popitem(last=False)
        return found


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What changes when a file does."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(filter(_is_shown, below))
        yield from (Path(folder, name) for name in sorted(filter(_is_shown, names)))


def _is_shown(name: str) -> bool:
    return name.isprintable() and not name.startswith(".")
