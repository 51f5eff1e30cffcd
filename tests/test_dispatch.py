"""The dispatcher against workers that are told what becomes of each job, on a clock of their own; no Ray, no waiting."""

from __future__ import annotations

import ast
import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from panning.foundation.errors import DataError, WorkerError
from panning.foundation.stopping import Reached
from panning.jobs.dispatch import Dispatcher
from panning.jobs.executor import SerialExecutor
from panning.jobs.news import Done, Heard, Lost, News, Unfit, Up, Withdrawn
from panning.jobs.outcome import PruneOutcome, TrainOutcome
from panning.jobs.patience import ENOUGH_TRAININGS, Patience
from panning.jobs.spec import PruneSpec, TrainSpec
from panning.jobs.watch import Running, Watch, watched
from panning.jobs.ways import Method
from panning.jobs.work import Job
from panning.tasks import TaskSpec
from panning.training import Recipe

TASK = TaskSpec(model="mlp", data="digits", n_train=100)
GOOD = TrainOutcome(accuracy=0.5, loss=1.0, train_loss=1.0, images_seen=1)
SNIP = Method(method="snip")


def training(seed: int) -> Job[TrainOutcome]:
    return Job(TrainSpec(task=TASK, seed=seed, mask=None, recipe=Recipe()))


def pruning(seed: int) -> Job[PruneOutcome]:
    return Job(PruneSpec(task=TASK, seed=seed, density=0.1, by=SNIP))


class Fake:
    """Workers on a clock that stands still but in ``news``.

    Args:
        fate: job, number of the try, place -> seconds, and what is heard then; None hangs for ever.
        start: place, number of the start -> seconds until it is up; a text is why it is lost, an error why it is unfit;
            news are what is heard.
        step_s: between two steps of a job, in which it hears that it is not wanted; None does not hear it.
    """

    def __init__(
        self,
        n_places: int,
        fate: Callable[[Job[Any], int, int], tuple[float, Any] | None] = lambda job, n, place: (1.0, GOOD),
        start: Callable[[int, int], float | str | Exception | Lost | None] = lambda place, n: 2.0,
        step_s: float | None = 1.0,
    ) -> None:
        self.n_places, self.fate, self.on_start = n_places, fate, start
        self.step_s = step_s
        self.asked: list[float] = []
        self.withdrawn: list[tuple[float, int]] = []  # when, which seed
        self.now = 0.0
        self.events: list[tuple[float, int, int, News]] = []
        self.order = itertools.count()
        self.tries: dict[str, int] = defaultdict(int)
        self.starts: dict[int, int] = defaultdict(int)
        self.up: set[int] = set()
        self.busy: dict[int, Job[Any]] = {}
        self.sent: list[tuple[float, int, int]] = []  # when, where, which seed
        self.spans: list[tuple[float, int, float]] = []  # when, where, for how long
        self.most_at_once = 0
        self.ended: dict[int, float] = {}  # place -> when its last job did
        self.idle_s = 0.0  # between the end of a job and the next at its place

    def clock(self) -> float:
        return self.now

    def later(self, seconds: float, news: News) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), news.place, news))

    def start(self, place: int) -> None:
        assert place not in self.up and place not in self.busy
        self.starts[place] += 1
        found = self.on_start(place, self.starts[place])
        if isinstance(found, str):
            self.later(1.0, Lost(place, said=found))
        elif isinstance(found, Exception):
            self.later(1.0, Unfit(place, found))
        elif isinstance(found, Lost):
            self.later(1.0, found)
        elif found is not None:
            self.later(found, Up(place))

    def send(self, place: int, job: Job[Any]) -> None:
        assert place in self.up and place not in self.busy
        self.busy[place] = job
        self.tries[job.key] += 1
        if self.tries[job.key] == 1:  # in the end workers are idle while the last jobs run
            self.idle_s += self.now - self.ended.get(place, self.now)
        self.sent.append((self.now, place, job.spec.seed))
        self.most_at_once = max(self.most_at_once, len(self.busy))
        if (found := self.fate(job, self.tries[job.key], place)) is not None:
            seconds, what = found
            self.spans.append((self.now, place, seconds))
            news = Unfit(place, what) if isinstance(what, Exception) else what
            self.later(
                seconds, Lost(place, what) if isinstance(what, str) else Done(place, news) if news is what else news
            )

    def ask(self) -> None:
        self.asked.append(self.now)
        for place, job in self.busy.items():
            self.later(0.0, Heard(place, Reached(job.spec.seed, 100, "epoch")))

    def withdraw(self, place: int) -> None:
        self.withdrawn.append((self.now, self.busy[place].spec.seed))
        if self.step_s is not None:
            self.forget(place)
            self.later(self.step_s, Withdrawn(place))

    def forget(self, place: int) -> None:
        self.events = [event for event in self.events if event[2] != place]
        heapq.heapify(self.events)

    def stop(self, place: int) -> None:
        self.up.discard(place)
        self.busy.pop(place, None)
        self.forget(place)

    def news(self, timeout_s: float) -> list[News]:
        if not self.events or self.events[0][0] > self.now + timeout_s:
            self.now += timeout_s
            return []
        self.now, _, place, news = heapq.heappop(self.events)
        if place in self.busy and not isinstance(news, Heard):
            del self.busy[place]
            self.ended[place] = self.now
        if isinstance(news, Up):
            self.up.add(place)
        elif not isinstance(news, Done | Heard | Withdrawn):
            self.up.discard(place)
        return [news]


