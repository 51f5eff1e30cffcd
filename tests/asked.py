"""A search in free order without networks: trials of one job each, with outcomes and durations from a lot of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from test_dispatch import TASK, Fake

from panning.agents.config import EpisodeSpec
from panning.jobs.dispatch import Dispatcher
from panning.jobs.outcome import Outcome, TrainOutcome
from panning.jobs.patience import Patience
from panning.jobs.spec import TrainSpec
from panning.jobs.watch import Watch, watched
from panning.jobs.ways import ReplayedEpisode, Way
from panning.jobs.work import Job
from panning.searches.asking import Asking
from panning.searches.lanes import Allowed, Candidate, Lane, Steps
from panning.searches.samplers import Result, Sampler
from panning.searches.trials import Verdict
from panning.training import Recipe

SHARES = (1 / 3, 1 / 3)
#: Of a trial in each rung, in images, which are seconds here.
PRICES = (10, 30, 90)
RECIPES = [Recipe(epochs=n) for n in (1, 3, 9)]
Note = tuple[str, dict[str, Any]]


class Listed(Sampler):
    """So many candidates; remembers what it was told."""

    def __init__(self, n: int = 10**9) -> None:
        self.left, self.n, self.told = n, 0, list[Result]()

    def ask(self) -> Way | None:
        if self.n == self.left:
            return None
        self.n += 1
        return Way(by=ReplayedEpisode(policy="actions", actions=((float(self.n),),), **ROUND))

    def tell(self, result: Result) -> None:
        self.told.append(result)


ROUND: dict[str, Any] = {"n_rounds": 1, "action": EpisodeSpec().action}


class Noted:
    """Notes in memory."""

    def __init__(self, before: Iterable[Note] = ()) -> None:
        self.lines = list(before)

    def add(self, kind: str, **said: Any) -> None:
        self.lines.append((kind, said))


def job(density: float, number: int, rung: int) -> Job[TrainOutcome]:
    return Job(TrainSpec(task=TASK, seed=number, mask=f"{density}", recipe=RECIPES[rung - 1]))


def steps(lane: Lane, candidate: Candidate, rung: int) -> Steps:
    (outcome,) = yield [job(lane.density, candidate.number, rung)]
    if outcome.error is not None:
        return Verdict.failed(outcome.error)
    return Verdict(outcome.accuracy, 1.0, (outcome.accuracy, -outcome.loss))


def lane(n: int = 10**9, density: float = 0.1, **limits: Any) -> Lane:
    return Lane(density, {"listed": Listed(n)}, list(SHARES), Allowed(PRICES, 10, **limits))


def outcome_of(asked: Job[Any], n_levels: int = 10**6, failing: float = 0.0) -> TrainOutcome:
    """The same for a job whenever it runs: the candidate's own quality, and what a short training errs by."""
    rung = RECIPES.index(asked.spec.recipe)
    own, lot = random.Random(asked.spec.seed), random.Random(asked.key)
    if lot.random() < failing:
        return TrainOutcome(error="diverged")
    accuracy = min(1.0, max(0.0, 0.5 + 0.1 * own.gauss(0, 1) + 0.1 * lot.gauss(0, 1) / (rung + 1)))
    return TrainOutcome(
        accuracy=round(accuracy * n_levels) / n_levels, loss=1.0, train_loss=1.0, images_seen=PRICES[rung]
    )


class World:
    """Workers, a clock, and one call of a search on them.

    Args:
        before: notes of an earlier call, with ``known`` outcomes.
        stop: after so many notes the process is killed.
        seconds: that a job takes, by its price in seconds.
    """

    def __init__(
        self, lanes: list[Lane], n_workers: int = 1, before: Iterable[Note] = (), known: dict[str, Outcome] | None = None,
        seconds: Callable[[Job[Any], float], float] = lambda asked, price: price, budget_s: float | None = None,
        outcome: Callable[[Job[Any]], TrainOutcome] = outcome_of,
    ) -> None:  # fmt: skip
        self.known = {} if known is None else known
        self.notes = Noted(before)
        self.fake = Fake(n_workers, self._fate)
        self._seconds, self._outcome = seconds, outcome
        self.asking = Asking(
            lanes, steps, lambda asked: self.known.get(asked.key), self.notes,
            lambda: budget_s is not None and self.fake.now >= budget_s,
        )  # fmt: skip

    def _fate(self, asked: Job[Any], n: int, place: int) -> tuple[float, Any]:
        return self._seconds(asked, PRICES[RECIPES.index(asked.spec.recipe)]), self._outcome(asked)

    def run(self, stop: int | None = None) -> World:
        before = list(self.notes.lines)
        dispatcher = Dispatcher(self.fake, Patience(1e9), self.fake.clock)
        ended = dispatcher.run(self.asking.jobs(before))
        with watched(Watch(is_wanted=self.asking.is_wanted)):
            for asked, outcome in ended:
                self.known[asked.key] = outcome
                if stop is not None and len(self.notes.lines) >= stop:
                    ended.close()
                    break
                self.asking.tell(asked, outcome)
        return self


def lognormal(asked: Job[Any], price: float) -> float:
    return price * random.Random(f"{asked.key} takes").lognormvariate(0.0, 1.0)
