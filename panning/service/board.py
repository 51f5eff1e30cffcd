"""The list of jobs as it changes, for any number of listeners: jobs that are new, have taken a step or are gone, and where
those that run are. A listener is told of all that is new, ten times a second at most; of two steps of a job the last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from panning.foundation.course import Course
from panning.foundation.errors import PanningError
from panning.foundation.progress import BESIDE, Event
from panning.service.events import EventReader
from panning.service.folder import JobFolder
from panning.service.log import Trouble
from panning.service.store import Store
from panning.service.words import Job

#: Seconds between two looks at the running jobs, while somebody listens.
LOOK_S = 0.2
#: The most messages that a listener gets in a second.
RATE = 10.0


@dataclass(frozen=True)
class Place:
    """The stage and the step that a running job has come to.

    Attributes:
        number: of the stage, from 1, of ``n_stages``.
        done: steps of the stage, of ``total``.
    """

    job: int
    stage: str
    number: int
    n_stages: int
    done: int
    total: int


@dataclass(frozen=True)
class News:
    """One message to a listener of the list of jobs.

    Attributes:
        first: nothing was told before: the list may have changed in any way until now.
        jobs: that are new, or have taken a step.
        gone: the numbers of jobs that were deleted.
        places: where running jobs are, of those that have gone on.
    """

    first: bool = False
    jobs: tuple[Job, ...] = ()
    gone: tuple[int, ...] = ()
    places: tuple[Place, ...] = ()


@dataclass(eq=False)
class _Listener:
    """The news that a listener has not got yet. It listens to the jobs of ``token``; None listens to all jobs."""

    token: int | None
    jobs: dict[int, Job] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    places: dict[int, Place] = field(default_factory=dict)
    new: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> News:
        news = News(False, tuple(self.jobs.values()), tuple(sorted(self.gone)), tuple(self.places.values()))
        self.jobs, self.gone, self.places = {}, set(), {}
        self.new.clear()
        return news


class _Tail:
    """Follows the events of a running job to its end."""

    def __init__(self, job: Job, folder: JobFolder) -> None:
        self.token, self.attempt = job.token, job.attempt
        self.place: Place | None = None
        self._reader, self._course = EventReader(folder.events), Course()

    def look(self, number: int) -> Place | None:
        """Read what is new; where the job is, if it has gone on."""
        before = self.place
        for _, line in self._reader.lines():
            try:
                event = Event.of_json(json.loads(line))
                self._course.hear(event)
            except (PanningError, ValueError, TypeError, KeyError):
                continue  # the page of the job passes it over, too
            phase = self._course.phase
            if event.kind not in BESIDE and phase[0]:
                self.place = Place(number, event.stage, *phase, event.done, event.total)
        return None if self.place == before else self.place


class Board:
    """The list of jobs; all but the reading of files is done in the server's event loop.

    Args:
        folder: gives the folder of a job.
        quiet_s: after so long without news a listener is told of nothing.
    """

    def __init__(self, store: Store, folder: Callable[[int], JobFolder], quiet_s: float) -> None:
        self._store, self._folder, self._quiet_s = store, folder, quiet_s
        self._listeners: set[_Listener] = set()
        self._tails: dict[int, _Tail] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_open = True
        self._trouble = Trouble("board")

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens."""
        return bool(self._listeners)

    def hear(self, job: Job) -> None:
        """Take note of a job's new state."""
        for one in self._of(job.token):
            one.jobs[job.id] = job
            one.new.set()

    def lose(self, job: Job) -> None:
        """Take note that a job was deleted."""
        for one in self._of(job.token):
            one.jobs.pop(job.id, None)
            one.gone.add(job.id)
            one.new.set()

    def close(self) -> None:
        """End all that listens."""
        self._is_open = False
        for one in self._listeners:
            one.new.set()

    async def listen(self, token: int | None) -> AsyncGenerator[News, None]:
        """The changes of the list of jobs, as messages, until the server ends.

        Args:
            token: whose jobs; None for those of all.
        """
        mine = _Listener(token)
        known = tuple(tail.place for tail in self._tails.values() if tail.place and token in (None, tail.token))
        self._listeners.add(mine)
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        try:
            yield News(first=True, places=known)
            while self._is_open:
                try:
                    await asyncio.wait_for(mine.new.wait(), self._quiet_s)
                except TimeoutError:
                    yield News()
                    continue
                if (news := mine.take()) != News():
                    yield news
                    await pause(1 / RATE)
        finally:
            self._listeners.discard(mine)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task, self._tails = None, {}

    def _of(self, token: int) -> list[_Listener]:
        return [one for one in self._listeners if one.token in (None, token)]

    async def _look(self) -> None:
        while self._is_open:
            try:
                self._tails, moved = await asyncio.to_thread(self._looked, dict(self._tails))
                self._trouble.over()
            except (OSError, PanningError, DBAPIError) as error:  # the next look may do better
                self._trouble.met(error)
                moved = []
            for token, place in moved:
                for one in self._of(token):
                    one.places[place.job] = place
                    one.new.set()
            await asyncio.sleep(LOOK_S)

    def _looked(self, known: dict[int, _Tail]) -> tuple[dict[int, _Tail], list[tuple[int, Place]]]:
        """The tails of all running jobs, and where those are that have gone on, with their tokens; ``known`` are the tails
        until now."""
        tails, moved = {}, []
        for job in self._store.running():
            tail = known.get(job.id)
            tails[job.id] = (
                tail if tail is not None and tail.attempt == job.attempt else _Tail(job, self._folder(job.id))
            )
            if (place := tails[job.id].look(job.id)) is not None:
                moved.append((job.token, place))
        return tails, moved


async def pause(seconds: float) -> None:
    """Wait, between two tellings."""
    await asyncio.sleep(seconds)
