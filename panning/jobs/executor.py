"""Executors: run jobs somewhere and hand back the outcomes as they come. All give the same outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from panning.foundation.device import find_device
from panning.jobs.outcome import OutcomeT
from panning.jobs.work import Job, execute


class Executor(Protocol):
    """Where jobs run."""

    def run(self, jobs: Sequence[Job[OutcomeT]]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Every job with its outcome, in the order in which they end.

        Raises:
            PanningError: what a job raised, or WorkerError if workers keep dying.
        """
        ...


class SerialExecutor:
    """One job after the other, in this process; the one for tests and for debugging."""

    def run(self, jobs: Sequence[Job[OutcomeT]]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        for job in jobs:
            yield job, execute(job)


@contextmanager
def executor_of(n_workers: int, job_timeout_s: float, device: str) -> Iterator[Executor]:
    """Where the jobs of a block run: in this process for 0 workers, else on a Ray that runs.

    Raises:
        DeviceError: if there is no such device.
    """
    if n_workers == 0:
        find_device(device)  # said at once
        yield SerialExecutor()
        return
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(n_workers, job_timeout_s, device) as workers:
        yield workers
