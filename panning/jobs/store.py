"""Where a search keeps what its jobs gave: JSON lines of records, and one mask file per ``prune`` job.

A job whose record is there is not run again. The mask is written before its record, so that a record never lacks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from panning.foundation.files import write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.records import RecordStore, RunRecord
from panning.jobs.executor import Executor
from panning.jobs.work import Job, Outcome

OnJob = Callable[[Job, Outcome], None]


class JobStore:
    """The outcomes of a run folder."""

    def __init__(self, out: Path) -> None:
        self.records = RecordStore(out / "records.jsonl")
        self.masks = out / "masks"

    def get(self, job: Job) -> Outcome | None:
        """The outcome of a job that ran already."""
        if job.key not in self.records:
            return None
        record = self.records[job.key]
        mask = self._mask_path(job)
        if job.kind == "prune" and record.metrics["error"] is None and not mask.exists():
            return None
        metrics = {name: value for name, value in record.metrics.items() if name != "error"}
        return Outcome(metrics, mask.read_bytes() if mask.exists() else None, record.metrics["error"])

    def put(self, job: Job, outcome: Outcome) -> None:
        """Keep an outcome durably."""
        if outcome.mask is not None:
            write_atomic(self._mask_path(job), outcome.mask)
        if job.key not in self.records:
            metrics = {**outcome.metrics, "error": outcome.error}
            self.records.append(RunRecord(job.key, job.kind, job.config, metrics, environment_info()))

    def _mask_path(self, job: Job) -> Path:
        return self.masks / f"{job.key}.safetensors"

    def run(self, jobs: Sequence[Job], executor: Executor, on_job: OnJob | None = None) -> dict[str, Outcome]:
        """The outcomes of all jobs by key: from the folder where they are there, else from the executor."""
        outcomes: dict[str, Outcome] = {}
        waiting: dict[str, Job] = {}
        for job in jobs:
            if job.key in outcomes or job.key in waiting:
                continue
            if (known := self.get(job)) is not None:
                outcomes[job.key] = known
                if on_job is not None:
                    on_job(job, known)
            else:
                waiting[job.key] = job
        for job, outcome in executor.run(list(waiting.values())):
            self.put(job, outcome)
            outcomes[job.key] = outcome
            if on_job is not None:
                on_job(job, outcome)
        return outcomes
