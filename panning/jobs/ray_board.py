"""How far jobs on Ray are, while they run: a board on which workers write and from which the driver reads.

The board is an actor of its own, without torch, that the driver starts once a job runs for some seconds. A worker writes
on it between two steps of its job, a few seconds apart, and hears there whether the job is still wanted.

NOTE With Ray's concurrency groups a worker could answer by itself while its job runs, but then the job would not be in
the main thread. In another thread glibc gives every large block back to the system (``panning.foundation.memory``): two
masks of VGG-16 took 12.2 s of processor time there, and 6.8 s in the main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from panning.foundation.errors import PanningError
from panning.foundation.extras import extra_packages
from panning.foundation.ray_answers import answer
from panning.foundation.stopping import Reached, WithdrawnError

with extra_packages():
    import ray
    from ray.exceptions import RayError

#: How long a worker waits for the board. One that does not answer holds up no job.
ANSWER_S = 2.0


class Board:
    """The actor that holds how far each job is, as workers write it, and which jobs nobody wants; jobs are known by numbers.

    >>> from panning.foundation.stopping import Reached
    >>> from panning.jobs.ray_board import Board
    >>> board = Board()
    >>> board.withdraw(7)
    >>> board.write(6, Reached(1, 3, "epoch")), board.write(7, Reached(2, 3, "epoch"))
    (True, False)
    >>> {number: str(reached) for number, reached in board.read().items()}, board.read()
    ({6: 'epoch 1 of 3', 7: 'epoch 2 of 3'}, {})
    """

    def __init__(self) -> None:
        self._reached: dict[int, Reached] = {}
        self._unwanted: set[int] = set()

    def write(self, job: int, reached: Reached) -> bool:
        """Note how far a job is; whether it is still wanted."""
        self._reached[job] = reached
        return job not in self._unwanted

    def read(self) -> dict[int, Reached]:
        """How far the jobs are of which workers wrote since the last read."""
        read, self._reached = self._reached, {}
        return read

    def withdraw(self, job: int) -> None:
        """Note that nobody wants a job any more."""
        self._unwanted.add(job)


RemoteBoard: Any = ray.remote(num_cpus=0, max_restarts=0)(Board)


class BoardOfWorker:
    """The board, as the worker sees it that does a job.

    Args:
        name: of the board's actor; it need not run yet.
        heard_after_s: how long a job runs before it writes, and between two times.
    """

    def __init__(self, name: str, heard_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._heard_after_s = heard_after_s
        self._clock = clock
        self._board: Any = None
        self._job, self._last = 0, 0.0

    def begins(self, job: int) -> None:
        """A job begins."""
        self._job, self._last = job, self._clock()

    def hear(self, reached: Reached) -> None:
        """Write that a step is done, if it is not the last and the time before is long ago.

        Raises:
            WithdrawnError: if nobody wants the job any more.
        """
        if (now := self._clock()) - self._last < self._heard_after_s or reached.done == reached.total:
            return
        self._last = now
        try:
            if self._board is None:
                self._board = ray.get_actor(self._name)
            is_wanted = answer(self._board.write.remote(self._job, reached), ANSWER_S)
        except (ValueError, RayError, PanningError):  # it does not run yet, or not any more
            self._board = None
            return
        if not is_wanted:
            raise WithdrawnError


class BoardOfDriver:
    """The board, as the driver sees it. It starts when it is first needed.

    Attributes:
        name: by which workers find it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._board: Any = None

    def read(self) -> Any:
        """The call whose answer is what was written since the last time."""
        return self._running().read.remote()

    def withdraw(self, jobs: Iterable[int]) -> None:
        """Note that nobody wants some jobs any more."""
        for job in jobs:
            self._running().withdraw.remote(job)

    def is_gone(self) -> None:
        """The next call starts another one."""
        self._board = None

    def close(self) -> None:
        """End it."""
        if self._board is not None:
            ray.kill(self._board)
        self._board = None

    def _running(self) -> Any:
        if self._board is None:
            self._board = RemoteBoard.options(name=self.name, get_if_exists=True).remote()
        return self._board
