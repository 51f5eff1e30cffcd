"""Measure the processor time of the driver of a large search: keeping records, and dispatching trials. Nothing is trained.

    python docs/measure/search_scale.py [N_RECORDS] [N_TRIALS]

Prints CPU milliseconds an append at growing numbers of records, what opening costs, and CPU milliseconds a trial of the real
dispatcher with simulated workers whose trials take lognormal times (sigma 1) and end their worker in 2 of 100.
"""

from __future__ import annotations

import heapq
import itertools
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from panning.foundation.machine import environment_info
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.jobs.dispatch import Dispatcher, Done, Lost, News, Up
from panning.jobs.outcome import TrainOutcome
from panning.jobs.patience import Patience
from panning.jobs.spec import PruneSpec
from panning.jobs.ways import Method
from panning.jobs.work import Job
from panning.tasks import TaskSpec

GOOD = TrainOutcome(accuracy=0.5, loss=1.0, train_loss=1.0, images_seen=1)
SPEC = PruneSpec(task=TaskSpec(model="mlp", data="digits"), seed=0, density=0.1, by=Method(method="snip"))


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep(n_records: int, path: Path) -> None:
    store, environment = RecordStore(path), environment_info()
    print("records  ms CPU an append")
    done, steps = 0, [n for n in (10**3, 10**4, 10**5, 10**6) if n <= n_records]
    for n in steps:
        before = time.process_time()
        first = max(done, n - 1000)
        for number in range(done, n):
            if number == first:
                before = time.process_time()
            config = {"kind": "train", "number": number, "task": {"model": "mlp", "data": "digits", "n_train": 100}}
            metrics = {"accuracy": 0.5, "loss": 1.0, "train_loss": 1.0, "images_seen": 100, "error": None}
            store.append(RunRecord(content_key(config), "test", config, metrics, environment))
        print(f"{n:7,}  {1000 * (time.process_time() - before) / (n - first):.3f}")
        done = n
    before, held = time.process_time(), megabytes()
    n = len(RecordStore(path))
    print(f"opening {n:,} records: {time.process_time() - before:.2f} s CPU, {megabytes() - held:+.0f} MiB")


class Numbered(Job[Any]):
    """A job with a key of its own, without a description of its own to hash."""

    def __init__(self, number: int) -> None:
        super().__init__(SPEC)
        self.__dict__["key"] = str(number)


class Simulated:
    """Workers on a clock of their own."""

    def __init__(self, n_places: int) -> None:
        self.n_places, self.now, self.took = n_places, 0.0, 0.0
        self.events: list[tuple[float, int, News]] = []
        self.order, self.lot = itertools.count(), random.Random(0)

    def clock(self) -> float:
        return self.now

    def start(self, place: int) -> None:
        heapq.heappush(self.events, (self.now + 5.0, next(self.order), Up(place)))

    def send(self, place: int, job: Job[Any]) -> None:
        seconds = 30.0 * self.lot.lognormvariate(0.0, 1.0)
        self.took += seconds
        news = Lost(place) if self.lot.random() < 0.02 else Done(place, GOOD)
        heapq.heappush(self.events, (self.now + seconds, next(self.order), news))

    def stop(self, place: int) -> None:
        pass

    def news(self, timeout_s: float) -> list[News]:
        if not self.events or self.events[0][0] > self.now + timeout_s:
            self.now += timeout_s
            return []
        self.now, _, news = heapq.heappop(self.events)
        return [news]


def dispatch(n_trials: int) -> None:
    print("workers  trials  ms CPU a trial  busy")
    for n_places in (1, 64, 1000):
        workers = Simulated(n_places)

        before = time.process_time()
        n = sum(1 for _ in Dispatcher(workers, Patience(1e9), workers.clock).run(map(Numbered, range(n_trials))))
        took = time.process_time() - before
        print(f"{n_places:7,}  {n:6,}  {1000 * took / n:14.3f}  {workers.took / (n_places * workers.now):.3f}")


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[1:]]
    n_records, n_trials = (*counts, *(100_000, 20_000)[len(counts) :])[:2]
    with tempfile.TemporaryDirectory() as folder:
        keep(n_records, Path(folder) / "records.jsonl")
    dispatch(n_trials)
