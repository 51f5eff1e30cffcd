"""Where a run keeps what its jobs gave (``panning.jobs.kept``), and an index of its masks.

A job whose record is there is not run again. The mask is written before its record, so that a record never lacks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from panning.foundation.errors import JobError
from panning.foundation.files import write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.progress import Event, Listener
from panning.foundation.records import MAX_LINE_BYTES, RunRecord, record_line
from panning.foundation.stopping import check_stop
from panning.foundation.text import one_line
from panning.jobs.executor import Executor
from panning.jobs.kept import Kept, check_metrics
from panning.jobs.outcome import Outcome, OutcomeT, PruneOutcome
from panning.jobs.reuse import OtherRuns
from panning.jobs.runs import write_index
from panning.jobs.watch import Running, Watch, watched
from panning.jobs.work import Job

#: So few failures end no run.
FEW_FAILED = 5
MAX_FAILED = 0.2


class JobStore(Kept):
    """The outcomes of a run's folder, to which more are added.

    Args:
        max_failed: the share of the trials of this process that may fail unforeseen before the run ends.
        others: runs whose outcomes are taken over where this one has none.

    Raises:
        PanningError: if a record in it is none, with file, line and field.
    """

    def __init__(self, out: Path, max_failed: float = MAX_FAILED, others: OtherRuns | None = None) -> None:
        super().__init__(out)
        self.max_failed = max_failed
        self.others = others or OtherRuns()
        self._failed: Counter[str] = Counter()
        self._n_run = 0

    def get(self, job: Job[OutcomeT]) -> OutcomeT | None:
        """The outcome of a job that ran already, here or in one of the other runs; of those it is kept here, too."""
        if (outcome := super().get(job)) is None and (outcome := self.others.get(job)) is not None:
            self.put(job, outcome)
        return outcome

    def put(self, job: Job[OutcomeT], outcome: OutcomeT, record: RunRecord | None = None) -> None:
        """Keep an outcome durably.

        Args:
            record: of it, where that was made already.
        """
        if isinstance(outcome, PruneOutcome) and outcome.mask is not None:
            write_atomic(self._mask_path(job), outcome.mask)
        if outcome.trace is not None:
            write_atomic(self.out / "failed" / f"{job.key}.txt", outcome.trace)
        if job.key not in self.records:
            self.records.append(record or _record(job, outcome))

    def _count(self, outcome: Outcome) -> None:
        """Raise JobError once too many trials have failed in this process."""
        self._n_run += 1
        if outcome.failure is None:
            return
        self._failed[str(outcome.error)] += 1
        n_failed = self._failed.total()
        if n_failed >= FEW_FAILED and n_failed > self.max_failed * self._n_run:
            reasons = "\n".join(f"  {n} times: {reason}" for reason, n in self._failed.most_common(3))
            raise JobError(
                f"{n_failed} of {self._n_run} trials failed, more than {self.max_failed:.0%} (--max-failed):\n{reasons}\n"
                f"Where in the code: {self.out / 'failed'}. Once that is mended, panning runs retry {self.out} lets them "
                "run again."
            )

    def run(
        self, jobs: Sequence[Job[OutcomeT]], executor: Executor, listen: Listener, stage: str
    ) -> dict[str, OutcomeT]:
        """The outcomes of all jobs by key: from the folder where they are there, else from the executor."""
        wanted = {job.key: job for job in jobs}
        outcomes = {key: known for key, job in wanted.items() if (known := self.get(job)) is not None}
        left = self.outcomes([job for key, job in wanted.items() if key not in outcomes], executor)
        listen(Event(stage, len(outcomes), len(wanted)))

        def heard(running: Running) -> None:
            listen(running_event(stage, len(outcomes), len(wanted), running))

        try:
            with watched(Watch(heard)):
                for job, outcome in left:
                    outcomes[job.key] = outcome
                    listen(job_event(stage, len(outcomes), len(wanted), job, outcome))
                    check_stop()
        finally:
            if any(job.spec.outcome is PruneOutcome for job in jobs):
                self.index()
        return outcomes

    def outcomes(
        self, jobs: Iterable[Job[OutcomeT] | None], executor: Executor
    ) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Every job with its outcome, kept durably, in the order in which they end; ``jobs`` as for ``Executor.run``."""
        ended = executor.run(jobs)  # Ray starts its workers here
        return ((job, self._kept(job, given)) for job, given in ended)

    def _kept(self, job: Job[OutcomeT], given: OutcomeT) -> OutcomeT:
        outcome, record = _sound(job, given)
        self.put(job, outcome, record)
        self._count(outcome)
        return outcome

    def index(self) -> None:
        """Write which mask in the folder is which."""
        write_index(self.out, self.records)


def job_event(stage: str, done: int, total: int, job: Job[OutcomeT], outcome: OutcomeT) -> Event:
    """What listeners are told of a job that has ended."""
    return Event(stage, done, total, "job", {"key": job.key, **job.facts, **outcome.facts})


def running_event(stage: str, done: int, total: int, running: Running, **more: Any) -> Event:
    """The event that tells listeners how far a running job is.

    Args:
        more: facts that the job itself does not know.
    """
    job, reached = running.job, running.reached
    far = {"unit": reached.unit, "reached": reached.done, "of": reached.total, "seconds": round(running.seconds, 1)}
    return Event(stage, done, total, "running", {"key": job.key, **job.facts, "worker": running.worker, **far, **more})


def _record(job: Job[Any], outcome: Outcome) -> RunRecord:
    environment = outcome.environment or environment_info(plugins=job.spec.plugins)
    return RunRecord(job.key, job.spec.kind, job.config, outcome.metrics, environment)


def _sound(job: Job[OutcomeT], outcome: OutcomeT) -> tuple[OutcomeT, RunRecord]:
    """The outcome and its record, if that can be read again; else a failure: what a trial gives may be anything."""
    try:
        record = _record(job, outcome)
        if (n_bytes := len(record_line(record))) > MAX_LINE_BYTES // 2:
            raise ValueError(f"its record would have {n_bytes} bytes")
        check_metrics(record.kind, record.config, record.texts[2])
    except (ValueError, TypeError) as error:
        said = f"what it gave is no outcome of a {job.spec.kind} job: {error}"
        outcome = job.spec.outcome(error=one_line(said)[:500], failure="raised", environment=outcome.environment)
        return outcome, _record(job, outcome)
    return outcome, record