def run(
    fake: Fake, jobs: Any, patience: Patience | None = None, told: list[str] | None = None
) -> list[tuple[int, Any]]:
    """Seed and outcome of every job, in the order in which they end."""
    told = [] if told is None else told
    dispatcher = Dispatcher(fake, patience or Patience(100.0), fake.clock, told.append)
    found = [(job.spec.seed, outcome) for job, outcome in dispatcher.run(jobs)]
    assert not fake.busy
    dispatcher.close()
    return found


def test_outcomes_come_as_they_end_and_no_worker_waits_for_another() -> None:
    fake = Fake(2, lambda job, n, place: (10.0 if job.spec.seed == 0 else 1.0, GOOD))
    assert [seed for seed, _ in run(fake, map(training, range(6)))] == [1, 2, 3, 4, 5, 0]
    assert fake.now == 12.0  # two seconds of start


def test_the_next_job_is_asked_for_when_a_worker_is_free_and_after_the_last_outcome_was_told() -> None:
    asked: list[int] = []
    told: list[int] = []

    def ask() -> Iterator[Job[TrainOutcome]]:
        for seed in range(20):
            asked.append(seed)
            assert len(asked) - len(told) <= 3  # never more than there are workers
            yield training(seed)

    fake = Fake(3)
    for job, _ in Dispatcher(fake, Patience(), fake.clock).run(ask()):
        told.append(job.spec.seed)
    assert sorted(told) == list(range(20))


def test_what_is_asked_next_may_depend_on_what_was_told() -> None:
    """As asynchronous successive halving asks: one job more for each that ended."""
    left = [training(0), training(1)]

    def ask() -> Iterator[Job[TrainOutcome]]:
        while left:
            yield left.pop(0)

    fake, seen = Fake(1), []
    for job, _ in Dispatcher(fake, Patience(), fake.clock).run(ask()):
        seen.append(job.spec.seed)
        if job.spec.seed < 4:
            left.append(training(job.spec.seed + 10))
    assert seen == [0, 1, 10, 11]


def test_an_asker_without_a_job_is_asked_again_after_the_next_outcome_and_not_before() -> None:
    told: list[int] = []
    n_asked = 0

    def ask() -> Iterator[Job[TrainOutcome] | None]:
        """Three jobs, and for each outcome one more, up to six."""
        nonlocal n_asked
        for seed in range(6):
            while seed >= 3 and len(told) < seed - 1:
                n_asked += 1
                yield None
            yield training(seed)

    fake = Fake(4, lambda job, n, place: (1.0 + job.spec.seed, GOOD))
    for job, _ in Dispatcher(fake, Patience(), fake.clock).run(ask()):
        told.append(job.spec.seed)
    assert told == [0, 1, 2, 3, 4, 5] and 1 < n_asked <= 7


