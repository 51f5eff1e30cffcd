"""How long workers are waited for, and how often what they lost is tried again."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from panning.jobs.watch import HEARD_AFTER_S
from panning.jobs.work import Job

#: Short trainings of one recipe take about equally long: once so many have ended, one that takes so many times as long as
#: the slowest of them counts as hung.
ENOUGH_TRAININGS = 10
TIMES_AS_LONG = 8.0
MIN_DEADLINE_S = 60.0
LONGEST_PAUSE_S = 60.0


@dataclass
class Patience:
    """Deadlines of jobs and workers, and numbers of tries.

    Attributes:
        job_timeout_s: the most that any job may take, from when its worker has it.
        start_s_at_first: how long a worker may take to come up; each time it does not, the next may take twice as long. A
            busy machine takes minutes to load what a worker needs, and who is asked for again begins anew.
        nobody_s: how long there may be no worker that is up; a cluster that grows by need makes machines in this time.
        max_tries: of a job whose workers end, or that took too much memory.
        max_starts: of a worker that ends before it is up, one after the other.
        heard_after_s: how long a job runs before it is asked how far it is, and between two times.
        withdraw_s: how long a job that is not wanted any more may take to its next epoch or round; then its worker is ended.
    """

    job_timeout_s: float = 3600.0
    start_s_at_first: float = 120.0
    nobody_s: float = 600.0
    max_tries: int = 3
    max_starts: int = 3
    heard_after_s: float = HEARD_AFTER_S
    withdraw_s: float = 60.0
    _took: dict[Any, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=200)))
    _deadlines: dict[Any, float] = field(default_factory=dict)

    def start_s(self, n_starts: int) -> float:
        """How long a worker may take that was asked for so often in vain."""
        return self.start_s_at_first * float(2 ** min(n_starts, 6))

    def pause_s(self, n_starts: int) -> float:
        """How long until a worker is asked for again."""
        return 0.0 if n_starts == 0 else min(float(2**n_starts), LONGEST_PAUSE_S)

    def kin(self, job: Job[Any]) -> Any:
        """What jobs share that take alike; None where they do not, as methods differ by hundreds."""
        spec: Any = job.spec
        return (spec.task.model_name, spec.recipe) if spec.kind == "train" else None

    def learn(self, kin: Any, took_s: float) -> bool:
        """Take in how long a job took; whether others of its kind may take more or less since."""
        if kin is None:
            return False
        took = self._took[kin]
        took.append(took_s)
        if len(took) < ENOUGH_TRAININGS:
            return False
        before = self._deadlines.get(kin)
        self._deadlines[kin] = min(self.job_timeout_s, max(MIN_DEADLINE_S, TIMES_AS_LONG * max(took)))
        return self._deadlines[kin] != before

    def job_s(self, kin: Any) -> float:
        """How long a job may take: short trainings eight times as long as the slowest of their kind."""
        return self._deadlines.get(kin, self.job_timeout_s)
