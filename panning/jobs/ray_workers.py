"""Workers on Ray: an actor at each place, with one torch thread, reused for all jobs."""

from __future__ import annotations

import functools
import itertools
import platform
import re
import uuid
from collections.abc import Iterable
from typing import Any

from panning.data.ray_shipping import Cargo, Offers, accept_offers
from panning.data.shipped import data_name, ships_data
from panning.foundation.errors import PanningError, WorkerError
from panning.foundation.extras import extra_packages
from panning.foundation.machine import code_versions
from panning.foundation.memory import keep_freed_memory
from panning.foundation.own import Own
from panning.foundation.ray_answers import HEAD, answer, check_ray_lives, is_of_memory, is_of_node, ray_is_gone
from panning.foundation.ray_gpus import gpu_share
from panning.foundation.ray_own import sent_with_code
from panning.foundation.stopping import WithdrawnError, check_stop, steps_heard
from panning.jobs.failure import failed
from panning.jobs.news import Done, Heard, Lost, News, Unfit, Up, Withdrawn
from panning.jobs.outcome import Outcome
from panning.jobs.ray_board import BoardOfDriver, BoardOfWorker
from panning.jobs.watch import HEARD_AFTER_S
from panning.jobs.work import Job, check_data, execute
from panning.tasks import load_task_data

with extra_packages():
    import ray
    from ray.exceptions import (
        GetTimeoutError,
        LocalRayletDiedError,
        RayActorError,
        RayError,
        RaySystemError,
        RayTaskError,
    )

#: How long an answer that is there may take to come over.
FETCH_S = 300.0
#: A worker answers this in place of an outcome where nobody wanted the job any more.
WITHDRAWN = "withdrawn"


class _JobWorker:
    def __init__(self, board: str = "", heard_after_s: float = HEARD_AFTER_S) -> None:
        keep_freed_memory()
        self.own: dict[str, Own] = {}
        self.board = BoardOfWorker(board, heard_after_s)

    def hold(self, own: dict[str, Own]) -> None:
        """Keep what is the caller's own for the jobs that name it."""
        self.own |= own

    def offer(self, offers: Offers) -> None:
        """Know where data are that this node may lack."""
        accept_offers(offers)

    def greet(self) -> dict[str, Any]:
        """What must be as in the process that sends jobs."""
        return {**code_versions(), "node": platform.node()}

    def execute(self, job: Job[Any], data: str | None, number: int = 0) -> Outcome | str:
        job = job.with_own(self.own)
        check_data(job, data, platform.node())
        self.board.begins(number)
        try:
            with steps_heard(self.board.hear):
                return execute(job)
        except WithdrawnError:
            return WITHDRAWN


_RemoteJobWorker: Any = ray.remote(num_cpus=1, max_restarts=0)(_JobWorker)