def test_an_asker_without_a_job_while_nothing_runs_has_ended() -> None:
    fake = Fake(2)
    assert run(fake, iter([training(0), None, None, None, training(1)])) == [(0, GOOD)]
    assert [job.spec.seed for job, _ in SerialExecutor().run(iter([None, training(1)]))] == []


def test_a_job_that_waits_for_memory_runs_while_the_asker_waits_for_it_and_so_does_what_a_lost_worker_had() -> None:
    """The asker has nothing before it is told the outcome of this very job."""
    for fate in ("memory", "worker"):
        told: list[int] = []

        def ask(told: list[int] = told) -> Iterator[Job[TrainOutcome] | None]:
            yield training(0)
            while not told:
                yield None
            yield training(1)

        fake = Fake(3, lambda job, n, place, fate=fate: (1.0, fate if n == 1 and job.spec.seed == 0 else GOOD))
        for job, _ in Dispatcher(fake, Patience(), fake.clock).run(ask()):
            told.append(job.spec.seed)
        assert told == [0, 1]


def test_who_is_told_of_a_job_that_was_given_up_is_asked_again() -> None:
    told: list[int] = []

    def ask() -> Iterator[Job[TrainOutcome] | None]:
        yield training(0)
        while not told:
            yield None
        yield training(1)

    fake = Fake(1, lambda job, n, place: None if job.spec.seed == 0 else (1.0, GOOD))
    for job, _ in Dispatcher(fake, Patience(30.0), fake.clock).run(ask()):
        told.append(job.spec.seed)
    assert told == [0, 1]


def test_a_trial_that_raises_is_told_at_once_and_never_tried_again() -> None:
    raised = TrainOutcome(error="RuntimeError: x", failure="raised")
    fake = Fake(1, lambda job, n, place: (1.0, raised if job.spec.seed == 1 else GOOD))
    found = dict(run(fake, map(training, range(3))))
    assert found == {0: GOOD, 1: raised, 2: GOOD}
    assert [seed for _, _, seed in fake.sent] == [0, 1, 2]


def test_a_lost_worker_costs_its_start_and_its_job_is_tried_again() -> None:
    fake = Fake(2, lambda job, n, place: (1.0, "worker") if job.spec.seed == 3 and n == 1 else (1.0, GOOD))
    assert sorted(run(fake, map(training, range(8)))) == [(seed, GOOD) for seed in range(8)]
    assert fake.starts == {0: 1, 1: 2} or fake.starts == {0: 2, 1: 1}
    assert max(fake.tries.values()) == 2 and fake.now <= 9.0


def test_a_job_that_ends_every_worker_fails_after_three_tries_and_the_others_go_on() -> None:
    fake = Fake(1, lambda job, n, place: (1.0, "worker") if job.spec.seed == 0 else (1.0, GOOD))
    found = dict(run(fake, map(training, range(3))))
    assert found[0].failure == "worker" and found[0].error == "its process ended after 1 s, 3 times"
    assert (found[1], found[2]) == (GOOD, GOOD)


def test_the_end_of_a_node_is_no_jobs_fault() -> None:
    fake = Fake(1, lambda job, n, place: (1.0, "node") if n < 9 else (1.0, GOOD))
    assert run(fake, [training(0)]) == [(0, GOOD)]


def test_memory_is_tried_again_when_nothing_else_runs() -> None:
    no_memory = TrainOutcome(error="MemoryError", failure="memory")

    def fate(job: Job[Any], n: int, place: int) -> tuple[float, Any]:
        if job.spec.seed in (1, 2):
            return (1.0, GOOD) if len(fake.busy) == 1 else (0.5, no_memory if job.spec.seed == 1 else "memory")
        return 2.0, GOOD

    fake = Fake(3, fate)
    assert sorted(run(fake, map(training, range(6)))) == [(seed, GOOD) for seed in range(6)]
    assert [seed for _, _, seed in fake.sent][-2:] == [1, 2] and fake.most_at_once == 3


