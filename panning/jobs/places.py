"""The places of workers, and the worker and job at each. Counts and the next deadline are kept up to date, so
that a step of the dispatcher costs the same for one worker as for a thousand."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Any

from panning.jobs.patience import Patience
from panning.jobs.work import Job

#: Seconds after which the dispatcher looks through all places, even if no deadline has passed.
LOOK_S = 1.0


@dataclass
class Place:
    """The worker at a place, and its job.

    Attributes:
        state: "starting", "idle", "busy", "pausing" until it is started again, or "out" for good.
        since: when the state began, in seconds.
        n_starts: in vain, one after the other.
        kin: of the job (``Patience.kin``).
        withdrawn: when it was told that nobody wants the job any more.
    """

    state: str
    since: float
    n_starts: int = 0
    job: Job[Any] | None = None
    kin: Any = None
    withdrawn: float | None = None


class Places:
    """All places.

    Args:
        now: in seconds; all of them are to be started then.

    Attributes:
        look_at: when something may be due at a place, at the latest; before that nothing is.
    """

    def __init__(self, n: int, patience: Patience, now: float) -> None:
        self._patience = patience
        self._all = [Place("pausing", now - patience.pause_s(0)) for _ in range(n)]
        self._counts = Counter({"pausing": n})
        self._idle: list[int] = []  # a heap, in which others may stand, too
        self.look_at = now

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, number: int) -> Place:
        return self._all[number]

    def put(self, number: int, place: Place) -> None:
        """Note what is at a place now."""
        self._counts[self._all[number].state] -= 1
        self._counts[place.state] += 1
        self._all[number] = place
        if place.state == "idle":
            heapq.heappush(self._idle, number)
        self.look_at = min(self.look_at, self._due(place))

    def n_in(self, *states: str) -> int:
        """How many places are in one of the states."""
        return sum(self._counts[state] for state in states)

    def numbers(self, state: str) -> list[int]:
        """The places in a state."""
        return [number for number, place in enumerate(self._all) if place.state == state]

    def first_idle(self) -> int | None:
        """The first place with a worker that has nothing to do."""
        while self._idle and self._all[self._idle[0]].state != "idle":
            heapq.heappop(self._idle)
        return self._idle[0] if self._idle else None

    def overdue(self, now: float) -> list[int]:
        """The places at which a job takes too long."""
        if now < self.look_at:
            return []
        return [number for number in self.numbers("busy") if now >= self._due(self._all[number])]

    def looked(self, now: float) -> None:
        """All of them were looked through."""
        self.look_at = min([now + LOOK_S, *map(self._due, self._all)])

    def _due(self, place: Place) -> float:
        if place.state == "busy":
            due = place.since + self._patience.job_s(place.kin)
            return due if place.withdrawn is None else min(due, place.withdrawn + self._patience.withdraw_s)
        return place.since + self._patience.pause_s(place.n_starts) if place.state == "pausing" else float("inf")
