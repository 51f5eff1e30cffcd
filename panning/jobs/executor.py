"""Executors: run jobs somewhere and hand back the outcomes as they come. All give the same outcomes.

A job that fails is no error: its outcome says so (``panning.jobs.failure``).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from panning.foundation.device import find_device
from panning.foundation.stopping import Reached, WithdrawnError, steps_heard
from panning.jobs.outcome import OutcomeT
from panning.jobs.watch import HEARD_AFTER_S, Running, current_watch
from panning.jobs.work import Job, execute


class Executor(Protocol):
    """Where jobs run."""

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Every job with its outcome, in the order in which they end. The next job is asked for when it can begin.

        Jobs that are not wanted any more (``panning.jobs.watch``) may be left out.

        Args:
            jobs: None says that there is nothing to do now, perhaps after the next outcome. If nothing runs, it is the end.

        Raises:
            PanningError: what is the machine's fault, as data that are not there, or WorkerError if there is no worker.
        """
        ...


class SerialExecutor:
    """One job after the other, in this process; the one for tests and for debugging.

    Args:
        heard_after_s: how long a job runs before it is heard of, and between two times.
        clock: in seconds.
    """

    def __init__(self, heard_after_s: float = HEARD_AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.heard_after_s = heard_after_s
        self._clock = clock

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        for job in jobs:
            if job is None:  # nothing else runs whose outcome could change that
                return
            try:
                outcome = self._execute(job)
                if outcome.failure == "memory":
                    gc.collect()
                    outcome = self._execute(job)
            except WithdrawnError:
                continue
            yield job, outcome

    def _execute(self, job: Job[OutcomeT]) -> OutcomeT:
        watch, began = current_watch(), self._clock()
        last = began

        def hear(reached: Reached) -> None:
            nonlocal last
            if not watch.is_wanted(job):
                raise WithdrawnError
            now = self._clock()
            if watch.heard is not None and reached.done < reached.total and now - last >= self.heard_after_s:
                last = now
                watch.heard(Running(job, reached, now - began))

        with steps_heard(hear):
            return execute(job)


@contextmanager
def executor_of(
    n_workers: int, job_timeout_s: float, device: str, start_ray: Callable[[], None] = lambda: None
) -> Iterator[Executor]:
    """Where the jobs of a block run: in this process for 0 workers, else on Ray.

    Args:
        start_ray: called before the first job on Ray; without it Ray must be running.

    Raises:
        DeviceError: if there is no such device.
    """
    if n_workers == 0:
        find_device(device)  # said at once
        yield SerialExecutor()
        return
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(n_workers, job_timeout_s, device, start_ray) as workers:
        yield workers
