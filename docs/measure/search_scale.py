"""Measure the processor time of the driver of a large search: keeping records, looking masks up, and dispatching trials.
Nothing is trained.

    python docs/measure/search_scale.py [N_RECORDS] [N_TRIALS] [N_MASKS]

Prints what an append costs at growing numbers of records, what opening them costs, what a resumed search pays for each mask
of LeNet-5 that it has, and CPU milliseconds a trial of the real dispatcher with simulated workers, whose trials take
lognormal times (sigma 1) and end their worker in 2 of 100; the same under the asking of a search in free order, without
failures. A number of 0 leaves a part out.

How busy workers are is told thrice: until the first of them has no job any more, in all, and in all if the same jobs went in
the same order to workers that are there from the begin and lose no time (list scheduling). Who does not know beforehand how
long jobs take can hope for no more: a long job that comes last keeps one worker, and the others have nothing to do.
"""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from panning.foundation.machine import environment_info
from panning.foundation.records import RecordStore, RunRecord
from panning.jobs.dispatch import Dispatcher
from panning.jobs.kept import check_quickly, check_record
from panning.jobs.news import Done, Lost, News, Up
from panning.jobs.outcome import PruneOutcome, TrainOutcome
from panning.jobs.patience import Patience
from panning.jobs.spec import PruneSpec, TrainSpec, digest, key_of
from panning.jobs.store import JobStore
from panning.jobs.ways import Method
from panning.jobs.work import Job, content_of
from panning.masks.file import dump_masks
from panning.masks.layout import Layout
from panning.masks.masks import Masks
from panning.tasks import TaskSpec
from panning.training import Recipe

GOOD = TrainOutcome(accuracy=0.5, loss=1.0, train_loss=1.0, images_seen=1)
SPEC = PruneSpec(task=TaskSpec(model="mlp", data="digits"), seed=0, density=0.1, by=Method(method="snip"))
TRAINING = TrainSpec(task=SPEC.task, seed=0, mask="0" * 20, recipe=Recipe()).model_dump(mode="json")
METRICS = {"accuracy": 0.5, "loss": 1.0, "train_loss": 1.0, "images_seen": 100, "wall_s": 1.0, "error": None}


def megabytes() -> float:
    """The resident memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def record_of(number: int) -> RunRecord:
    """The record of a short training, as a search writes it."""
    config = {**TRAINING, "seed": number}
    return RunRecord(key_of("train", config), "train", config, METRICS, environment_info())


def keep(n_records: int, path: Path) -> None:
    print("  records  ms CPU an append  ms in all  KiB more after 1,000", flush=True)
    done = 0
    for n in (n for n in (10**3, 10**4, 10**5, 10**6) if n <= n_records):
        filling = RecordStore(path, is_durable=False)  # what only fills the file need not outlast a loss of power
        for number in range(done, n - 1000):
            filling.append(record_of(number))
        store, records = RecordStore(path), [record_of(number) for number in range(n - 1000, n)]
        held, cpu, wall = megabytes(), time.process_time(), time.perf_counter()
        for record in records:
            store.append(record)
        cpu, wall, more = time.process_time() - cpu, time.perf_counter() - wall, megabytes() - held
        print(f"{n:9,}  {1000 * cpu / 1000:15.3f}  {1000 * wall / 1000:9.3f}  {1024 * more:19.0f}", flush=True)
        done = n


def open_again(path: Path) -> None:
    """In a process of its own, whose memory nothing else has filled; once more with the strict reader alone."""
    for said, quick in (("each checked", check_quickly), ("each read strictly", None)):
        before, held = time.process_time(), megabytes()
        n = len(RecordStore(path, check_record, quick=quick))
        took = time.process_time() - before
        print(f"opening {n:,} records, {said}: {took:.1f} s CPU, {megabytes() - held:+.0f} MiB", flush=True)


class Numbered(Job[Any]):
    """A job with a key of its own, without a description of its own to hash."""

    def __init__(self, number: int) -> None:
        super().__init__(SPEC)
        self.__dict__["key"] = str(number)


class Simulated:
    """Workers on a clock of their own."""

    def __init__(self, n_places: int) -> None:
        self.n_places, self.now = n_places, 0.0
        self.events: list[tuple[float, int, News]] = []
        self.spans: list[tuple[float, int, float]] = []  # when, where, for how long
        self.order, self.lot = itertools.count(), random.Random(0)

    def clock(self) -> float:
        return self.now

    def start(self, place: int) -> None:
        heapq.heappush(self.events, (self.now + 5.0, next(self.order), Up(place)))

    def send(self, place: int, job: Job[Any]) -> None:
        seconds = 30.0 * self.lot.lognormvariate(0.0, 1.0)
        self.spans.append((self.now, place, seconds))
        news = Lost(place) if self.lot.random() < 0.02 else Done(place, GOOD)
        heapq.heappush(self.events, (self.now + seconds, next(self.order), news))

    def ask(self) -> None:
        pass

    def withdraw(self, place: int) -> None:
        pass

    def stop(self, place: int) -> None:
        pass

    def news(self, timeout_s: float) -> list[News]:
        if not self.events or self.events[0][0] > self.now + timeout_s:
            self.now += timeout_s
            return []
        self.now, _, news = heapq.heappop(self.events)
        return [news]


def busy(spans: Sequence[tuple[float, int, float]], n_places: int) -> str:
    """The share of the workers' time in which they had a job: until one of them had no more, in all, and in all at best."""
    n_seconds = sum(seconds for *_, seconds in spans)
    ends = {place: when + seconds for when, place, seconds in spans}  # of the last job there
    first = min(ends.values())
    until = sum(min(seconds, max(0.0, first - when)) for when, _, seconds in spans)
    whole = max(when + seconds for when, _, seconds in spans)
    free = [0.0] * n_places
    for *_, seconds in spans:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    at_best = n_seconds / (n_places * max(free))
    shares = (until / (n_places * first), n_seconds / (n_places * whole), at_best)
    return "  ".join(f"{share:9.3f}" for share in shares)


