"""Where a whole run is, and how long it still takes: its own estimate, from its events alone.

A stage that has done steps in this process goes on at their pace; any other takes what its cost in the plan (``plan_event``)
says at the pace of all steps so far.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from panning.foundation.errors import ConfigError
from panning.foundation.progress import BESIDE, Event, Listener, Stage


class Course:
    """A listener that knows the phase and the time left.

    Args:
        clock: in seconds.

    Attributes:
        is_planned: whether the run has told its plan.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.is_planned = False
        self._stages: dict[str, Stage] = {}
        self._done: dict[str, int] = {}
        self._begun: dict[str, tuple[float, int]] = {}  # stage -> when it began here, and the steps done before
        self._ended: dict[str, float] = {}  # stage -> when its last event came
        self._last = clock()  # when the last event of all came
        self._current = ""

    def hear(self, event: Event) -> None:
        """Take in the next event."""
        now = self._clock()
        if event.kind == "plan":
            self.is_planned, self._current = True, ""
            self._done, self._begun = {}, {}  # what came before, as a start of Ray, is no part of the plan
            self._stages = {stage["name"]: Stage(**stage) for stage in event.facts["stages"]}
        elif event.kind not in BESIDE and (not self.is_planned or event.stage in self._stages):
            known = self._stages.get(event.stage, Stage(event.stage, event.total, float(event.total)))
            cost = known.cost * event.total / max(known.steps, 1)
            self._stages[event.stage] = Stage(event.stage, event.total, cost)
            # What workers need to start comes before the stage is told, and is no part of any pace.
            began = (now, event.done) if event.kind == "stage" else (self._last, event.done - 1)
            self._begun.setdefault(event.stage, began)
            self._done[event.stage], self._ended[event.stage] = event.done, now
            self._current = event.stage
        if event.kind != "running":  # it ends nothing: the next step has taken its time, too
            self._last = now

    @property
    def phase(self) -> tuple[int, int]:
        """The number of the present stage, from 1, and that of all stages."""
        return list(self._stages).index(self._current) + 1 if self._current else 0, len(self._stages)

    @property
    def seconds_left(self) -> float | None:
        """What the run still takes; None before its first step is done, and where a stage to come has no pace yet."""
        measured = {name: self._measured(name) for name in self._begun}
        measured = {name: one for name, one in measured.items() if one[1] > 0}
        cost = sum(self._cost_of_step(name) * steps for name, (_, steps) in measured.items())
        pace = sum(seconds for seconds, _ in measured.values()) / cost if cost > 0 else None
        left = 0.0
        for name in list(self._stages)[max(self.phase[0] - 1, 0) :]:
            stage, done = self._stages[name], self._done.get(name, 0)
            if name in measured:
                seconds, steps = measured[name]
                of_step = seconds / steps
            elif pace is None:
                return None
            else:
                of_step = self._cost_of_step(name) * pace
            of_stage = of_step * (stage.steps - done)
            if name == self._current:
                of_stage = max(0.0, of_stage - (self._clock() - self._last))
            left += of_stage
        return left

    def title(self, event: Event) -> str:
        """The event's stage, with its number where the run has several."""
        number, n = self.phase
        return event.stage if n < 2 or event.stage not in self._stages else f"{number}/{n} {event.stage}"

    @property
    def left(self) -> str:
        """Of a run that told its plan, in words; where there is one stage alone, the counts say enough."""
        left = self.seconds_left if self.is_planned else None
        return "" if left is None else f"about {duration(left)} left"

    def _measured(self, name: str) -> tuple[float, int]:
        """Seconds and steps of a stage in this process, until its last event."""
        begun, before = self._begun[name]
        return self._ended[name] - begun, self._done[name] - before

    def _cost_of_step(self, name: str) -> float:
        stage = self._stages[name]
        return stage.cost / max(stage.steps, 1)


def duration(seconds: float) -> str:
    """A time as one says it.

    Examples:
        >>> from panning.foundation.course import duration
        >>> duration(8), duration(95), duration(4000), duration(200_000)
        ('8 s', '2 min', '1 h 7 min', '55 h 33 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


#: Units of a time that a user names.
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """A time as one says it on a command line, in seconds.

    Raises:
        ConfigError: if it is none.

    Examples:
        >>> from panning.foundation.course import seconds_of
        >>> seconds_of("30m"), seconds_of("1h30m"), seconds_of("0.5d")
        (1800.0, 5400.0, 43200.0)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"'{text:.40}' is no time: give days, hours, minutes or seconds, like 2d, 1h30m or 90s.")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def lines(
    say: Callable[[str], None],
    note: Callable[[Mapping[str, Any]], str] = lambda facts: "",
    course: Course | None = None,
) -> Listener:
    """A listener that says a line at each full tenth of a stage, so that a log stays short.

    Args:
        say: takes a line.
        note: what a line adds of an event's facts.

    Examples:
        >>> from panning.foundation.course import lines
        >>> from panning.foundation.progress import Event
        >>> tell = lines(print)
        >>> for done in range(41):
        ...     tell(Event("pruning", done, 400, "round"))
        pruning: 10% (40 of 400)
    """
    course, tenths = course or Course(), dict[str, int]()

    def show(event: Event) -> None:
        course.hear(event)
        if event.kind in BESIDE:
            return
        tenth = event.done * 10 // max(event.total, 1)
        title, begins = course.title(event), event.stage not in tenths and not tenth
        if tenth > tenths.get(event.stage, 0):
            count = f"{event.done * 100 // event.total}% ({event.done} of {event.total})"
            more = ", ".join(part for part in (note(event.facts), course.left) if part)
            say(f"{title}: {count} {more}".rstrip())
        elif begins and title != event.stage:
            say(f"{title} begins {course.left}".rstrip())
        elif begins and event.total == 1:  # it has no tenths, and may take minutes
            say(f"{title} ...")
        tenths[event.stage] = tenth

    return show