def test_what_never_fits_into_memory_fails() -> None:
    fake = Fake(2, lambda job, n, place: (1.0, "memory"))
    ((_, outcome),) = run(fake, [training(0)])
    assert outcome.failure == "memory" and "more memory than there is" in outcome.error and fake.tries.popitem()[1] == 3


def test_a_trial_that_hangs_costs_one_deadline_from_its_own_start() -> None:
    """The worker's own start, which takes long here, is no part of it."""
    fake = Fake(2, lambda job, n, place: None if job.spec.seed == 0 else (1.0, GOOD), lambda place, n: 50.0)
    found = run(fake, map(training, range(4)), Patience(30.0))
    assert [seed for seed, _ in found] == [1, 2, 3, 0]
    assert found[-1][1].failure == "time" and found[-1][1].error == "it took too long after 30 s"
    assert fake.now == pytest.approx(80.0) and fake.tries[training(0).key] == 1


def test_short_trainings_of_a_recipe_have_a_deadline_of_their_own() -> None:
    """After ten that took 20 s one may take 160 s, not an hour; prunings, whose methods differ by hundreds, may."""
    patience = Patience(3600.0)
    fake = Fake(1, lambda job, n, place: None if job.spec.seed == ENOUGH_TRAININGS else (20.0, GOOD))
    found = run(fake, map(training, range(ENOUGH_TRAININGS + 1)), patience)
    assert found[-1][1].error == "it took too long after 160 s"
    assert patience.job_s(patience.kin(pruning(0))) == 3600.0
    assert Patience(3600.0).job_s(patience.kin(training(0))) == 3600.0


def test_a_deadline_that_is_no_round_number_is_reached() -> None:
    """What is waited for and what is late are the same number: else a wait of 1e-15 s is repeated for ever."""
    for seed in range(300):
        lot = random.Random(seed)
        start, deadline = 2.0 + lot.random(), 30.0 + lot.random()
        fake = Fake(1, lambda job, n, place: None, lambda place, n, start=start: start)
        ((_, outcome),) = run(fake, [training(0)], Patience(deadline))
        assert outcome.failure == "time"


def test_a_worker_that_cannot_be_placed_keeps_no_job_waiting() -> None:
    """One of two nodes is gone: its worker is asked for again with growing pauses, and the other one does all."""
    told: list[str] = []
    fake = Fake(2, lambda job, n, place: (10.0, GOOD), lambda place, n: 2.0 if place == 0 else None)
    assert len(run(fake, map(training, range(40)), Patience(40.0), told)) == 40
    assert fake.now == 402.0
    assert fake.starts[1] == 3 and "has waited for" in told[0]  # after 120 s, and then 240 s


def test_a_worker_that_dies_at_its_start_is_left_out_in_the_end() -> None:
    told: list[str] = []
    fake = Fake(2, start=lambda place, n: "No module named 'panning'" if place == 1 else 2.0)
    assert len(run(fake, map(training, range(50)), told=told)) == 50
    assert told == ["A worker is left out: A worker does not start: No module named 'panning'"] and fake.starts[1] == 3


@pytest.mark.parametrize(("reason", "n_told"), [("memory", 5), ("node", 0)])
def test_a_worker_whose_machine_suffers_at_its_start_is_asked_for_until_it_is_up(reason: str, n_told: int) -> None:
    """A machine whose memory others have filled, or nodes that come and go: none is the fault of the worker."""
    told: list[str] = []
    fake = Fake(2, start=lambda place, n: Lost(place, reason, "low on memory") if n <= (5 if place else 0) else 2.0)
    assert len(run(fake, map(training, range(200)), Patience(40.0), told)) == 200
    assert fake.starts == {0: 1, 1: 6} and {place for _, place, _ in fake.sent} == {0, 1}
    assert len(told) == n_told and all("memory is nearly full" in text for text in told)


