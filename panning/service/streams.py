"""Events of jobs as they come, for any number of listeners: one reader a job, whoever listens.

A listener that is new, or too slow for the lines that are kept in memory, reads those that it lacks from the file. A stream
ends with its job, and at once when the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from panning.service.board import Board, News
from panning.service.events import EventReader
from panning.service.folder import JobFolder
from panning.service.store import Store
from panning.service.words import ENDED, Job, NoJobError

#: How often a job's file is looked at while somebody listens.
LOOK_S = 0.2
#: So many lines are kept in memory, and handed on at a time.
MOST_KEPT = 500
#: A stream says that it is there after so long without an event.
QUIET_S = 15.0


@dataclass(frozen=True)
class Told:
    """What a listener gets.

    Attributes:
        lines: events with their ids, the oldest first; none when all is quiet.
        job: as it is now, where it has changed.
    """

    lines: tuple[tuple[int, bytes], ...] = ()
    job: Job | None = None


class Channel:
    """The events of one job while somebody listens; it lives in the server's event loop."""

    def __init__(self, folder: JobFolder) -> None:
        self.reader = EventReader(folder.events)
        self.first = 0  # the kept lines follow it
        self.kept: deque[tuple[int, bytes]] = deque()
        self.n_listeners = 0
        self.job: Job | None = None
        self.version = 0
        self.task: asyncio.Task[None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._looking = asyncio.Lock()

    def changed(self) -> asyncio.Future[None]:
        """Done when there is something new."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def tell(self) -> None:
        """Wake all listeners."""
        self.version += 1
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def look(self) -> bool:
        """Read what is new in the file, of which the last lines are kept; whether there was anything."""
        async with self._looking:
            lines = await asyncio.to_thread(lambda: deque(self.reader.lines(), maxlen=MOST_KEPT))
            self.kept = deque([*self.kept, *lines], maxlen=MOST_KEPT)
            self.first = self.kept[0][0] - 1 if self.kept else 0
        return bool(lines)

    def after(self, last: int) -> tuple[tuple[int, bytes], ...] | None:
        """The kept lines behind an id; None if some of them are not kept any more."""
        return None if last < self.first else tuple(line for line in self.kept if line[0] > last)


class Streams:
    """The open streams of a server.

    Args:
        store: of the jobs.
        folder: gives the folder of a job.

    Attributes:
        n_listeners: of all jobs, and of the list of jobs.
    """

    def __init__(self, store: Store, folder: Callable[[int], JobFolder]) -> None:
        self._store, self._folder = store, folder
        self._channels: dict[int, Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = True
        self._board = Board(store, folder, QUIET_S)
        self.n_listeners = 0

    def told(self, job: Job) -> None:
        """Take note of a job's new state; from any thread."""
        self._soon(self._hear, job)

    def gone(self, job: Job) -> None:
        """Take note that a job was deleted; from any thread."""
        self._soon(self._board.lose, job)

    def close(self) -> None:
        """End all streams at once; in the loop's thread."""
        self._is_open = False
        self._board.close()
        for channel in self._channels.values():
            channel.tell()

    async def listen(self, number: int, after: int = 0) -> AsyncIterator[Told]:
        """The events of a job behind an id, and its states, until it has ended or the server does.

        Raises:
            NoJobError: if the job goes while somebody listens, or was never there.
        """
        self._loop = asyncio.get_running_loop()
        channel = self._join(number)
        try:
            job = await asyncio.to_thread(self._store.job, number)
            channel.job = channel.job or job  # a step may have been told meanwhile
            said, last, own = None, after, EventReader(self._folder(number).events, after)
            while self._is_open:
                seen, job = channel.version, channel.job
                is_over = job.state in ENDED
                if is_over:
                    await channel.look()
                if (lines := channel.after(last)) is None:
                    lines = tuple(await asyncio.to_thread(lambda: list(islice(own.lines(), MOST_KEPT))))
                last = lines[-1][0] if lines else last
                own.last = last
                new = None if job == said or (is_over and lines) else job  # an end is told behind all lines
                if lines or new is not None:
                    said = new or said
                    yield Told(lines, new)
                elif is_over:
                    return
                elif not await self._wait(channel, seen):
                    yield Told()
        finally:
            self._leave(number, channel)

    async def listen_to_all(
        self, after: Mapping[int, int], listing: bool = False, owner: int | None = None
    ) -> AsyncGenerator[tuple[int, Told | None] | News, None]:
        """The events of several jobs as they come, each told with its job's number, until all have ended or the server does.

        None is told of a job that is gone.

        Args:
            after: number of a job -> the id of the last event that was seen.
            listing: tell also what happens in the list of jobs, until the server ends.
            owner: the token whose list it is; None for that of all jobs.
        """
        # Who reads slowly is waited for.
        told: asyncio.Queue[tuple[int, Told | None] | News | None] = asyncio.Queue(maxsize=1)

        async def hear(number: int) -> None:
            try:
                async for one in self.listen(number, after[number]):
                    await told.put((number, one))
            except NoJobError:
                await told.put((number, None))
            await told.put(None)

        async def hear_list() -> None:
            self._loop = asyncio.get_running_loop()
            self.n_listeners += 1
            try:
                async with contextlib.aclosing(self._board.listen(owner)) as news:
                    async for one in news:
                        await told.put(one)
            finally:
                self.n_listeners -= 1
            await told.put(None)

        tasks = [asyncio.create_task(hear(number)) for number in after]
        tasks += [asyncio.create_task(hear_list())] if listing else []
        try:
            left = len(tasks)
            while left:
                if (one := await told.get()) is None:
                    left -= 1
                else:
                    yield one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, channel: Channel, seen: int) -> bool:
        """Wait for something new; whether there is."""
        if channel.version != seen or not self._is_open:
            return True
        done, _ = await asyncio.wait([channel.changed()], timeout=QUIET_S)
        return bool(done)

    def _join(self, number: int) -> Channel:
        channel = self._channels.get(number)
        if channel is None:
            channel = self._channels[number] = Channel(self._folder(number))
            channel.task = asyncio.create_task(self._read(channel))
        channel.n_listeners += 1
        self.n_listeners += 1
        return channel

    def _leave(self, number: int, channel: Channel) -> None:
        self.n_listeners -= 1
        channel.n_listeners -= 1
        if channel.n_listeners == 0:
            if channel.task is not None:
                channel.task.cancel()
            if self._channels.get(number) is channel:
                del self._channels[number]

    async def _read(self, channel: Channel) -> None:
        while self._is_open:
            with contextlib.suppress(OSError):  # of a machine without room or files left: the next look may do better
                if await channel.look():
                    channel.tell()
            await asyncio.sleep(LOOK_S)

    def _soon(self, step: Callable[[Job], None], job: Job) -> None:
        if self._loop is not None and (self._channels or self._board.is_heard):
            with contextlib.suppress(RuntimeError):  # the loop has just ended, and all streams with it
                self._loop.call_soon_threadsafe(step, job)

    def _hear(self, job: Job) -> None:
        self._board.hear(job)
        if (channel := self._channels.get(job.id)) is not None:
            channel.job = job
            channel.tell()
