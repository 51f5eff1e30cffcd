"""The dispatcher: which worker does which job, what is tried again, and when a worker is given up.

It knows no Ray: workers are places behind a small interface (``panning.jobs.news``), for which tests and simulations have
their own. Jobs are asked for one at a time, when a worker is free, and outcomes are told as they come, so that what is
asked next may depend on them; whoever is asked may have nothing until the next outcome (None). The dispatcher sends a job
only to a worker that is up and idle, so that the time that it measures is the job's own. A worker for which the cluster
has no room holds up no job.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from panning.foundation.errors import WorkerError
from panning.jobs.failure import REASONS
from panning.jobs.news import Heard, Lost, News, Unfit, Up, Withdrawn, Workers
from panning.jobs.outcome import Failure, OutcomeT
from panning.jobs.patience import Patience
from panning.jobs.places import Place, Places
from panning.jobs.watch import Running, current_watch
from panning.jobs.work import Job


class _Asked:
    """Where jobs come from.

    Attributes:
        is_dry: nothing will come before the next outcome is told, or ever.
    """

    def __init__(self, jobs: Iterable[Job[Any] | None]) -> None:
        self._jobs = iter(jobs)
        self._has_ended = False
        self.is_dry = False

    def next(self) -> Job[Any] | None:
        """The next job, if there is one now."""
        if self.is_dry:
            return None
        try:
            job = next(self._jobs)
        except StopIteration:
            job, self._has_ended = None, True
        self.is_dry = job is None
        return job

    def was_told(self) -> None:
        """An outcome was told: there may be something to ask for again."""
        self.is_dry = self._has_ended


class Dispatcher:
    """Runs jobs on workers.

    Args:
        clock: in seconds.
        told: hears sentences on workers that are left out or waited for.
    """

    def __init__(
        self,
        workers: Workers,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.workers = workers
        self.patience = patience
        self._clock = clock
        self._told = told
        self._places = Places(0, patience, 0.0)
        self._again: deque[Job[Any]] = deque()
        self._alone: deque[Job[Any]] = deque()  # took too much memory beside others
        self._tries: Counter[str] = Counter()
        self._nobody_since: float | None = None
        self._asked = float("-inf")

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        """Every job with its outcome, in the order in which they end. The next job is asked for when a worker is free.

        Args:
            jobs: None says that there is nothing to do now, perhaps after the next outcome. If nothing runs, it is the end.

        Raises:
            WorkerError: if no worker comes up.
            PanningError: what leaves no worker fit for the jobs.
        """
        asked = _Asked(jobs)
        try:
            while True:
                self._start_places()
                self._send_to_idle(asked)
                if asked.is_dry and not (self._again or self._alone or self._places.n_in("busy")):
                    return
                self._check_somebody_is_there()
                for news in self.workers.news(self._wait_s()):
                    if (ended := self._take(news)) is not None:
                        yield ended
                    if ended is not None or isinstance(news, Withdrawn):
                        asked.was_told()
                for number in self._places.overdue(self._clock()):
                    if self._places[number].withdrawn is None:
                        yield self._give_up(number, "time")
                    else:
                        self._leave(number, "pausing")
                    asked.was_told()
        finally:
            # The caller stopped early: jobs that still run are not wanted any more.
            for number in self._places.numbers("busy"):
                self._leave(number, "pausing")
            self._again.clear()
            self._alone.clear()

    def close(self) -> None:
        """End all workers."""
        for number in range(len(self._places)):
            if self._places[number].state != "pausing":
                self.workers.stop(number)
        self._places = Places(0, self.patience, 0.0)

    # --- places ---

    def _start_places(self) -> None:
        now = self._clock()
        if not len(self._places):
            self._places = Places(self.workers.n_places, self.patience, now)
        if now < self._places.look_at:
            return
        for number in range(len(self._places)):
            place = self._places[number]
            if place.state == "starting" and now - place.since > self.patience.start_s(place.n_starts):
                self._told(f"A worker has waited for {now - place.since:.0f} s for a place; it is asked for again")
                place = self._leave(number, "pausing", place.n_starts + 1)
            if place.state == "pausing" and now >= place.since + self.patience.pause_s(place.n_starts):
                self.workers.start(number)
                self._places.put(number, Place("starting", now, place.n_starts))
        self._look_at_jobs(now)
        self._places.looked(now)

    def _leave(self, number: int, state: str, n_starts: int = 0) -> Place:
        """Give up the worker at a place."""
        if state != "out":  # a worker that is left out keeps its place, so that the next one is put elsewhere
            self.workers.stop(number)
        self._places.put(number, left := Place(state, self._clock(), n_starts))
        return left

    def _check_somebody_is_there(self) -> None:
        """Raise WorkerError if no worker has been up for too long."""
        now = self._clock()
        if self._places.n_in("idle", "busy"):
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now
        elif now - self._nobody_since > self.patience.nobody_s:
            raise WorkerError(
                f"No worker came up in {now - self._nobody_since:.0f} s: are the cores of the cluster taken, or its nodes "
                "gone? What is done is kept; run the same again to go on."
            )

    # --- jobs ---

    def _send_to_idle(self, asked: _Asked) -> None:
        """Give every idle worker a job, as far as there are jobs."""
        while (number := self._places.first_idle()) is not None:
            job = self._held(self._again, asked) or asked.next()
            if job is None and not self._places.n_in("busy"):
                job = self._held(self._alone, asked) or asked.next()
            if job is None:
                break
            self.workers.send(number, job)
            self._places.put(number, Place("busy", self._clock(), job=job, kin=self.patience.kin(job)))

    def _held(self, jobs: deque[Job[Any]], asked: _Asked) -> Job[Any] | None:
        """The next job that is tried again and still wanted."""
        while jobs:
            if current_watch().is_wanted(job := jobs.popleft()):
                return job
            asked.was_told()
        return None

    def _look_at_jobs(self, now: float) -> None:
        """Withdraw what nobody wants any more, and ask how far the others are. Jobs that have just begun are left alone."""
        watch, n_heard = current_watch(), 0
        for number in self._places.numbers("busy"):
            place = self._places[number]
            if place.withdrawn is not None or now - place.since < self.patience.heard_after_s:
                continue
            n_heard += 1
            if not watch.is_wanted(_job_of(place)):
                self.workers.withdraw(number)
                self._places.put(number, replace(place, withdrawn=now))
        if n_heard and watch.heard is not None and now - self._asked >= self.patience.heard_after_s:
            self.workers.ask()
            self._asked = now

    def _take(self, news: News) -> tuple[Job[Any], Any] | None:
        """Note what happened; a job that ended by it, with its outcome."""
        place = self._places[news.place]
        job = place.job
        if isinstance(news, Up):
            self._places.put(news.place, Place("idle", self._clock()))
        elif isinstance(news, Unfit):
            self._leave_out(news, job)
        elif isinstance(news, Lost):
            return self._lose(news)
        elif isinstance(news, Heard):
            if job is not None and (heard := current_watch().heard) is not None:
                heard(Running(job, news.reached, self._clock() - place.since, news.place))
        elif isinstance(news, Withdrawn):
            self._places.put(news.place, Place("idle", self._clock()))
        elif job is not None:
            self._places.put(news.place, Place("idle", self._clock()))
            if news.outcome.failure == "memory" and self._may_try_again(job):
                self._alone.append(job)
                return None
            if news.outcome.failure is None and self.patience.learn(place.kin, self._clock() - place.since):
                self._places.look_at = self._clock()
            return job, news.outcome
        return None

    def _lose(self, news: Lost) -> tuple[Job[Any], Any] | None:
        place = self._places[news.place]
        if place.job is None:
            self._lose_at_start(news, place.n_starts + 1)
            return None
        job = place.job
        if news.reason != "node" and not self._may_try_again(job):
            return self._give_up(news.place, "memory" if news.reason == "memory" else "worker", news.said)
        (self._alone if news.reason == "memory" else self._again).append(job)
        self._leave(news.place, "pausing")
        return None

    def _lose_at_start(self, news: Lost, n_starts: int) -> None:
        """Ask for another worker after a pause: what its machine suffers from passes, but what ends a worker does not."""
        self._leave(news.place, "pausing", n_starts)
        if news.reason == "worker" and n_starts >= self.patience.max_starts:
            error = WorkerError(f"A worker does not start: {news.said or 'it ends'}")
            self._leave_out(Unfit(news.place, error), None)
        elif news.reason == "memory":
            self._told(
                f"A worker was ended at its start, since memory is nearly full; it is asked for again ({news.said})"
            )

    def _leave_out(self, news: Unfit, job: Job[Any] | None) -> None:
        if job is not None:
            self._again.appendleft(job)
        self._places.put(news.place, Place("out", self._clock()))
        if self._places.n_in("out") == len(self._places):
            raise news.error
        self._told(f"A worker is left out: {news.error}")

    def _may_try_again(self, job: Job[Any]) -> bool:
        self._tries[job.key] += 1
        return self._tries[job.key] < self.patience.max_tries

    def _give_up(self, number: int, failure: Failure, said: str = "") -> tuple[Job[Any], Any]:
        """The outcome of a job whose worker is ended for good reason."""
        place = self._places[number]
        job = _job_of(place)
        after = f"after {self._clock() - place.since:.0f} s" + (f" ({said})" if said else "")
        tries = f", {self._tries[job.key]} times" if self._tries[job.key] > 1 else ""
        self._leave(number, "pausing")
        return job, job.spec.outcome(error=f"{REASONS[failure]} {after}{tries}", failure=failure)

    def _wait_s(self) -> float:
        """How long news may be waited for: until the next deadline."""
        return max(0.0, self._places.look_at - self._clock())


def _job_of(place: Place) -> Job[Any]:
    """The job at a place that is busy."""
    assert place.job is not None
    return place.job
