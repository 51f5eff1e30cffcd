"""A cache of results on disk, shared by processes and runs: one SQLite file, bounded in size.

A cache changes when something is known, never what: whoever reads it must be able to compute the same value, and an entry is
found by the hash of all that the value depends on, the package's own code included (``code_digest``). So a cache that
is damaged, full or not writable costs time alone; the first such case is told by a warning.

A connection lives for one call: nothing is shared with forked processes, nothing is pickled, and SQLite's own locks keep
writers apart. No write-ahead log is used, which network file systems cannot keep.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panning.foundation.files import strict_json
from panning.foundation.machine import environment_info, source_digest
from panning.foundation.records import canonical_json, content_key

#: The variable that names the folder of caches; ``off`` turns them off.
VARIABLE, OFF = "PANNING_CACHE", "off"
#: The file of short trainings that judge masks, in a folder of caches.
REWARDS = "rewards.sqlite"
#: Entries of one file; the oldest go first. An entry of figures takes some 200 bytes.
MAX_ENTRIES = 100_000
#: How long a process waits for another that writes.
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Cache:
    """Values by the content of what they are results of; JSON on both sides.

    Attributes:
        path: of the file, made when the first value is put in.
        max_entries: the oldest are dropped beyond it.

    Examples:
        >>> from pathlib import Path
        >>> from panning.foundation.cache import Cache
        >>> cache = Cache(Path("cache/rewards.sqlite"))
        >>> cache.put({"mask": "0a1b", "seed": 3}, {"accuracy": 0.5})
        >>> cache.get({"seed": 3, "mask": "0a1b"}), cache.get({"mask": "0a1b"})
        ({'accuracy': 0.5}, None)
    """

    path: Path
    max_entries: int = MAX_ENTRIES

    def get(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The value of an entry; None where there is none, or the file cannot be read."""
        if not self.path.exists():
            return None
        with self._excused():
            with self._open() as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone():
                    return None  # another process is about to make the table
                found = connection.execute("SELECT value FROM entries WHERE key = ?", (content_key(asked),)).fetchone()
            value = None if found is None else strict_json(found[0])
            return value if isinstance(value, dict) else None
        return None

    def put(self, asked: dict[str, Any], value: dict[str, Any]) -> None:
        """Keep a value; an entry that is there already stays."""
        row = content_key(asked), canonical_json(value)
        with self._excused():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection, connection:  # the second commits
                connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT UNIQUE, value TEXT NOT NULL)")
                connection.execute("INSERT OR IGNORE INTO entries VALUES (?, ?)", row)
                newest = "SELECT rowid FROM entries ORDER BY rowid DESC LIMIT 1 OFFSET ?"
                connection.execute(f"DELETE FROM entries WHERE rowid <= ({newest})", (self.max_entries,))

    def __len__(self) -> int:
        if not self.path.exists():
            return 0
        with self._open() as connection:
            return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    def _open(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(self.path, timeout=TIMEOUT_S))

    @contextlib.contextmanager
    def _excused(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            _warn(self.path, f"{type(error).__name__}: {error}")


@functools.cache
def _warn(path: Path, why: str) -> None:
    warnings.warn(
        f"The cache {path} cannot be used ({why}), so what it would tell is computed again. Delete the file, or set "
        f"{VARIABLE} to another folder or to '{OFF}'.",
        stacklevel=2,
    )


def cache_folder() -> Path | None:
    """The folder of caches: ``PANNING_CACHE``, or else the system's for a user's caches; None if they are off."""
    given = os.environ.get(VARIABLE)
    if given == OFF:
        return None
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "panning"


def code_digest() -> dict[str, Any]:
    """What a computed figure depends on beside its description: this package's code, the versions, the processor's kind.

    A change of any source file makes old entries unfindable. That is more often than needed, and never too seldom.
    """
    info = environment_info()
    return {"code": source_digest(), "versions": info["versions"], "hardware": info["hardware"]}
