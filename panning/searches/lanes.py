"""Where a search in free order stands at one density: candidates, what runs, what is paid, and what may follow."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from panning.jobs.by import Actions
from panning.jobs.outcome import Outcome, TrainOutcome
from panning.jobs.ways import Way
from panning.jobs.work import Job
from panning.searches.rungs import Ladder
from panning.searches.samplers import Result, Sampler
from panning.searches.trials import Verdict

#: So many candidates in a row that gave no new mask end the asking at a density.
MOST_IN_VAIN = 1000
#: The same where the time is over and there is nobody to choose yet.
MOST_IN_VAIN_LATE = 30
#: Why no new candidate is asked for.
Why = Literal["samplers", "max_trials", "max_cost", "budget", "vain"]


@dataclass(frozen=True)
class Dropped:
    """Why a candidate was not judged at all.

    Attributes:
        is_repeated: whether its mask was tried before.
    """

    why: str
    is_repeated: bool = False


#: What a trial asks for, step by step, and what it says in the end.
Steps = Generator[list[Job[Any]], list[Any], Verdict | Dropped]


@dataclass
class Candidate:
    """A candidate of a density.

    Attributes:
        sampler: who asked for it.
        asked: as its sampler gave it.
        way: as it is tried on every network.
        actions: of the episode that made its mask on the first.
    """

    number: int
    sampler: str
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
        n_in_vain: candidates in a row, up to now, that gave no new mask.
        reasons: why candidates were not judged, those of equal masks apart.
    """

    def __init__(self, density: float, samplers: dict[str, Sampler], shares: list[float], allowed: Allowed) -> None:
        self.density = density
        self.samplers = samplers
        self.allowed = allowed
        self.ladder = Ladder(shares)
        self.candidates: list[Candidate] = []
        self.running: dict[Trial, None] = {}
        self.closed: Why | None = None
        self.paid: dict[str, int] = {}
        self.reasons: set[str] = set()
        self.n_begun = 0
        self._images = 0
        self._held = 0  # prices of what runs
        self._turns = list(samplers)
        self.n_in_vain = 0
        self._worst = 0.0

    @property
    def is_judged(self) -> bool:
        """Whether there is a candidate to choose."""
        return self.ladder.best is not None

    @property
    def has_more(self) -> bool:
        """Whether there is anything that the end of the time ends: asking, what runs, or who could go on."""
        return self.closed is None or bool(self.running) or self.promotion() is not None

    def has_room(self, rung: int) -> bool:
        """Whether a candidate in a rung can still go on to the last within what may be paid."""
        return self._images + self._held + self.allowed.climb(rung) <= self.allowed.images

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
        return "vain" if self.n_in_vain >= MOST_IN_VAIN else None

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

    def begin(self, trial: Trial) -> None:
        """Take in that a trial runs."""
        self.running[trial] = None
        self._held += self.allowed.prices[trial.rung - 1]
        self.n_begun += 1

    def end(self, trial: Trial, said: Verdict | Dropped) -> None:
        """Take in what a trial says, and tell the samplers."""
        del self.running[trial]
        self._held -= self.allowed.prices[trial.rung - 1]
        candidate, verdict = trial.candidate, said if isinstance(said, Verdict) else Verdict.failed(said.why)
        if isinstance(said, Verdict):
            self.ladder.rungs[trial.rung - 1].judge(candidate.number, said)
        self.n_in_vain = 0 if verdict.error is None else self.n_in_vain + 1
        repeats = isinstance(said, Dropped) and said.is_repeated
        if verdict.error is not None and not repeats:
            self.reasons.add(verdict.error)
        value = verdict.rank[0] if verdict.error is None else self._worst
        self._worst = min(self._worst, value)
        result = Result(
            candidate.asked, trial.rung, verdict.accuracy, value,
            trial.images / self.allowed.n_train, verdict.error, candidate.actions, repeats,
        )  # fmt: skip
        for sampler in self.samplers.values():
            sampler.tell(result)
