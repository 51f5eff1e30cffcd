"""Streams of events beside the server that sends them: listeners that are slow, gone, or there when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from panning.service import streams as module
from panning.service.folder import JobFolder, Outcome
from panning.service.store import Store
from panning.service.streams import Streams, Told
from panning.service.words import NoJobError


class Job:
    """A running job whose file of events the test writes."""

    def __init__(self, root: Path) -> None:
        self.store, self.folder, self.n = Store.at(root / "service.sqlite"), JobFolder(root / "1"), 0
        self.store.submit(self.store.tokens.add("Ada", "submit")[0].id, {"kind": "prune"})
        self.store.start_next("boot")
        self.folder.path.mkdir()
        self.streams = Streams(self.store, lambda _: self.folder)

    def tell(self, n: int) -> None:
        with open(self.folder.events, "a") as file:
            for _ in range(n):
                self.n += 1
                file.write(f'{{"step": {self.n}}}\n')

    def end(self) -> None:
        self.streams.told(self.store.settle(1, 1, Outcome("succeeded"), "boot"))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    monkeypatch.setattr(module, "MOST_KEPT", 7)
    return Job(tmp_path)


def in_time(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_listener_that_falls_behind_misses_and_repeats_nothing(job: Job) -> None:
    async def run() -> None:
        heard: list[int] = []
        job.tell(3)
        async for told in job.streams.listen(1):
            heard += [place for place, _ in told.lines]
            if len(heard) == 3:
                job.tell(20)
                while job.streams._channels[1].first < 16:
                    await asyncio.sleep(0)  # it is read meanwhile, and some of it is not kept
            elif len(heard) == 23 and told.job is None:
                job.end()
        assert heard == list(range(1, 24))

    in_time(run)


def test_who_stops_listening_leaves_no_reader_behind(job: Job) -> None:
    async def run() -> None:
        first, second = job.streams.listen(1), job.streams.listen(1)
        assert (await anext(first)).job == (await anext(second)).job == job.store.job(1)
        assert job.streams.n_listeners == 2 and len(job.streams._channels) == 1
        reader = job.streams._channels[1].task
        await first.aclose()  # type: ignore[attr-defined]
        assert job.streams.n_listeners == 1 and reader is not None and not reader.done()
        await second.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert job.streams.n_listeners == 0 and job.streams._channels == {} and reader.cancelled()

    in_time(run)


def test_a_quiet_stream_says_that_it_is_there_and_ends_with_the_server(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.001)

    async def run() -> None:
        told = job.streams.listen(1)
        assert (await anext(told)).job is not None
        assert await anext(told) == Told()
        job.streams.close()
        assert [one async for one in told if one != Told()] == []
        assert [one async for one in job.streams.listen(1)] == [], "nobody begins to listen any more"

    in_time(run)


def test_a_job_that_is_not_there_has_no_stream(job: Job) -> None:
    async def run() -> None:
        with pytest.raises(NoJobError):
            await anext(job.streams.listen(2))
        assert job.streams.n_listeners == 0

    in_time(run)


def test_several_jobs_are_told_in_one_stream_each_behind_its_own_id_and_one_that_is_gone_as_none(job: Job) -> None:
    async def run() -> None:
        job.tell(3)
        heard: dict[int, list[int]] = {1: [], 7: []}
        ended, gone = [], []
        async for number, told in job.streams.listen_to_all({1: 1, 7: 0}):
            if told is None:
                gone.append(number)
                continue
            heard[number] += [place for place, _ in told.lines]
            if told.job is not None and told.job.state == "succeeded":
                ended.append(number)
            elif heard[1][-1:] == [3]:
                job.tell(2)
                job.end()
        assert (heard, gone, ended) == ({1: [2, 3, 4, 5], 7: []}, [7], [1])
        assert job.streams.n_listeners == 0 and job.streams._channels == {}

    in_time(run)


def test_who_leaves_a_stream_of_several_jobs_leaves_them_all(job: Job) -> None:
    async def run() -> None:
        listening = job.streams.listen_to_all({1: 0})
        async for number, told in listening:
            assert number == 1 and told is not None and told.job is not None
            break
        await listening.aclose()
        assert job.streams.n_listeners == 0 and job.streams._channels == {}

    in_time(run)
