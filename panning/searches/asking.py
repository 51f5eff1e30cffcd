"""The asking of a search in free order: one stream of jobs over all densities, in which no worker waits for a straggler.

Whenever a worker is free, a density starts a trial: a candidate goes on to a rung (``panning.searches.rungs``), or a sampler
gives a new one. A trial asks for its jobs step by step. What is started next follows from what was started and told before,
in that order, and each such event is noted. So a replay of the notes leads to the same state, and goes on as if nothing had
come between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from panning.jobs.by import Actions
from panning.jobs.outcome import Outcome, TrainOutcome
from panning.jobs.ways import Way
from panning.jobs.work import Job
from panning.searches.rungs import Ladder
from panning.searches.samplers import Result, Sampler
from panning.searches.trials import Verdict

#: So many candidates in a row that gave no new mask end the asking at a density.
MOST_IN_VAIN = 1000
#: Why no new candidate is asked for.
Why = Literal["samplers", "max_trials", "max_cost", "budget", "vain"]
#: What a trial asks for, step by step, and what it says in the end; a text says why it was not judged at all.
Steps = Generator[list[Job[Any]], list[Any], "Verdict | str"]


@dataclass
class Candidate:
    """A candidate of a density.

    Attributes:
        asked: as its sampler gave it.
        way: as it is tried on every network.
        actions: of the episode that made its mask on the first.
    """

    number: int
    asked: Way
    way: Way
    actions: Actions = ()


@dataclass(eq=False)
class Trial:
    """A candidate in a rung.

    Attributes:
        jobs: that it waits for.
        found: their outcomes so far.
        images: that its trainings saw.
    """

    candidate: Candidate
    rung: int
    steps: Steps
    jobs: list[Job[Any]] = field(default_factory=list)
    found: dict[str, Outcome] = field(default_factory=dict)
    images: int = 0


@dataclass(frozen=True)
class Allowed:
    """What a density may try and pay for.

    Attributes:
        n_candidates: None is no limit.
        images: of short trainings.
        prices: of a trial in each rung, in images.
        n_train: images of a dense epoch.
    """

    prices: tuple[int, ...]
    n_train: int
    n_candidates: int | None = None
    images: float = math.inf

    def climb(self, rung: int) -> int:
        """What it costs to go from the begin of a rung to the end of the last."""
        return sum(self.prices[rung - 1 :])


class Lane:
    """Where the search stands at one density.

    Args:
        samplers: name -> sampler; asked in turn.

    Attributes:
        closed: why no new candidate is asked for; None while they are.
        paid: job -> images that it trained on.
    """

    def __init__(self, density: float, samplers: dict[str, Sampler], shares: list[float], allowed: Allowed) -> None:
        self.density = density
        self.samplers = samplers
        self.allowed = allowed
        self.ladder = Ladder(shares)
        self.candidates: list[Candidate] = []
        self.running: list[Trial] = []
        self.closed: Why | None = None
        self.paid: dict[str, int] = {}
        self.n_begun = 0
        self._images = 0
        self._turns = list(samplers)
        self._in_vain = 0

    @property
    def is_judged(self) -> bool:
        """Whether there is a candidate to choose."""
        return self.ladder.best is not None

    def has_room(self, rung: int) -> bool:
        """Whether a candidate in a rung can still go on to the last within what may be paid."""
        held = sum(self.allowed.prices[trial.rung - 1] for trial in self.running)
        return self._images + held + self.allowed.climb(rung) <= self.allowed.images

    def promotion(self) -> tuple[int, int] | None:
        """The candidate that goes on now, and to which rung."""
        if self.closed == "budget":
            return None
        found = self.ladder.promotion()
        if found is None and self.closed is not None and not self.running:
            found = self.ladder.last_promotion()
        return found if found is not None and self.has_room(found[1]) else None

    def reason_to_close(self) -> Why | None:
        """Why there is no new candidate any more, whatever the samplers say."""
        if self.allowed.n_candidates is not None and len(self.candidates) >= self.allowed.n_candidates:
            return "max_trials"
        if not self.has_room(1) and not self.running:
            return "max_cost"
        return "vain" if self._in_vain >= MOST_IN_VAIN else None

    def ask(self) -> tuple[str, Way] | None:
        """The next candidate with the name of its sampler; those that have no more go out."""
        while self._turns:
            name = self._turns.pop(0)
            if (way := self.samplers[name].ask()) is not None:
                self._turns.append(name)
                return name, way
        return None

    def pay(self, job: Job[Any], outcome: Outcome) -> None:
        """Take in what a training cost; one that two trials share counts once."""
        if isinstance(outcome, TrainOutcome) and job.key not in self.paid:
            self.paid[job.key] = outcome.images_seen
            self._images += outcome.images_seen

    def end(self, trial: Trial, said: Verdict | str) -> None:
        """Take in what a trial says, and tell the samplers."""
        self.running.remove(trial)
        candidate, verdict = trial.candidate, said if isinstance(said, Verdict) else Verdict.failed(said)
        if isinstance(said, Verdict):
            self.ladder.rungs[trial.rung - 1].judge(candidate.number, said)
        self._in_vain = 0 if verdict.error is None else self._in_vain + 1
        good = verdict.error is None
        result = Result(
            candidate.asked, trial.rung, verdict.accuracy, verdict.rank[0] if good else 0.0,
            trial.images / self.allowed.n_train, verdict.error, candidate.actions,
        )  # fmt: skip
        for sampler in self.samplers.values():
            sampler.tell(result)


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
        judged: Callable[[Lane, Trial, Verdict | str], None] = lambda lane, trial, said: None,
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
            while self._ready:
                job = self._ready.pop(next(iter(self._ready)))
                if (outcome := self._known(job)) is not None:
                    self.tell(job, outcome)
                else:
                    yield job
            if self._start():
                continue
            if not self._waiting:
                return
            yield None

    def tell(self, job: Job[Any], outcome: Outcome) -> None:
        """Take in the outcome of a job."""
        self._note("told", key=job.key)
        self._ready.pop(job.key, None)
        self.n_told += 1
        for lane, trial in self._waiting.pop(job.key, []):
            lane.pay(job, outcome)
            trial.found[job.key] = outcome
            trial.images += outcome.images_seen if isinstance(outcome, TrainOutcome) else 0
            if all(one.key in trial.found for one in trial.jobs):
                self._go_on(lane, trial)

    # --- what is started next ---

    def _start(self) -> bool:
        """Start a trial at the density that has begun the fewest; False if there is nothing to start now."""
        for lane in sorted(self.lanes.values(), key=lambda lane: lane.n_begun):
            if self._is_late() and lane.is_judged and (lane.closed is None or lane.promotion() is not None):
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
        if lane.closed is not None or (
            self._is_late() and lane.running
        ):  # late, one is tried so that one can be chosen
            return False
        if (why := lane.reason_to_close()) is not None:
            self._close(lane, why)
            return False
        if not lane.has_room(1):  # what runs may turn out to cost less
            return False
        if (asked := lane.ask()) is None:
            self._close(lane, "samplers")
            return False
        name, way = asked
        self._note("ask", density=lane.density, sampler=name, way=way.model_dump(mode="json"))
        self._enter(lane, way)
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

    def _enter(self, lane: Lane, way: Way) -> None:
        candidate = Candidate(len(lane.candidates), way, way)
        lane.candidates.append(candidate)
        self._run(lane, candidate, 1)

    def _go_up(self, lane: Lane, number: int, rung: int) -> None:
        lane.ladder.rungs[rung - 2].promote(number)
        self._run(lane, lane.candidates[number], rung)

    def _run(self, lane: Lane, candidate: Candidate, rung: int) -> None:
        trial = Trial(candidate, rung, self._begin(lane, candidate, rung))
        lane.running.append(trial)
        lane.n_begun += 1
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
            self._enter(lane, way)
        elif kind == "promote":
            self._go_up(lane, said["number"], said["rung"])
        else:
            lane.closed = said["why"] if kind == "close" else None