def test_a_machine_without_memory_for_any_worker_ends_the_run_with_a_sentence() -> None:
    fake = Fake(1, start=lambda place, n: Lost(place, "memory", "low on memory"))
    with pytest.raises(WorkerError, match="No worker came up in"):
        run(fake, map(training, range(3)))


def test_a_worker_whose_node_differs_is_left_out_and_nothing_is_sent_to_it() -> None:
    told: list[str] = []
    fake = Fake(2, start=lambda place, n: WorkerError("The node b has other code.") if place == 1 else 2.0)
    assert len(run(fake, map(training, range(5)), told=told)) == 5
    assert told == ["A worker is left out: The node b has other code."]
    assert {place for _, place, _ in fake.sent} == {0}


def test_a_node_without_the_data_gives_its_job_back() -> None:
    told: list[str] = []
    fake = Fake(2, lambda job, n, place: (0.1, DataError("On the node b: no file.")) if place == 1 else (1.0, GOOD))
    assert sorted(run(fake, map(training, range(5)), told=told)) == [(seed, GOOD) for seed in range(5)]
    assert told == ["A worker is left out: On the node b: no file."]


def test_data_that_are_nowhere_are_the_error_of_the_run() -> None:
    fake = Fake(2, lambda job, n, place: (0.1, DataError("no file")))
    with pytest.raises(DataError, match="no file"):
        run(fake, map(training, range(5)))


def test_no_worker_at_all_ends_the_run_with_a_sentence() -> None:
    fake = Fake(2, start=lambda place, n: None)
    with pytest.raises(WorkerError, match=r"No worker came up in 60\d s"):
        run(fake, [training(0)])


def test_a_caller_that_stops_leaves_no_work_behind_and_may_come_again() -> None:
    fake = Fake(2, lambda job, n, place: (5.0, GOOD))
    dispatcher = Dispatcher(fake, Patience(), fake.clock)
    stream = dispatcher.run(map(training, range(10)))
    next(stream)
    stream.close()
    assert not fake.busy
    assert len(list(dispatcher.run(map(training, range(4))))) == 4


def test_workers_stay_up_from_run_to_run() -> None:
    fake = Fake(3)
    dispatcher = Dispatcher(fake, Patience(), fake.clock)
    for _ in range(3):
        assert len(list(dispatcher.run(map(training, range(5))))) == 5
    assert set(fake.starts.values()) == {1}
    dispatcher.close()
    assert not fake.up


def test_workers_are_idle_while_they_start_alone() -> None:
    """Lognormal durations, sigma 1; 2 % of the tries end their worker. Each job has its outcome once."""
    lot = random.Random(0)

    def fate(job: Job[Any], n: int, place: int) -> tuple[float, Any]:
        return 30.0 * lot.lognormvariate(0.0, 1.0), "worker" if lot.random() < 0.02 else GOOD

    class Told:
        """What the dispatcher reads of a job."""

        def __init__(self, number: int) -> None:
            self.key = str(number)
            self.spec = training(0).spec if number == 0 else spec

    spec = training(0).spec
    fake = Fake(64, fate)
    keys = [job.key for job, _ in Dispatcher(fake, Patience(1e6), fake.clock).run(map(Told, range(4000)))]  # type: ignore[arg-type]
    assert sorted(keys, key=int) == [str(number) for number in range(4000)]
    n_restarts = sum(fake.starts.values()) - 64
    assert 40 < n_restarts < 160 and 0 < fake.idle_s <= 2.0 * n_restarts + 1e-6


# --- jobs that are heard of, and withdrawn ---


def test_jobs_of_some_seconds_are_heard_of_and_shorter_ones_cost_no_question() -> None:
    heard: list[Running] = []
    fake = Fake(2, lambda job, n, place: (23.0 if job.spec.seed == 0 else 4.0, GOOD))
    with watched(Watch(heard.append)):
        assert len(run(fake, map(training, range(6)))) == 6
    assert len(fake.asked) == 4 and all(b - a >= 5.0 for a, b in itertools.pairwise(fake.asked))
    told = [one for one in heard if one.job.spec.seed == 0]
    assert [one.reached.done for one in told] == [0] * 4 and told[0].worker == 0
    assert [one.seconds for one in told] == sorted(one.seconds for one in told) and 5.0 <= told[0].seconds <= 6.0
    fake = Fake(2, lambda job, n, place: (4.0, GOOD))
    with watched(Watch(heard.append, lambda job: False)):
        assert len(run(fake, map(training, range(6)))) == 6
    assert fake.asked == [] and fake.withdrawn == []
    run(fake := Fake(1, lambda job, n, place: (60.0, GOOD)), [training(0)])
    assert fake.asked == []  # nobody hears it


