"""The asking of a search in free order: one stream of jobs over all densities, in which no worker waits for a straggler.

Whenever a worker is free, a density starts a trial: a candidate goes on to a rung (``panning.searches.rungs``), or a sampler
gives a new one. A trial asks for its jobs step by step. What is started next follows from what was started and told before,
in that order, and each such event is noted. So a replay of the notes leads to the same state, and goes on as if nothing had
come between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from panning.jobs.outcome import Outcome, TrainOutcome
from panning.jobs.ways import Way
from panning.jobs.work import Job
from panning.searches.lanes import MOST_IN_VAIN_LATE, Candidate, Dropped, Lane, Steps, Trial, Why
from panning.searches.trials import Verdict


class Notes(Protocol):
    """Where events are noted, in their order."""

    def add(self, kind: str, **said: Any) -> None:
        """Note an event."""


class Asking:
    """Asks for jobs at all densities (``jobs``), and is told their outcomes (``tell``).

    Attributes:
        n_told: outcomes so far.
        n_passed_over: notes that do not fit what is there, as after failed trials were let run again.

    Args:
        begin: makes the steps of a candidate in a rung.
        known: the outcome of a job that ran before, if it did.
        notes: hears every event, those of a replay apart.
        is_late: whether the time that the search may take is over.
        judged: hears of every trial that ends, those of a replay apart.
    """

    def __init__(
        self, lanes: Iterable[Lane], begin: Callable[[Lane, Candidate, int], Steps],
        known: Callable[[Job[Any]], Outcome | None], notes: Notes, is_late: Callable[[], bool] = lambda: False,
        judged: Callable[[Lane, Trial, Verdict | Dropped], None] = lambda lane, trial, said: None,
    ) -> None:  # fmt: skip
        self.lanes = {lane.density: lane for lane in lanes}
        self._begin = begin
        self._known = known
        self._notes = notes
        self._is_late = is_late
        self._judged = judged
        self._replays = False
        self._ready: dict[str, Job[Any]] = {}
        self._waiting: dict[str, list[tuple[Lane, Trial]]] = {}
        self.n_told = 0
        self.n_passed_over = 0

    @property
    def n_open(self) -> int:
        """Jobs that were asked for and not told."""
        return len(self._waiting)

    def jobs(self, noted: Iterable[tuple[str, dict[str, Any]]] = ()) -> Iterator[Job[Any] | None]:
        """The jobs to run, as ``Executor.run`` takes them, after a replay of what was noted before."""
        self._replays = True
        for kind, said in noted:
            yield from self._replay(kind, said)
        self._replays = False
        self._open_again()
        while True:
            while (job := self._next_ready()) is not None:
                if (outcome := self._known(job)) is not None:
                    self.tell(job, outcome)
                else:
                    yield job
            if self._start():
                continue
            if not self._waiting:
                return
            yield None

    def is_wanted(self, job: Job[Any]) -> bool:
        """Whether the outcome of a job that was asked for is still of use.

        Once the time that the search may take is over, it is where a density has nobody to choose yet. What is not wanted
        stays open: a later call that may take longer asks for it again.
        """
        if self._replays or not self._is_late():
            return True
        return any(not lane.is_judged for lane, _ in self._waiting.get(job.key, ()))

    def waits_for(self, job: Job[Any]) -> tuple[Lane, Trial] | None:
        """The first trial that waits for a job."""
        return next(iter(self._waiting.get(job.key, ())), None)

    def tell(self, job: Job[Any], outcome: Outcome) -> None:
        """Take in the outcome of a job."""
        self._note("told", key=job.key)
        self.n_told += 1
        for lane, trial in self._waiting.pop(job.key, []):
            lane.pay(job, outcome)
            trial.found[job.key] = outcome
            trial.images += outcome.images_seen if isinstance(outcome, TrainOutcome) else 0
            if all(one.key in trial.found for one in trial.jobs):
                self._go_on(lane, trial)

    # --- what is started next ---

    def _next_ready(self) -> Job[Any] | None:
        """The next job that was asked for, is wanted and did not begin."""
        key = next((key for key, job in self._ready.items() if self.is_wanted(job)), None)
        return None if key is None else self._ready.pop(key)

    def _start(self) -> bool:
        """Start a trial at the density that has begun the fewest; False if there is nothing to start now."""
        for lane in sorted(self.lanes.values(), key=lambda lane: lane.n_begun):
            if self._is_late() and lane.is_judged and lane.closed != "budget" and lane.has_more:
                self._close(lane, "budget")
            if self._promote(lane) or self._ask(lane) or (lane.closed and self._promote(lane)):
                return True
        return False

    def _promote(self, lane: Lane) -> bool:
        if (found := lane.promotion()) is None:
            return False
        number, rung = found
        self._note("promote", density=lane.density, number=number, rung=rung)
        self._go_up(lane, number, rung)
        return True

    def _ask(self, lane: Lane) -> bool:
        is_late = self._is_late()
        if lane.closed is not None or (is_late and lane.running):  # late, one is tried so that one can be chosen
            return False
        why: Why | None = "budget" if is_late and lane.n_in_vain >= MOST_IN_VAIN_LATE else lane.reason_to_close()
        if why is not None:
            self._close(lane, why)
            return False
        if not lane.has_room(1):  # what runs may turn out to cost less
            return False
        if (asked := lane.ask()) is None:
            self._close(lane, "samplers")
            return False
        name, way = asked
        self._note("ask", density=lane.density, sampler=name, way=way.model_dump(mode="json"))
        self._enter(lane, name, way)
        return True

    def _close(self, lane: Lane, why: Why) -> None:
        self._note("close", density=lane.density, why=why)
        lane.closed = why

    def _open_again(self) -> None:
        """Ask on where an earlier call was allowed less than this one."""
        if self._is_late():
            return
        for lane in self.lanes.values():
            limited = lane.closed in ("max_trials", "max_cost") and lane.reason_to_close() is None
            if limited or lane.closed == "budget":
                self._note("open", density=lane.density)
                lane.closed = None

    # --- trials ---

    def _enter(self, lane: Lane, sampler: str, way: Way) -> None:
        candidate = Candidate(len(lane.candidates), sampler, way, way)
        lane.candidates.append(candidate)
        self._run(lane, candidate, 1)

    def _go_up(self, lane: Lane, number: int, rung: int) -> None:
        lane.ladder.rungs[rung - 2].promote(number)
        self._run(lane, lane.candidates[number], rung)

    def _run(self, lane: Lane, candidate: Candidate, rung: int) -> None:
        trial = Trial(candidate, rung, self._begin(lane, candidate, rung))
        lane.begin(trial)
        self._go_on(lane, trial)

    def _go_on(self, lane: Lane, trial: Trial) -> None:
        """Ask for the jobs of a trial's next step, or take in what it says."""
        try:
            given: list[Any] | None = [trial.found[job.key] for job in trial.jobs] if trial.jobs else None
            trial.jobs = trial.steps.send(given)  # type: ignore[arg-type]  # the first is None
        except StopIteration as end:
            lane.end(trial, end.value)
            if not self._replays:
                self._judged(lane, trial, end.value)
            return
        trial.found = {}
        for job in trial.jobs:
            if job.key not in self._waiting:
                self._waiting[job.key] = []
                self._ready[job.key] = job
            self._waiting[job.key].append((lane, trial))

    # --- notes ---

    def _note(self, kind: str, **said: Any) -> None:
        if not self._replays:
            self._notes.add(kind, **said)

    def _replay(self, kind: str, said: dict[str, Any]) -> Iterator[Job[Any] | None]:
        """Take in an event that was noted; a job whose outcome is gone runs again, and may then end otherwise: what does not
        fit any more is passed over."""
        if kind == "told":
            if (job := self._ready.pop(said["key"], None)) is None:
                self.n_passed_over += 1
                return
            if (outcome := self._known(job)) is not None:
                self.tell(job, outcome)
                return
            yield job
            while job.key in self._waiting:
                yield None
            return
        lane = self.lanes.get(said["density"])
        if lane is None or (kind == "promote" and not lane.ladder.may_promote(said["number"], said["rung"])):
            self.n_passed_over += 1
        elif kind == "ask":
            asked, way = lane.ask(), Way.model_validate(said["way"])
            self.n_passed_over += asked != (said["sampler"], way)  # another version of the sampler: what is noted holds
            self._enter(lane, said["sampler"], way)
        elif kind == "promote":
            self._go_up(lane, said["number"], said["rung"])
        else:
            lane.closed = said["why"] if kind == "close" else None
