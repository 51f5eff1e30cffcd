"""The scheduler: starts the jobs whose turn it is, and steps on those that have ended. It runs in the server's process.

Whether a job lives is told by the lease on its folder alone. A server that was killed and starts again finds leases that are
held, and goes on with these jobs as if it had started them; where a lease is free, the job has ended, or is queued again.
A job whose own process died has crashed, as its supervisor writes; where there is no word, the supervisor was killed, too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from panning.foundation.errors import OutputError
from panning.service import supervisor
from panning.service.events import reached
from panning.service.folder import MARK, Caps, JobFolder, Order, Outcome
from panning.service.inputs import named_uploads
from panning.service.log import Trouble
from panning.service.retention import Retention, Rules
from panning.service.store import Store
from panning.service.uploads import Uploads
from panning.service.words import BusyError, Job

#: How often it looks around, and how long it starts nothing after it could not.
LOOK_S, PAUSE_S = 0.2, 5.0
LOG = logging.getLogger("panning.service")
RUNNER = (sys.executable, "-P", "-m", "panning.service.runner")


@dataclass(frozen=True)
class Setup:
    """How jobs run on this machine.

    Attributes:
        root: holds the folders of jobs.
        slots: so many run at a time.
        workers: Ray workers of each job; 0 runs without Ray.
        data_root: the folder of data sets.
        caps: of each job.
        grace_s: how long a job may take to end once it is asked; then its processes are killed.
        runner: the command; the job's folder is added.
        uploads: the folder of uploads (``panning.service.uploads``).
        data_sets: names that the operator has given, with what stands for each in a config.
        rules: when files of jobs that have ended go.
    """

    root: Path
    slots: int = 1
    workers: int = 0
    data_root: str | None = None
    caps: Caps = Caps()
    grace_s: float = 6.0
    runner: tuple[str, ...] = RUNNER
    uploads: Path = Path("uploads")
    data_sets: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = Rules()

    def files(self, owner: int, config: Mapping[str, Any]) -> dict[str, str]:
        """Where the uploads lie that a config names, by their hashes."""
        return {sha256: str(self.uploads / str(owner) / sha256) for _, sha256 in named_uploads(config)}


class Scheduler:
    """Runs the jobs of a store.

    Args:
        told: hears of each job after a step of it.

    Attributes:
        trouble: what the last look failed by, in a sentence; empty if it did not.

    Raises:
        OutputError: if another server runs the jobs of this folder.
    """

    def __init__(self, store: Store, setup: Setup, told: Callable[[Job], None] = lambda job: None) -> None:
        self.store = store
        self.setup = setup
        self.retention = Retention(
            store.database, self.folder, setup.rules, uploads=Uploads(store.database, setup.uploads)
        )
        self._told = told
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._children: list[subprocess.Popen[bytes]] = []
        self._paused_until = 0.0
        self.trouble = Trouble("scheduler")
        if (lease := JobFolder(setup.root).take()) is None:
            raise OutputError(f"Another server runs the jobs in {setup.root}.")
        self._lease = lease

    def folder(self, number: int) -> JobFolder:
        """The folder of a job."""
        return JobFolder(self.setup.root / str(number))

    def run(self, until: threading.Event, wake: threading.Event | None = None) -> None:
        """Look around until the event is set. What fails, as on a full disk, is tried again.

        Args:
            wake: set when there is something to do, as a job that was sent.
        """
        while not until.is_set():
            try:
                self.tick()
                self.trouble.over()
            except (OSError, OutputError, BusyError, DBAPIError) as error:
                self.trouble.met(error)
            (wake or until).wait(LOOK_S)
            if wake is not None:
                wake.clear()

    def tick(self) -> int:
        """Look around once; the number of running jobs."""
        self._children = [child for child in self._children if child.poll() is None]
        running = [job for job in self.store.running() if self._look_after(job)]
        for number in self.store.doomed():
            self._remove(number)
        self.retention.look()
        n = len(running)
        while n < self.setup.slots and time.monotonic() >= self._paused_until:
            if (job := self.store.start_next(self._boot)) is None:
                break
            self._told(job)
            n += self._start(job)
        return n

    def close(self, seconds: float = 30.0) -> None:
        """Ask all jobs to end, and wait for them; they are queued again. What does not end in time goes on alone."""
        end = time.monotonic() + seconds
        try:
            for job in self.store.running():
                self.folder(job.id).ask_to_stop("shutdown")
            while [job for job in self.store.running() if self._look_after(job)] and time.monotonic() < end:
                time.sleep(LOOK_S / 4)
        except BusyError as error:  # the next server steps on what has ended meanwhile
            LOG.warning("scheduler", extra={"facts": {"error": str(error)}})
        for child in self._children:
            child.poll()
        os.close(self._lease)

    def _look_after(self, job: Job) -> bool:
        """Whether a running job still runs; if not, it is stepped on."""
        folder = self.folder(job.id)
        if (lease := folder.take()) is None:
            if job.cancel_asked:
                folder.ask_to_stop("cancel")
            return True
        try:
            folder.sweep()
            self._settle(job, folder.outcome(job.attempt))
        finally:
            os.close(lease)
        return False

    def _settle(self, job: Job, outcome: Outcome | None) -> None:
        folder = self.folder(job.id)
        size, place = supervisor.n_bytes(folder.path), reached(folder.events) if outcome is None else 0
        self._told(self.store.settle(job.id, job.attempt, outcome, self._boot, size, place))

    def _start(self, job: Job) -> bool:
        """Start the processes of a job, which hold its lease from now on; whether they started."""
        folder, setup = self.folder(job.id), self.setup
        try:
            if (lease := folder.take()) is None:
                raise OSError(f"{folder.path} is held by somebody else")
            try:
                folder.sweep()
                config = self.store.config(job.id)
                files, names = setup.files(job.token, config), dict(setup.data_sets)
                folder.give(Order(config, job.attempt, setup.workers, setup.data_root, setup.caps, files, names))
                self._spawn(folder, job.attempt, lease)
            finally:
                os.close(lease)
        except (OSError, OutputError) as error:  # no room on the disk, no room for a process: nothing the job did
            self._paused_until = time.monotonic() + PAUSE_S
            self._settle(job, Outcome("stopped", reason="machine", message=str(error)))
            return False
        return True

    def _spawn(self, folder: JobFolder, attempt: int, lease: int) -> None:
        task = supervisor.Task(
            [*self.setup.runner, str(folder.path.absolute())], str(folder.path.absolute()), lease, attempt,
            self.setup.caps.seconds, self.setup.caps.disk_bytes, self.setup.caps.log_bytes, self.setup.grace_s,
        )  # fmt: skip
        command = [sys.executable, "-P", supervisor.__file__, json.dumps(asdict(task))]
        environment = {**os.environ, MARK: task.folder}
        # A session of its own: what ends the server, as Ctrl-C on its terminal, ends no job.
        self._children.append(
            subprocess.Popen(
                command, pass_fds=[lease], env=environment, cwd=folder.path, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    def _remove(self, number: int) -> None:
        """Delete the files of a job that was deleted, and then its rows."""
        folder = self.folder(number)
        if (lease := folder.take()) is None:
            return
        try:
            folder.sweep()
            size = supervisor.n_bytes(folder.path)
            shutil.rmtree(folder.path)
            self.store.forget(number)
        finally:
            os.close(lease)
        LOG.info("deleted", extra={"facts": {"job": number, "freed_bytes": size}})
