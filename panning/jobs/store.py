"""Where a run keeps what its jobs gave: JSON lines of records, one mask file per ``prune`` job, and an index of them.

A job whose record is there is not run again. The mask is written before its record, so that a record never lacks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panning.foundation.config import parse_config
from panning.foundation.files import write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.progress import Event, Listener
from panning.foundation.records import RecordStore, RunRecord
from panning.jobs.executor import Executor
from panning.jobs.outcome import OutcomeT, PruneOutcome
from panning.jobs.runs import write_index
from panning.jobs.work import Job


class JobStore:
    """The outcomes of a run folder."""

    def __init__(self, out: Path) -> None:
        self.records = RecordStore(out / "records.jsonl")
        self.masks = out / "masks"

    def get(self, job: Job[OutcomeT]) -> OutcomeT | None:
        """The outcome of a job that ran already."""
        if job.key not in self.records:
            return None
        metrics = dict(self.records[job.key].metrics)
        if job.spec.outcome is PruneOutcome and metrics["error"] is None:
            if not (mask := self._mask_path(job)).exists():
                return None
            metrics["mask"] = mask.read_bytes()
        return parse_config(job.spec.outcome, metrics, f"{self.records.path}, {job.key}")

    def put(self, job: Job[OutcomeT], outcome: OutcomeT) -> None:
        """Keep an outcome durably."""
        if isinstance(outcome, PruneOutcome) and outcome.mask is not None:
            write_atomic(self._mask_path(job), outcome.mask)
        if job.key not in self.records:
            environment = environment_info(outcome.accelerator, job.spec.plugins)
            self.records.append(RunRecord(job.key, job.spec.kind, job.config, outcome.metrics, environment))

    def _mask_path(self, job: Job[Any]) -> Path:
        return self.masks / f"{job.key}.safetensors"

    def run(
        self, jobs: Sequence[Job[OutcomeT]], executor: Executor, listen: Listener, stage: str
    ) -> dict[str, OutcomeT]:
        """The outcomes of all jobs by key: from the folder where they are there, else from the executor."""
        wanted = {job.key: job for job in jobs}
        outcomes = {key: known for key, job in wanted.items() if (known := self.get(job)) is not None}
        left = executor.run([job for key, job in wanted.items() if key not in outcomes])  # Ray starts its workers here
        listen(Event(stage, len(outcomes), len(wanted)))
        try:
            for job, outcome in left:
                self.put(job, outcome)
                outcomes[job.key] = outcome
                listen(Event(stage, len(outcomes), len(wanted), "job", {"key": job.key, **job.facts, **outcome.facts}))
        finally:
            if any(job.spec.outcome is PruneOutcome for job in jobs):
                write_index(self.masks.parent, list(self.records))
        return outcomes
