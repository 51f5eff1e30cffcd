"""Jobs on Ray: the dispatcher over actors. Dispatching is our own, since Ray's ActorPool does not replace dead actors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from panning.jobs.dispatch import Dispatcher
from panning.jobs.outcome import OutcomeT
from panning.jobs.patience import Patience
from panning.jobs.ray_workers import RayWorkers
from panning.jobs.watch import HEARD_AFTER_S
from panning.jobs.work import Job


class RayExecutor:
    """``n_workers`` Ray actors, started at the first job.

    Until then their cores are free for others: the agent's rollouts come first.

    Args:
        job_timeout_s: after so long with a job a worker is ended, and the job has failed.
        device: on which jobs compute; workers share the GPUs of the cluster evenly (``gpu_share``).
        start_ray: called before the first job; without it Ray must be running (``ray_running``).
        told: hears sentences on workers that are left out or waited for; on stderr if not said.
        heard_after_s: how long a job runs before it is heard of (``panning.jobs.watch``), and between two times.
    """

    def __init__(
        self,
        n_workers: int,
        job_timeout_s: float = 3600.0,
        device: str = "cpu",
        start_ray: Callable[[], None] = lambda: None,
        told: Callable[[str], None] | None = None,
        heard_after_s: float = HEARD_AFTER_S,
    ) -> None:
        self.n_workers = n_workers
        self.workers = RayWorkers(n_workers, device, heard_after_s)
        patience = Patience(job_timeout_s, heard_after_s=heard_after_s)
        self.dispatcher = Dispatcher(self.workers, patience, told=told or _on_stderr)
        self._start_ray = start_ray

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispatcher.close()

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Every job with its outcome, in the order in which they end; no jobs start nothing."""
        asked = iter(jobs)
        first = next(asked, None)
        if first is None:
            return iter(())
        self._start_ray()
        self.workers.share([first])  # what cannot be sent is said before anything is waited for
        return self.dispatcher.run(self._shared(first, asked))

    def _shared(
        self, first: Job[OutcomeT], others: Iterator[Job[OutcomeT] | None]
    ) -> Iterator[Job[OutcomeT] | None]:  # fmt: skip
        """The jobs, after what is the caller's own in them was sent to the workers."""
        yield first
        for job in others:
            if job is not None:
                self.workers.share([job])
            yield job


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
