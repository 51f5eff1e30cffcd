"""Executors: run jobs somewhere and hand back the outcomes as they come. All give the same outcomes.

A job that fails is no error: its outcome says so (``panning.jobs.failure``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from panning.foundation.device import find_device
from panning.jobs.outcome import OutcomeT
from panning.jobs.work import Job, execute


class Executor(Protocol):
    """Where jobs run."""

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Every job with its outcome, in the order in which they end. The next job is asked for when it can begin.

        Args:
            jobs: None says that there is nothing to do now, perhaps after the next outcome. If nothing runs, it is the end.

        Raises:
            PanningError: what is the machine's fault, as data that are not there, or WorkerError if there is no worker.
        """
        ...


class SerialExecutor:
    """One job after the other, in this process; the one for tests and for debugging."""

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        for job in jobs:
            if job is None:  # nothing else runs whose outcome could change that
                return
            outcome = execute(job)
            if outcome.failure == "memory":
                gc.collect()
                outcome = execute(job)
            yield job, outcome


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
