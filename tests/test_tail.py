"""What the dispatcher makes of many workers: as much as list scheduling of the same jobs, which is what can be had by
whoever does not know beforehand how long jobs take."""

from __future__ import annotations

import heapq
import random

from test_dispatch import GOOD, Fake, run, training

from panning.jobs.patience import ENOUGH_TRAININGS, MIN_DEADLINE_S, Patience
from panning.jobs.places import LOOK_S, Place, Places


def ideal(seconds: list[float], n_workers: int) -> float:
    """When the last of these jobs ends, if each goes to the worker that is free first."""
    free = [0.0] * n_workers
    for one in seconds:
        heapq.heappush(free, heapq.heappop(free) + one)
    return max(free)


def test_four_short_jobs_and_a_long_one_that_comes_last() -> None:
    """By hand: two workers are busy for 2 of 6 s until the last job begins, and one of them to the end."""
    seconds = [1.0, 1.0, 1.0, 1.0, 4.0]
    fake = Fake(2, lambda job, n, place: (seconds[job.spec.seed], GOOD), start=lambda place, n: 0.0)
    run(fake, map(training, range(5)))
    assert fake.now == ideal(seconds, 2) == 6.0
    assert [when for when, *_ in fake.sent] == [0.0, 0.0, 1.0, 1.0, 2.0]
    assert sum(seconds) / (2 * fake.now) == 8 / 12


def test_a_worker_that_is_lost_costs_its_start_and_its_job_alone() -> None:
    """By hand: of 6 jobs of 1 s the first is lost after 1 s with worker 0, which is up again 2 s later."""
    fake = Fake(2, lambda job, n, place: (1.0, "gone" if (job.spec.seed, n) == (0, 1) else GOOD),
                start=lambda place, n: 0.0 if n == 1 else 2.0)  # fmt: skip
    run(fake, map(training, range(6)))
    at = [[(when, seed) for when, place, seed in fake.sent if place == number] for number in (0, 1)]
    assert at == [[(0.0, 0), (3.0, 3), (4.0, 5)], [(0.0, 1), (1.0, 0), (2.0, 2), (3.0, 4)]]
    assert fake.now == 5.0


def test_the_end_comes_when_list_scheduling_ends() -> None:
    """To the last bit, for 1 to 100 workers and lognormal durations: no worker waits while there is a job."""
    for seed, n_workers in enumerate((1, 2, 7, 100)):
        lot = random.Random(seed)
        seconds = [lot.lognormvariate(0.0, 1.0) for _ in range(400)]
        fake = Fake(n_workers, lambda job, n, place, s=seconds: (s[job.spec.seed], GOOD), start=lambda place, n: 0.0)  # type: ignore[misc]
        run(fake, map(training, range(400)), Patience(1e9))
        assert fake.now == ideal(seconds, n_workers)


def test_places_know_who_is_first_and_when_something_is_due() -> None:
    places = Places(3, patience := Patience(50.0), 0.0)
    assert places.numbers("pausing") == [0, 1, 2] and places.look_at == 0.0 and places.first_idle() is None
    for number in (2, 0, 1):
        places.put(number, Place("idle", 1.0))
    places.looked(1.0)
    assert places.first_idle() == 0 and places.look_at == 1.0 + LOOK_S
    kin = patience.kin(job := training(0))
    places.put(0, Place("busy", 1.5, job=job, kin=kin))
    assert places.first_idle() == 1 and places.n_in("idle", "busy") == 3 and places.n_in("busy") == 1
    assert places.look_at == 1.0 + LOOK_S  # its deadline is later
    places.looked(51.0)
    assert places.look_at == 51.5 and places.overdue(51.4) == [] and places.overdue(51.5) == [0]


def test_a_deadline_that_is_learned_holds_at_once() -> None:
    """A job that hangs since before its kind was known is given up at the deadline that was learned since."""
    n = ENOUGH_TRAININGS
    fake = Fake(2, lambda job, n, place: None if job.spec.seed == 0 else (1.0, GOOD))
    found = run(fake, map(training, range(n + 1)), Patience(1e6))
    assert found[-1][0] == 0 and found[-1][1].failure == "time"
    assert fake.now == 2.0 + MIN_DEADLINE_S
