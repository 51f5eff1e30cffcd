"""Beside the bars of a run's stages a terminal shows the jobs that run, and the best candidates so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from rich import progress
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from panning.foundation.course import duration
from panning.foundation.progress import Event
from panning.foundation.text import printable

#: So many jobs are shown; those that have run longest.
MOST_JOBS = 8
#: A job of which nothing was heard for so many seconds is not shown any more: its worker is lost, or nobody wants it.
FORGOTTEN_S = 60.0


class Live:
    """A listener that knows which jobs run and which candidates are the best so far.

    >>> from panning.cli.live import Live
    >>> from panning.foundation.progress import Event
    >>> live = Live()
    >>> facts = {"key": "a", "worker": 1, "item": "SNIP", "seed": 0, "seconds": 90.0}
    >>> facts |= {"unit": "epoch", "reached": 3, "of": 12}
    >>> live.hear(Event("trying candidates", 4, 20, "running", facts))
    >>> live.jobs()
    [('worker 1', 'SNIP, seed 0', 'epoch 3 of 12', '2 min')]

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._running: dict[str, tuple[float, Event]] = {}  # key -> when it was heard of last, and what was said
        self._best: dict[float, tuple[tuple[float, float], str]] = {}  # density -> what is compared, and the name

    def hear(self, event: Event) -> None:
        """Take in the next event."""
        if event.kind == "stage" and event.stage != self._stage:
            self._stage = event.stage
            self._running.clear()
        key = str(event.facts.get("key"))
        if event.kind == "running":
            self._running[key] = (self._clock(), event)
        elif event.kind == "job":
            self._running.pop(key, None)
        elif event.kind == "rung":
            self._judge(event.facts["density"], event.facts["rung"], event.facts["candidates"])

    def _judge(self, density: float, rung: int, candidates: Iterable[dict[str, Any]]) -> None:
        for one in candidates:
            place = (float(rung), float(one["accuracy"]))
            if density not in self._best or place > self._best[density][0]:
                self._best[density] = (place, str(one["candidate"]))

    def jobs(self) -> list[tuple[str, str, str, str]]:
        """Worker, what it does, how far it is and since when, the longest first."""
        now = self._clock()
        self._running = {key: one for key, one in self._running.items() if now - one[0] <= FORGOTTEN_S}
        found = [(event.facts["seconds"] + now - heard, event) for heard, event in self._running.values()]
        return [_row(seconds, event) for seconds, event in sorted(found, key=lambda one: -one[0])[:MOST_JOBS]]

    def best(self) -> list[str]:
        """A sentence for each density of which a candidate was judged."""
        return [
            f"best so far at density {density:.4g}: {name}, validation {accuracy:.2%} in rung {rung:.0f}"
            for density, ((rung, accuracy), name) in sorted(self._best.items(), reverse=True)
        ]


def _row(seconds: float, event: Event) -> tuple[str, str, str, str]:
    facts = event.facts
    what = [str(facts.get("item", "a training" if facts["unit"] == "epoch" else "a mask"))]
    what += [f"{name} {facts[name]:.4g}" for name in ("density", "rung", "seed") if name in facts]
    far = f"{facts['unit']} {facts['reached']} of {facts['of']}"
    return f"worker {facts['worker']}", ", ".join(what), far, duration(seconds)


class Bars(progress.Progress):
    """The bars of stages, and below them what ``below`` knows."""

    def __init__(self, *columns: progress.ProgressColumn, below: Live, **options: Any) -> None:
        self.below = below
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars and the tables below them; rich draws them several times a second."""
        yield self.make_tasks_table(self.tasks)
        if rows := self.below.jobs():
            table = Table.grid(padding=(0, 2))
            for row in rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            yield table
        for sentence in self.below.best():
            yield Text(printable(sentence), no_wrap=True, overflow="ellipsis")
