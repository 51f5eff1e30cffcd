"""Records: every number that is shown comes from one, with the config, seed, commit, versions and hardware behind it.

The store is JSON lines, appended with fsync by one process, which keeps the file open and an index of keys in memory, so
that an append costs the same however many there are. A last line that was torn, by a killed process or a full disk, is left
out by readers and written over by the next writer. What an environment says stands once in the file, on a line of the kind
``environment`` before the first record that names it by its key; older files have it in every record, which is read alike.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from panning.foundation.errors import OutputError, PanningError
from panning.foundation.files import open_regular, strict_json

#: A longer line is no record of ours: it is neither written nor read. Files may have any size.
MAX_LINE_BYTES = 2**24
ENVIRONMENT = "environment"
#: Looks at a record that is read; raises ValueError with what is wrong with it.
Check = Callable[["RunRecord"], object]
#: Looks at key, kind, config and the JSON of the metrics of a record: the JSON of the config, as ``canonical_json`` has it,
#: of one that the store's ``Check`` takes; None where that is not known, which the check then says.
QuickCheck = Callable[[str, str, dict[str, Any], str], str | None]
_text = json.encoder.encode_basestring_ascii
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


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

    @functools.cached_property
    def texts(self) -> tuple[str, str, str]:
        """The JSON of config, environment and metrics, made once for checks and file, which cost most of keeping a record.

        Raises:
            ValueError, TypeError: if one of them is no JSON.
        """
        return canonical_json(self.config), canonical_json(self.environment), canonical_json(self.metrics)


def content_key(config: Any) -> str:
    """A short hash that is equal for equal JSON-able values, whatever the order of their keys."""
    return hash_of(canonical_json(config))


def hash_of(text: str) -> str:
    """``content_key`` of a value whose canonical JSON this is."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def canonical_json(value: Any) -> str:
    return _ENCODER.encode(value)


def read_records(path: str | Path, check: Check = lambda _: None) -> list[RunRecord]:
    """All complete records of a file; a last line that was torn is left out.

    Raises:
        PanningError: if the file cannot be read, or a line is no record, or not one that ``check`` takes; with its number.
    """
    with _Journal(Path(path)) as journal:
        return [record for _, record in journal.records(check)]


class RecordStore:
    """An append-only file of records, one JSON object a line, one writing process (``sole_writer``).

    Args:
        quick: says of most records without more ado that ``check`` takes them.
        is_durable: whether each record is on the disk when ``append`` returns; without it a loss of power, though no end of
            the process, may cost the last ones.

    Raises:
        PanningError: as ``read_records``.
    """

    def __init__(
        self,
        path: str | Path,
        check: Check = lambda _: None,
        *,
        quick: QuickCheck | None = None,
        is_durable: bool = True,
    ) -> None:
        self.path = Path(path)
        self._is_durable = is_durable
        self._places: dict[str, int] = {}  # key -> where its line begins
        self._environments: dict[str, dict[str, Any]] = {}
        self._end = 0  # of the last whole line
        self._tail = b""
        self._size = 0  # of the file, as this process left or found it
        self._fd: int | None = None
        if os.path.lexists(self.path):
            with _Journal(self.path, os.O_NOFOLLOW) as journal:
                self._places = {key: place for place, key in journal.keys(check, quick)}
                self._environments, self._end, self._tail = journal.environments, journal.end, journal.tail
                self._size = self._end + len(self._tail)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> RunRecord:
        with _Journal(self.path, os.O_NOFOLLOW) as journal:
            journal.environments = self._environments
            return journal.record_at(self._places[key])

    def __iter__(self) -> Iterator[RunRecord]:
        """Every record, in the order in which they were written; read from the file again, which was checked at opening."""
        if not self._places:
            return
        with _Journal(self.path, os.O_NOFOLLOW) as journal:
            for _, record in journal.records():
                yield record

    def __len__(self) -> int:
        return len(self._places)

    def append(self, record: RunRecord) -> None:
        """Add a record durably; one with a key that is already there is refused.

        Raises:
            PanningError: for such a key, and a record that is longer than what is read (``MAX_LINE_BYTES``).
            OutputError: if it cannot be written. The file then holds what it held before.
        """
        if record.key in self._places:
            raise PanningError(f"{self.path} already holds a record with the key {record.key}.")
        known, lines, named = self._environments, b"", record.texts[1]
        if record.environment:
            if (key := hash_of(named)) not in known:
                lines = record_line(RunRecord(key, ENVIRONMENT, {}, {}, record.environment)).encode()
                known = {**known, key: record.environment}
            named = _text(key)  # in its place
        line = record_line(record, named).encode()
        if len(line) > MAX_LINE_BYTES:
            raise PanningError(f"The record {record.key} has {len(line)} bytes, more than {MAX_LINE_BYTES}; not kept.")
        try:
            self._write(lines + line)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from None
        self._places[record.key] = self._end - len(line)
        self._environments = known

    def _write(self, data: bytes) -> None:
        """Append, whole or not at all."""
        fd = self._opened()
        if os.fstat(fd).st_size != self._size:
            raise OSError(errno.EBUSY, "another process has written to it; let one run use a folder")
        if self._size > self._end:
            self._mend(fd)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(fd, left) :]
            if self._is_durable:
                os.fsync(fd)
        except OSError:
            self._size = self._end + len(data) - len(left)
            os.ftruncate(fd, self._end)  # if not even this is possible, the next append begins with it
            self._size = self._end
            raise
        self._size = self._end = self._end + len(data)

    def _opened(self) -> int:
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, self._fd)
        return self._fd

    def _mend(self, fd: int) -> None:
        """End the last line, or drop it if it was torn; what never was a record of ours is left as it is, and refused."""
        if _is_whole(whole := self._tail.rstrip(b"\0")):
            os.ftruncate(fd, self._end + len(whole))
            os.write(fd, b"\n")
            self._end += len(whole) + 1
        elif self._tail and not _is_torn(self._tail):
            raise OSError(errno.EINVAL, "its last line never was a record; move the file away")
        else:
            os.ftruncate(fd, self._end)
        self._size, self._tail = self._end, b""