class RayWorkers:
    """``n_places`` actors. Ray must be running when the first is started.

    Args:
        device: on which jobs compute; workers share the GPUs of the cluster evenly (``gpu_share``).
        heard_after_s: how long a job runs before it says how far it is, and between two times.
    """

    def __init__(self, n_places: int, device: str = "cpu", heard_after_s: float = HEARD_AFTER_S) -> None:
        self.n_places = n_places
        self.device = device
        self.heard_after_s = heard_after_s
        self.board = BoardOfDriver(f"panning-board-{uuid.uuid4().hex}")
        self.actors: dict[int, Any] = {}
        self._jobs: dict[int, Job[Any]] = {}
        self._numbers: dict[int, int] = {}  # place -> the number of its job
        self._count = itertools.count(1)
        self._reading: Any = None
        self._calls: dict[Any, int] = {}
        self._held: dict[str, Own] = {}
        self._sent: list[Any] = []  # references to all of it
        self._cargo = Cargo()

    def share(self, jobs: Iterable[Job[Any]]) -> None:
        """Send what is the caller's own in the jobs to all workers, once, and offer them the data where that is asked for.

        Raises:
            WorkerError, DataError: if something cannot be sent.
        """
        jobs = list(jobs)
        if ships_data():
            self._offer(jobs)
        own = {name: thing for job in jobs for name, thing in job.own.items() if name not in self._held}
        if not own:
            return
        with sent_with_code(own.values()):
            self._sent.append(ray.put(own))
        self._held |= own
        for place, actor in self.actors.items():
            self._calls[actor.hold.remote(self._sent[-1])] = place

    def _offer(self, jobs: Iterable[Job[Any]]) -> None:
        named = [(job.spec.task, job.source.on_cpu) for job in jobs if isinstance(job.spec.task.data, str)]
        data = {data_name(task): functools.partial(load_task_data, task, source) for task, source in named}
        if offers := self._cargo.load(data):
            for place, actor in self.actors.items():
                self._calls[actor.offer.remote(offers)] = place

    def start(self, place: int) -> None:
        actor = _RemoteJobWorker.options(num_gpus=gpu_share(self.device, self.n_places)).remote(
            self.board.name, self.heard_after_s
        )
        self.actors[place] = actor
        if self._cargo.offers:
            self._calls[actor.offer.remote(self._cargo.offers)] = place
        for sent in self._sent:
            self._calls[actor.hold.remote(sent)] = place
        self._calls[actor.greet.remote()] = place

    def send(self, place: int, job: Job[Any]) -> None:
        self._jobs[place], self._numbers[place] = job, next(self._count)
        self._calls[self.actors[place].execute.remote(job.by_name(), job.data, self._numbers[place])] = place

    def ask(self) -> None:
        if self._reading is None:
            self._reading = self.board.read()

    def withdraw(self, place: int) -> None:
        self.board.withdraw([self._numbers[place]])

    def stop(self, place: int) -> None:
        self._ends(place)
        self._calls = {call: other for call, other in self._calls.items() if other != place}
        if (actor := self.actors.pop(place, None)) is not None:
            ray.kill(actor)
        if not self.actors:
            self._reading = None
            self.board.close()

    def news(self, timeout_s: float) -> list[News]:
        check_stop()
        HEAD.answers()
        calls = [*self._calls, *([] if self._reading is None else [self._reading])]
        try:
            # All that is there, without waiting: where trials are short this is all there is to ask.
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
            if calls and not ready:
                ready, _ = ray.wait(calls, num_returns=1, timeout=timeout_s)
        except (LocalRayletDiedError, RaySystemError) as error:
            raise ray_is_gone(error) from None
        if not ready:
            check_ray_lives()
        heard = self._heard() if self._reading in ready else []
        found = [self._news(self._calls.pop(call), call) for call in ready if call in self._calls]
        return [*heard, *(one for one in found if one is not None)]

    def _heard(self) -> list[News]:
        """How far the jobs are that the board tells of."""
        call, self._reading = self._reading, None
        try:
            told = answer(call, FETCH_S)
        except RayError:
            self.board.is_gone()
            return []
        return [Heard(place, told[number]) for place, number in self._numbers.items() if number in told]

    def _news(self, place: int, call: Any) -> News | None:
        job = self._jobs.get(place)
        try:
            value = answer(call, FETCH_S)
        except RayTaskError as error:
            return self._raised(place, error, job)
        except (GetTimeoutError, RayError) as error:  # its actor or an object is lost, or cannot be placed
            of_node = isinstance(error, RayActorError) and is_of_node(error)
            return Lost(place, "node" if of_node else "memory" if is_of_memory(error) else "worker", _reason(error))
        if isinstance(value, Outcome):
            self._ends(place)
            return Done(place, value)
        if value == WITHDRAWN:
            self._ends(place)
            return Withdrawn(place)
        if isinstance(value, dict):
            return self._greeted(place, value)
        return None  # it holds what is the caller's own

    def _raised(self, place: int, error: RayTaskError, job: Job[Any] | None) -> News:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if job is None:
            names = ", ".join(thing.label for thing in self._held.values())
            said = f"Ray workers cannot load {names}: {cause}. They need the packages that it imports; workers=0 runs "
            return Unfit(place, WorkerError(f"{said}without Ray."))
        self._ends(place)
        if isinstance(cause, PanningError):
            return Unfit(place, cause)
        return Done(place, job.spec.outcome(**failed(cause)))  # its outcome cannot be sent

    def _ends(self, place: int) -> None:
        """The job at a place is over, whatever became of it."""
        self._jobs.pop(place, None)
        self._numbers.pop(place, None)

    def _greeted(self, place: int, there: dict[str, Any]) -> News:
        here = code_versions()
        differing = [f"{name} {there.get(name)}, here {own}" for name, own in here.items() if there.get(name) != own]
        if not differing:
            return Up(place)
        said = f"The node {there.get('node')} has other code: {'; '.join(differing)}. Install the same there."
        return Unfit(place, WorkerError(said))


def _reason(error: BaseException) -> str:
    """The line of Ray's message that says most, and on which node."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line or "died" in line or "killed" in line]
    node = re.search(r"\bip=([0-9a-fA-F.:]+)", str(error))
    return (causes or lines or [type(error).__name__])[-1][:200] + (f", on the node {node[1]}" if node else "")
