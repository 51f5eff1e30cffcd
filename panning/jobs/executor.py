"""Executors: run jobs somewhere and hand back the outcomes as they come. All give the same outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

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
