"""The events of a job in a file: append-only, one writer; the number of a line, from 1, is the event's id.

A reader that knows the last id that it has seen goes on behind it, whatever was killed meanwhile. Progress ticks (rounds,
epochs, rollouts, jobs) are at most ten a second over time: of those that come faster the last stands for all. Every other
event is written, and at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from panning.foundation.errors import PanningError
from panning.foundation.progress import Event

#: Kinds of which the last stands for those before it.
TICKS = {"round", "epoch", "rollout", "job"}
#: Ticks a second, over time; what is no tick counts.
RATE = 10.0
#: A tick waits no longer, even behind many events that are none.
MOST_WAIT_S = 1.0
#: No line is longer; what would be loses its largest facts.
MAX_LINE_BYTES = 64 << 10


class EventLog(AbstractContextManager["EventLog"]):
    """Writes events, as a listener of a run.

    >>> from pathlib import Path
    >>> from panning.foundation.progress import Event
    >>> from panning.service.events import EventLog, read_events
    >>> with EventLog(Path("events.jsonl")) as log:
    ...     for done in range(100):
    ...         log.hear(Event("pruning", done, 99, "round"))
    >>> [(number, event["done"]) for number, event in read_events(Path("events.jsonl"))]
    [(1, 0), (2, 99)]

    Args:
        clock: in seconds, for the rate.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._size = _whole_lines(path)
        self._clock = clock
        self._next = clock()  # when a tick may be written
        self._held: bytes | None = None
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._flush_in_time, name="events", daemon=True)
        self._thread.start()

    def hear(self, event: Event) -> None:
        """Take in an event."""
        line = _line(event)
        with self._changed:
            now = self._clock()
            if event.kind in TICKS and now < self._next:
                self._held = line
                self._changed.notify()
                return
            if event.kind not in TICKS:
                self._write_held()  # the order stays
            self._held = None
            self._write(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_open = False
            self._write_held()
            self._changed.notify()
        self._thread.join()
        os.close(self._file)

    def _write_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._write(held)

    def _write(self, line: bytes) -> None:
        now = self._clock()
        self._next = min(max(self._next, now) + 1 / RATE, now + MOST_WAIT_S)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._size)  # half a line would spoil the next
            raise
        self._size += len(line)

    def _flush_in_time(self) -> None:
        """Write the held tick once its time has come, though no further event does."""
        with self._changed:
            while self._is_open:
                wait = None if self._held is None else max(0.0, self._next - self._clock())
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                else:
                    with contextlib.suppress(OSError):  # a full disk: the next event says so to the run
                        self._write_held()


def _line(event: Event) -> bytes:
    values: dict[str, Any] = {"time": round(time.time(), 3), **event.as_json()}
    line = json.dumps(values).encode() + b"\n"
    while len(line) > MAX_LINE_BYTES and values["facts"]:
        facts = values["facts"]
        facts.pop(max(facts, key=lambda name: len(json.dumps(facts[name]))))
        line = json.dumps(values).encode() + b"\n"
    return line


def _whole_lines(path: Path) -> tuple[int, int]:
    """The file, opened for appending behind its last whole line, and its size: a writer that was killed may have left part
    of a line."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    size = end = os.fstat(file).st_size
    while end > 0:
        begin = max(0, end - MAX_LINE_BYTES)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        end = begin + found + 1
        if found >= 0:
            break
    if end < size:
        os.ftruncate(file, end)
    return file, end


class EventReader:
    """Reads the events of a job as they come.

    Args:
        after: the last id that was seen.

    Attributes:
        last: the id of the last event that was given.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path = path
        self.last = after
        self._place = 0
        self._passed = 0

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines behind the last that was given, as far as they are there, each with its id."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # its writer is still at it
                self._place += len(line)
                self._passed += 1
                if self._passed > self.last:
                    self.last = self._passed
                    yield self._passed, line[:-1]


def read_events(path: Path, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events that are there behind the id ``after``, each with its id."""
    for number, line in EventReader(path, after).lines():
        yield number, json.loads(line)


def reached(path: Path) -> int:
    """How far a run has come by all that it has told: more when it tells of a step for the first time, the same when it
    only tells steps again.

    Examples:
        >>> from pathlib import Path
        >>> from panning.foundation.progress import Event
        >>> from panning.service.events import EventLog, reached
        >>> with EventLog(Path("events.jsonl")) as log:
        ...     log.hear(Event("training", 5, 9, "stage"))
        >>> before = reached(Path("events.jsonl"))
        >>> with EventLog(Path("events.jsonl")) as log:
        ...     log.hear(Event("training", 4, 9, "stage"))
        >>> reached(Path("events.jsonl")) == before
        True
    """
    furthest: dict[tuple[str, str], int] = {}
    for _, line in EventReader(path).lines():
        try:
            event = Event.of_json(json.loads(line))
        except (PanningError, ValueError):
            continue
        step = (event.stage, event.kind)
        furthest[step] = max(furthest.get(step, 0), event.done + 1)
    return sum(furthest.values())
