"""Records: every number that is shown comes from one, with the config, seed, commit, versions and hardware behind it.

The record store is JSON lines, appended with fsync; a torn last line (a killed process) is dropped by the next reader.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from panning.foundation.errors import OutputError, PanningError
from panning.foundation.files import read_regular, strict_json

#: More than this is no record of ours, and is not read.
MAX_RECORDS_BYTES = 2**30


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
