"""The supervisor of a job: starts one command, waits for it, and outlives none of its children.

It is a subreaper (Linux), so that whatever the command leaves behind becomes its own child: Ray's workers have process
groups of their own, and a signal to a group misses them. When the command has ended, all that is left is killed and waited
for; only then does the supervisor end, and with it the lease on the job's folder, a lock that it was given and has handed to
the command. A supervisor that is killed takes the command along (PR_SET_PDEATHSIG).

    python -P supervisor.py '{"command": [...], "folder": "...", "lease": 3, "attempt": 1, ...}'

It runs as a file and needs the standard library alone: it starts in milliseconds and takes little memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
#: How often it looks around.
LOOK_S, LOOK_AT_DISK_S = 0.1, 5.0
#: Names in a job's folder.
STOP, LOG, ATTEMPTS = "stop", "log.txt", "attempts"


@dataclass(frozen=True)
class Task:
    """What a supervisor is to do.

    Attributes:
        command: started with the lease as an open file, whose number stands in ``PANNING_LEASE``.
        folder: of the job. A file ``stop`` in it, with the reason as its text, asks the command to end.
        lease: the number of the open file that holds the folder's lock.
        attempt: names the outcome, ``attempts/N.json``, which the command writes if it comes to its end.
        seconds, disk_bytes: the command is asked to end after so long, and when the folder is so large; 0 is no limit.
        log_bytes: of what the command prints, so much is kept in ``log.txt``.
        grace_s: how long the command may take to end once it is asked; then it is killed.
    """

    command: list[str]
    folder: str
    lease: int
    attempt: int
    seconds: float = 0.0
    disk_bytes: int = 0
    log_bytes: int = 1 << 20
    grace_s: float = 6.0

    @property
    def stop(self) -> Path:
        return Path(self.folder) / STOP

    @property
    def outcome(self) -> Path:
        return Path(self.folder) / ATTEMPTS / f"{self.attempt}.json"


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process.

    Raises:
        OSError: if the system refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_whole(path: Path, text: str) -> None:
    """Write a file durably, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(aside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


class Supervisor:
    """Runs one command to its end.

    >>> import os, tempfile
    >>> from panning.service.supervisor import Supervisor, Task
    >>> folder = tempfile.mkdtemp()
    >>> task = Task(["true"], folder, lease=os.open(os.devnull, os.O_RDONLY), attempt=1)
    >>> task.stop.exists(), task.outcome.name
    (False, '1.json')
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.began = time.monotonic()
        self.asked: float | None = None  # since when the command is asked to end
        self.reason = ""
        self.looked_at_disk = self.began
        self.status: int | None = None
        self.logged = 0

    def run(self) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ask("shutdown"))
        runner, output = self._start()
        with open(Path(self.task.folder) / LOG, "ab") as log:
            self.logged = log.tell()
            while self.status is None:
                self._listen(output, log, LOOK_S)
                self._reap(runner)
                self._watch(runner)
            kill_children()
            self._listen(output, log, 0.0)
        self._conclude()

    def ask(self, reason: str) -> None:
        """Ask the command to end; the first reason stands."""
        if self.asked is not None:
            return
        self.asked, self.reason = time.monotonic(), reason
        try:
            if not self.task.stop.exists():
                write_whole(self.task.stop, reason)
        except OSError:  # a full disk: it is not asked, then, but killed
            return

    def _start(self) -> tuple[int, int]:
        """Start the command; its number, and where what it prints can be read."""
        readable, writable = os.pipe()
        runner = os.fork()
        if runner == 0:
            try:
                self._become_command(writable)
            finally:
                os._exit(127)
        os.close(writable)
        os.set_blocking(readable, False)
        return runner, readable

    def _become_command(self, writable: int) -> None:
        above = os.getppid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != above:  # it was killed before that could be set
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writable, 1)
        os.dup2(writable, 2)
        os.set_inheritable(self.task.lease, True)
        os.chdir(self.task.folder)
        os.execvpe(self.task.command[0], self.task.command, {**os.environ, "PANNING_LEASE": str(self.task.lease)})

    def _listen(self, output: int, log: Any, timeout_s: float) -> None:
        """Keep what the command prints, as far as there is room."""
        ready, _, _ = select.select([output], [], [], timeout_s)
        while ready:
            try:
                data = os.read(output, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                time.sleep(timeout_s)  # nobody can print any more, and select would wait no longer
                return
            kept = data[: max(0, self.task.log_bytes - self.logged)]
            self.logged += len(kept)
            try:
                log.write(kept)
                log.flush()
            except OSError:  # a full disk costs the log, not the job
                self.logged = self.task.log_bytes

    def _reap(self, runner: int) -> None:
        """Take note of every child that has ended."""
        while self.status is None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == runner:
                self.status = os.waitstatus_to_exitcode(status)

    def _watch(self, runner: int) -> None:
        """Ask the command to end if its time or room is over, and kill it if it does not."""
        now, task = time.monotonic(), self.task
        if task.seconds and now - self.began > task.seconds:
            self.ask("time")
        if task.disk_bytes and now - self.looked_at_disk > LOOK_AT_DISK_S:
            self.looked_at_disk = now
            if n_bytes(Path(task.folder)) > task.disk_bytes:
                self.ask("disk")
        if self.asked is None and task.stop.exists():
            self.asked, self.reason = now, task.stop.read_text()
        if self.asked is not None and now - self.asked > task.grace_s and self.status is None:
            os.kill(runner, signal.SIGKILL)

    def _conclude(self) -> None:
        """Write what became of the command, unless it wrote so itself."""
        if self.task.outcome.exists():
            return
        if self.asked is not None:
            found = {"state": "stopped", "reason": self.reason, "message": "It was killed."}
        else:
            assert self.status is not None
            how = f"signal {-self.status}" if self.status < 0 else f"exit code {self.status}"
            found = {"state": "crashed", "message": f"Its process ended by {how}."}
        self.task.outcome.parent.mkdir(exist_ok=True)
        write_whole(self.task.outcome, json.dumps(found))


def children(pid: int) -> list[int]:
    """The processes whose parent is ``pid``."""
    return [one for one, parent in parents() if parent == pid]


def parents() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue  # it has ended
            yield int(name), int(stat.rpartition(")")[2].split()[1])


def kill_children() -> None:
    """Kill and wait for all children, and for theirs, which become ours when these end."""
    while True:
        for pid in children(os.getpid()):
            os.kill(pid, signal.SIGKILL)  # a child that has ended stays there until it is waited for
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def n_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    found = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue  # it is gone by now
    return found


if __name__ == "__main__":
    Supervisor(Task(**json.loads(sys.argv[1]))).run()