HEADING = "workers   trials  ms CPU a trial  busy until one had no more, in all, in all at best"


def dispatch(n_trials: int) -> None:
    print(f"{HEADING}; the dispatcher alone", flush=True)
    for n_places in (1, 64, 1000):
        workers = Simulated(n_places)
        before = time.process_time()
        n = sum(1 for _ in Dispatcher(workers, Patience(1e9), workers.clock).run(map(Numbered, range(n_trials))))
        took = time.process_time() - before
        print(f"{n_places:7,}  {n:7,}  {1000 * took / n:14.3f}  {busy(workers.spans, n_places)}", flush=True)


def ask(n_candidates: int) -> None:
    """Three rungs, of which a third goes on; trainings take 10, 30 and 90 s times a lognormal number."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from asked import World, lane, lognormal

    print(f"{HEADING}; with the asking, {n_candidates:,} candidates", flush=True)
    for n_places in (64, 1000):
        before = time.process_time()
        world = World([lane(n_candidates)], n_places, seconds=lognormal).run()
        took, n = time.process_time() - before, len(world.fake.spans)
        print(f"{n_places:7,}  {n:7,}  {1000 * took / n:14.3f}  {busy(world.fake.spans, n_places)}", flush=True)


def look_up(n_masks: int, folder: Path) -> None:
    """Masks that a search finds in its folder, with the hash of their file in the record and, as in older ones, without."""
    names = tuple(f"{name}.weight" for name in ("conv1", "conv2", "fc1", "fc2", "fc3"))
    layout = Layout(names, ((6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)))
    jobs = [Job(SPEC.model_copy(update={"seed": seed})) for seed in range(n_masks)]
    store = JobStore(folder)
    store.records = RecordStore(folder / "records.jsonl", check_record, is_durable=False)
    for job in jobs:
        generator = torch.Generator().manual_seed(job.spec.seed)
        masks = Masks(layout, torch.rand(layout.n_prunable, generator=generator) < 0.02)
        mask = dump_masks(masks)
        store.put(job, PruneOutcome(
            n_kept=masks.n_kept, density=masks.density, effective_density=masks.density, compute_left=0.1, mask=mask,
            layer_densities=tuple(masks.layer_densities().items()), content=content_of(masks),
            file=digest(mask) if job.spec.seed % 2 else None,
        ))  # fmt: skip
    for said, some in (("with", jobs[1::2]), ("without", jobs[::2])):
        before = time.process_time()
        assert all(store.get(job) is not None for job in some)
        took = (time.process_time() - before) / len(some)
        print(f"a mask {said} the hash of its file in its record: {1000 * took:.3f} ms CPU")


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[1:]]
    n_records, n_trials, n_masks = (*counts, *(100_000, 20_000, 2_000)[len(counts) :])[:3]
    with tempfile.TemporaryDirectory() as folder:
        if n_records:
            keep(n_records, path := Path(folder) / "records.jsonl")
            process = multiprocessing.get_context("spawn").Process(target=open_again, args=(path,))
            process.start()
            process.join()
    with tempfile.TemporaryDirectory() as folder:
        if n_masks:
            look_up(n_masks, Path(folder))
    if n_trials:
        dispatch(n_trials)
        ask(n_trials)