class _Journal:
    """A file of records that is being read.

    Attributes:
        end: of the last whole line so far, in bytes.
        tail: what follows the last end of line; known once all records were read.
    """

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.path = path
        self.environments: dict[str, dict[str, Any]] = {}
        self.end, self.tail = 0, b""
        try:
            self._file = open_regular(path, flags)
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
            raise PanningError(f"{path} cannot be read: {reason}.") from None

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def records(self, check: Check = lambda _: None) -> Iterator[tuple[int, RunRecord]]:
        """Every record with the place where its line begins."""
        return ((place, found) for place, found in self._read_all(check, None) if isinstance(found, RunRecord))

    def keys(self, check: Check, quick: QuickCheck | None) -> Iterator[tuple[int, str]]:
        """Every record's key with the place where its line begins."""
        for place, found in self._read_all(check, quick):
            yield place, found if isinstance(found, str) else found.key

    def _read_all(self, check: Check, quick: QuickCheck | None) -> Iterator[tuple[int, RunRecord | str]]:
        """Every record, or only the key of one that was looked at quickly, with the place where its line begins."""
        number = 0
        while line := self._line(number := number + 1):
            if quick is not None and (key := self._quickly(line, quick)) is not None:
                yield self.end, key
                self.end += len(line)
                continue
            if not line.endswith(b"\n"):
                self.tail, line = line, line.rstrip(b"\0")
                if not _is_whole(line):  # else it lacks its end alone
                    return
            record = self._read(line, number, check)
            if record.kind == ENVIRONMENT:
                self.environments[record.key] = record.environment
            else:
                yield self.end, record
            self.end += 0 if self.tail else len(line)

    def _quickly(self, line: bytes, quick: QuickCheck) -> str | None:
        """The key of a record that stands there as it was written here, byte for byte; None of any other line.

        A parser that is fast and not strict reads it. What was read is written again: where that is the same text, no key
        stands twice, and a strict parser reads the same.
        """
        try:
            values = from_json(line, allow_inf_nan=False)
            key, kind, named, config = values["key"], values["kind"], values["environment"], values["config"]
            are_texts = type(key) is type(kind) is type(named) is str
            if not are_texts or type(config) is not dict or named not in self.environments:
                return None
            metrics = to_json(values["metrics"]).decode()
            if not line.endswith(f"{metrics}}}\n".encode()):  # as with numbers and letters that it writes otherwise
                metrics = canonical_json(values["metrics"])
            if kind == ENVIRONMENT or metrics[0] != "{" or (said := quick(key, kind, config, metrics)) is None:
                return None
            names = f'"environment":{_text(named)},"key":{_text(key)},"kind":{_text(kind)}'
            return key if line == f'{{"config":{said},{names},"metrics":{metrics}}}\n'.encode() else None
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None  # the strict parser says what is wrong

    def record_at(self, place: int) -> RunRecord:
        """The record whose line begins at ``place``."""
        self._file.seek(place)
        return self._read(self._line(0).rstrip(b"\0"), 0, lambda _: None)

    def _line(self, number: int) -> bytes:
        try:
            line = self._file.readline(MAX_LINE_BYTES + 1)
        except OSError as error:
            raise PanningError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        if len(line) > MAX_LINE_BYTES:
            raise PanningError(f"{self.path}, line {number}: not a record (it has more than {MAX_LINE_BYTES} bytes).")
        return line

    def _read(self, line: bytes, number: int, check: Check) -> RunRecord:
        try:
            record = self._resolved(strict_json(line))
            if record.kind != ENVIRONMENT:
                check(record)
            return record
        except (ValueError, TypeError) as error:
            place = f", line {number}" if number else ""
            raise PanningError(f"{self.path}{place}: not a record ({error}).") from None

    def _resolved(self, values: Any) -> RunRecord:
        record = RunRecord(**values)
        named: object = record.environment
        if isinstance(named, str):
            if named not in self.environments:
                raise ValueError(f"its environment {named[:20]!r} stands on no line before it")
            record = replace(record, environment=self.environments[named])
        for name, kind in (("key", str), ("kind", str), ("config", dict), ("metrics", dict), ("environment", dict)):
            if not isinstance(getattr(record, name), kind):
                raise TypeError(f"'{name}' is no {kind.__name__}")
        return record


def record_line(record: RunRecord, environment: str | None = None) -> str:
    """A record as it stands in a file: whole, or with this JSON in place of its environment."""
    config, whole, metrics = record.texts
    names = f'"environment":{environment or whole},"key":{_text(record.key)},"kind":{_text(record.kind)}'
    return f'{{"config":{config},{names},"metrics":{metrics}}}\n'


def _is_whole(tail: bytes) -> bool:
    """Whether a last line is a record that lacks its end of line alone; no begin of one is JSON."""
    try:
        values = strict_json(tail)
    except ValueError:
        return False
    return isinstance(values, dict) and {"key", "kind", "config", "metrics"} <= values.keys()


def _is_torn(tail: bytes) -> bool:
    """Whether a last line is the begin of a record, or blocks that a full disk or a crash left empty."""
    begun = tail.rstrip(b"\0")
    if b'{"'.startswith(begun[:2]):
        try:
            strict_json(begun)
        except ValueError:
            return True
    return not begun
