"""Jobs on Ray: one actor a worker, each with one torch thread, reused for all jobs.

Dispatching is our own, since Ray's ActorPool does not replace dead actors: one job in flight a worker, a dead or silent
worker is replaced and its job run again on a fresh one. Jobs are pure, so running one twice does no harm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from panning.foundation.errors import PanningError, WorkerError
from panning.foundation.extras import extra_packages
from panning.foundation.memory import keep_freed_memory
from panning.foundation.own import Own
from panning.foundation.ray_gpus import gpu_share
from panning.foundation.ray_own import sent_with_code
from panning.jobs.outcome import Outcome, OutcomeT
from panning.jobs.work import Job, execute

with extra_packages():
    import ray
    from ray.exceptions import RayActorError, RayTaskError

#: A job whose worker died so often is not tried again.
MAX_ATTEMPTS = 3
POLL_S = 1.0
#: How long all workers may take to start.
START_S = 120.0


class _JobWorker:
    def __init__(self) -> None:
        keep_freed_memory()
        self.own: dict[str, Own] = {}

    def hold(self, own: dict[str, Own]) -> None:
        """Keep what is the caller's own for the jobs that name it."""
        self.own |= own

    def execute(self, job: Job[Any]) -> Outcome:
        return execute(job.with_own(self.own))


_RemoteJobWorker: Any = ray.remote(num_cpus=1, max_restarts=0)(_JobWorker)


@dataclass
class _Flight:
    job: Job[Any]
    worker: int
    deadline: float


class RayExecutor:
    """``n_workers`` Ray actors, started at the first job; Ray must be running (``ray_running``).

    Until then their cores are free for others: the agent's rollouts come first.

    Args:
        job_timeout_s: after so long without an answer a worker counts as dead.
        device: on which jobs compute; workers share the GPUs of the cluster evenly (``gpu_share``).
    """

    def __init__(self, n_workers: int, job_timeout_s: float = 3600.0, device: str = "cpu") -> None:
        self.n_workers = n_workers
        self.device = device
        self.job_timeout_s = job_timeout_s
        self._workers: list[Any] = []
        self._own: dict[str, Own] = {}
        self._sent: list[Any] = []  # references to all of it

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    def _new_worker(self) -> Any:
        worker = _RemoteJobWorker.options(num_gpus=gpu_share(self.device, self.n_workers)).remote()
        for sent in self._sent:
            worker.hold.remote(sent)
        return worker

    def _share(self, jobs: Sequence[Job[OutcomeT]]) -> None:
        """Send what is the caller's own in the jobs to all workers, once.

        Raises:
            WorkerError: if it cannot be sent, or a worker cannot load it.
        """
        own = {name: thing for job in jobs for name, thing in job.own.items() if name not in self._own}
        if not own:
            return
        with sent_with_code(own.values()):
            sent = ray.put(own)
        try:
            ray.get([worker.hold.remote(sent) for worker in self._workers])
        except RayTaskError as error:
            names = ", ".join(thing.label for thing in own.values())
            raise WorkerError(
                f"Ray workers cannot load {names}: {error.cause}. They need the packages that it imports; workers=0 runs "
                "without Ray."
            ) from None
        self._own |= own
        self._sent.append(sent)

    def run(self, jobs: Sequence[Job[OutcomeT]]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Start the workers, if there are jobs; the jobs begin with the first outcome that is asked for."""
        if jobs and not self._workers:
            self._workers = [self._new_worker() for _ in range(self.n_workers)]
            # One that does not come up is found by its first job.
            ray.wait([worker.hold.remote({}) for worker in self._workers], num_returns=self.n_workers, timeout=START_S)
        return self._run(jobs)

    def _run(self, jobs: Sequence[Job[OutcomeT]]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        if not jobs:
            return
        self._share(jobs)
        waiting = deque(jobs)
        deaths: Counter[str] = Counter()
        idle = list(range(self.n_workers))
        flights: dict[Any, _Flight] = {}
        try:
            while waiting or flights:
                while waiting and idle:
                    self._send(waiting.popleft(), idle.pop(0), flights)
                ready, _ = ray.wait(list(flights), num_returns=1, timeout=POLL_S)
                overdue = [call for call, flight in flights.items() if flight.deadline < time.monotonic()]
                for call in [*ready, *overdue]:
                    if (flight := flights.pop(call, None)) is None:
                        continue
                    idle.append(flight.worker)
                    outcome = self._land(call) if call in ready else None
                    if outcome is not None:
                        yield flight.job, outcome
                    else:  # the worker died, or was silent for too long
                        self._count_death(flight.job, deaths)
                        self._replace(flight.worker)
                        waiting.appendleft(flight.job)
        finally:
            for flight in flights.values():  # the caller stopped early: what still runs is not wanted any more
                self._replace(flight.worker)

    def _send(self, job: Job[Any], worker: int, flights: dict[Any, _Flight]) -> None:
        call = self._workers[worker].execute.remote(job.by_name())
        flights[call] = _Flight(job, worker, time.monotonic() + self.job_timeout_s)

    def _land(self, call: Any) -> Any:
        try:
            return ray.get(call)
        except RayActorError:
            return None
        except RayTaskError as error:
            if isinstance(error.cause, PanningError):
                raise error.cause from None
            raise

    def _count_death(self, job: Job[Any], deaths: Counter[str]) -> None:
        deaths[job.key] += 1
        if deaths[job.key] >= MAX_ATTEMPTS:
            raise WorkerError(
                f"The workers of a {job.spec.kind} job died or were silent for {self.job_timeout_s:.0f} s, "
                f"{MAX_ATTEMPTS} times; is the memory enough? The job: {job.config}"
            )

    def _replace(self, worker: int) -> None:
        ray.kill(self._workers[worker])
        self._workers[worker] = self._new_worker()


@contextlib.contextmanager
def ray_running(n_workers: int, address: str | None = None, device: str = "cpu") -> Iterator[None]:
    """Ray for the time of a block: the cluster at ``address`` or ``RAY_ADDRESS`` if given, else a local one.

    A Ray that runs already in this process is used as it is and left running.

    Args:
        device: on which workers will compute.

    Raises:
        WorkerError: if Ray does not start, if there is no cluster at the address, or it has fewer cores than workers.
        DeviceError: if it has no such device.
    """
    if ray.is_initialized():
        gpu_share(device, n_workers)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    _check_answers(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None or address == "local":
            ray.init("local", num_cpus=n_workers, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # Ray has no type of its own for a start that fails: some of it is a bare Exception
        ray.shutdown()
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WorkerError(_no_ray(address, reason)) from error
    try:
        if (n_cores := int(ray.cluster_resources().get("CPU", 0))) < n_workers:
            raise WorkerError(f"The Ray cluster has {n_cores} cores for {n_workers} workers; ask for fewer.")
        gpu_share(device, n_workers)
        yield
    finally:
        ray.shutdown()


def _no_ray(address: str | None, reason: str) -> str:
    if address is None or address == "local":
        return (
            f"Ray did not start on this machine ({reason}): try 0 workers, which gives the same results without Ray, or "
            "fewer workers."
        )
    return f"No Ray cluster at '{address}': {reason}"


def _check_answers(address: str | None) -> None:
    """Raise WorkerError if nobody listens at HOST:PORT; Ray itself tries for minutes before it says so."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(f"No Ray cluster at '{address}': {error}") from None