def test_a_job_that_is_not_wanted_any_more_leaves_no_outcome_and_its_worker_goes_on() -> None:
    """Jobs 0 and 1 take 100 s; from second 30 on nobody wants 1. Its worker then has the time for 2 and 3."""
    fake = Fake(2, lambda job, n, place: (100.0 if job.spec.seed < 2 else 10.0, GOOD))
    with watched(Watch(is_wanted=lambda job: job.spec.seed != 1 or fake.now < 30.0)):
        found = run(fake, map(training, range(4)))
    assert found == [(2, GOOD), (3, GOOD), (0, GOOD)]
    ((when, seed),) = fake.withdrawn
    assert seed == 1 and 30.0 <= when <= 31.0 and sum(fake.starts.values()) == 2


def test_the_asker_is_asked_again_once_a_job_was_withdrawn() -> None:
    """It waits for an outcome that does not come, and may now ask for something else."""

    def ask() -> Iterator[Job[TrainOutcome] | None]:
        yield training(0)
        while fake.now < 30.0:
            yield None
        yield training(1)

    fake = Fake(1, lambda job, n, place: (1000.0 if job.spec.seed == 0 else 1.0, GOOD))
    with watched(Watch(is_wanted=lambda job: job.spec.seed == 1 or fake.now < 30.0)):
        assert run(fake, ask()) == [(1, GOOD)]


def test_a_job_that_takes_no_step_is_withdrawn_with_its_worker() -> None:
    """It hangs, or an epoch takes very long."""
    fake = Fake(1, lambda job, n, place: None if job.spec.seed == 0 else (1.0, GOOD), step_s=None)
    with watched(Watch(is_wanted=lambda job: job.spec.seed == 1 or fake.now < 30.0)):
        assert run(fake, map(training, range(2)), Patience(1000.0, withdraw_s=20.0)) == [(1, GOOD)]
    assert fake.starts == {0: 2} and 50.0 <= fake.now <= 56.0


def test_a_job_whose_end_comes_before_it_hears_that_it_is_not_wanted_has_its_outcome() -> None:
    fake = Fake(1, lambda job, n, place: (35.0, GOOD), step_s=None)
    with watched(Watch(is_wanted=lambda job: fake.now < 30.0)):
        assert run(fake, [training(0)]) == [(0, GOOD)]
    assert len(fake.withdrawn) == 1


@pytest.mark.parametrize("fate", ["worker", "memory"])
def test_what_a_lost_worker_had_is_not_tried_again_where_nobody_wants_it(fate: str) -> None:
    def ask() -> Iterator[Job[TrainOutcome] | None]:
        yield training(0)
        while fake.now < 10.0:
            yield None
        yield training(1)

    fake = Fake(2, lambda job, n, place: (10.0, fate) if job.spec.seed == 0 else (1.0, GOOD))
    with watched(Watch(is_wanted=lambda job: job.spec.seed == 1 or fake.now < 10.0)):
        assert run(fake, ask()) == [(1, GOOD)]
    assert [seed for _, _, seed in fake.sent] == [0, 1]


def test_every_wait_on_ray_has_a_deadline() -> None:
    """A node that is gone would let any other wait for ever."""
    root = Path(__file__).resolve().parent.parent
    waits = []
    for path in [*(root / "panning").rglob("*.py"), *(root / "agents").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.get", "ray.wait"):
                waits.append((path.name, node.lineno, any(word.arg == "timeout" for word in node.keywords)))
    assert len(waits) == 4 and all(has_one for _, _, has_one in waits), waits
