"""The folder of a job: what the server puts there, what the job's processes leave, and the lease that tells if they live.

.lock            the lease: a lock that the supervisor and the runner hold, and that the system frees when both are gone
job.json         what the runner is to do (``Order``)
stop             asks the runner to end; its text is the reason: cancel, shutdown, time, disk
events.jsonl     what the run tells (``panning.service.events``)
log.txt          what its processes print
attempts/N.json  how the N-th attempt ended (``Outcome``)
run/             what the run leaves, as on the command line
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from panning.foundation.errors import OutputError
from panning.foundation.files import read_regular, strict_json, write_atomic
from panning.service.supervisor import ATTEMPTS, LOG, STOP

#: An environment variable that all processes of a job have; its value is the job's folder.
MARK = "PANNING_JOB"
#: No file of ours is larger; configs from elsewhere have at most 5,000 values.
MAX_BYTES = 4 << 20
#: How an attempt ended: "stopped" since it was asked to, "crashed" where its own process left no word.
Ended = Literal["succeeded", "failed", "stopped", "crashed"]


@dataclass(frozen=True)
class Caps:
    """What a job may take at most; 0 is no limit.

    Attributes:
        memory_bytes: of data, for each of its processes (RLIMIT_DATA).
        seconds: of one attempt.
        disk_bytes: of its folder, looked at every five seconds.
        log_bytes: of ``log.txt``.
        n_parameters, dense_epochs: by ``panning.cost``, before the run starts.
    """

    memory_bytes: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    log_bytes: int = 1 << 20
    n_parameters: int = 0
    dense_epochs: float = 0.0


@dataclass(frozen=True)
class Order:
    """What a runner is to do.

    Attributes:
        config: of a run, with its kind.
        attempt: from 1.
        workers: Ray workers; 0 runs without Ray.
        data_root: the folder of data sets.
        files: of the uploads that the config names, by their hashes.
        data_sets: names that the operator has given, with what stands for each in a config.
    """

    config: Mapping[str, Any]
    attempt: int
    workers: int = 0
    data_root: str | None = None
    caps: Caps = Caps()
    files: Mapping[str, str] = field(default_factory=dict)
    data_sets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        code: why it failed: config, memory, time, quota or error.
        reason: why it was stopped.
        message: in a sentence.
    """

    state: Ended
    code: str | None = None
    reason: str | None = None
    message: str = ""


@dataclass(frozen=True)
class JobFolder:
    """A job's folder.

    >>> from pathlib import Path
    >>> from panning.service.folder import JobFolder, Order
    >>> folder = JobFolder(Path("jobs/1"))
    >>> folder.give(Order({"kind": "prune"}, attempt=1))
    >>> folder.order().config, folder.outcome(1)
    ({'kind': 'prune'}, None)
    """

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def stop(self) -> Path:
        return self.path / STOP

    def give(self, order: Order) -> None:
        """Make the folder ready for an attempt."""
        (self.path / ATTEMPTS).mkdir(parents=True, exist_ok=True)
        self.stop.unlink(missing_ok=True)
        write_atomic(self.path / "job.json", json.dumps(asdict(order)))

    def order(self) -> Order:
        """What the runner is to do.

        Raises:
            OutputError: if the file is damaged.
        """
        values = self._read(self.path / "job.json")
        return Order(**{**values, "caps": Caps(**values["caps"])})

    def ask_to_stop(self, reason: str) -> None:
        """Ask the runner to end; the first reason stands."""
        if not self.stop.exists():
            write_atomic(self.stop, reason)

    def end(self, attempt: int, outcome: Outcome) -> None:
        """Write how an attempt ended."""
        write_atomic(self.path / ATTEMPTS / f"{attempt}.json", json.dumps(asdict(outcome)))

    def outcome(self, attempt: int) -> Outcome | None:
        """How an attempt ended; None if it left no word."""
        path = self.path / ATTEMPTS / f"{attempt}.json"
        return Outcome(**self._read(path)) if path.exists() else None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            values = strict_json(read_regular(path, MAX_BYTES))
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read: {error}.") from None
        if not isinstance(values, dict):
            raise OutputError(f"{path} is damaged: it is no object.")
        return values

    # --- processes ---

    def take(self) -> int | None:
        """Take the lease: an open file that holds the lock until it and all its copies are closed; None if it is held."""
        self.path.mkdir(parents=True, exist_ok=True)
        lease = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lease)
            return None
        return lease

    def processes(self) -> list[int]:
        """All living processes that belong to the job, by their environment."""
        return [pid for pid in _pids() if self._owns(pid)]

    def sweep(self, seconds: float = 10.0) -> list[int]:
        """Kill what is left of the job's processes, and wait for their end; those that are still there.

        Only who holds the lease may do so: supervisor and runner are gone then, and what is left works for nobody.
        """
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            for pid in left:
                self._kill(pid)
            time.sleep(0.02)
        return left

    def _owns(self, pid: int) -> bool:
        mark = os.fsencode(f"{MARK}={self.path.absolute()}")
        try:
            environment = Path("/proc", str(pid), "environ").read_bytes()  # empty of a process that has ended
        except OSError:
            return False
        return mark in environment.split(b"\0")

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            handle = os.pidfd_open(pid)  # a number may be another process's by now; a handle is not
            try:
                if self._owns(pid):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


@dataclass
class LeaseOf:
    """The lease of a runner, which it keeps for itself."""

    number: int = field(default_factory=lambda: int(os.environ.get("PANNING_LEASE", "-1")))

    def keep(self) -> None:
        """Let no process that this one starts inherit it: the lease tells whether supervisor or runner live."""
        if self.number >= 0:
            os.set_inheritable(self.number, False)
