"""The list of jobs as it changes: what a listener is told, whose jobs, how often, and where running jobs are."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from served import LONG, Served

from panning.client.requests import sent_events
from panning.foundation.progress import Event, Stage, plan_event
from panning.service import board as module
from panning.service.board import Board, News, Place
from panning.service.folder import JobFolder, Outcome
from panning.service.store import Store
from panning.service.words import Job, Quota


class Listed:
    """A store with two tokens, and the board of its jobs."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store.at(root / "service.sqlite")
        self.ada, self.bo = (self.store.tokens.add(name, "submit", Quota(running=9))[0].id for name in ("Ada", "Bo"))
        self.board = Board(self.store, self.folder, quiet_s=60)

    def folder(self, number: int) -> JobFolder:
        return JobFolder(self.root / str(number))

    def submit(self, token: int) -> Job:
        job = self.store.submit(token, {"kind": "prune"}).job
        self.board.hear(job)
        return job

    def start(self) -> Job:
        job = self.store.start_next("boot")
        assert job is not None
        self.folder(job.id).path.mkdir()
        self.board.hear(job)
        return job

    def tell(self, number: int, *events: Event | dict[str, int]) -> None:
        with open(self.folder(number).events, "a") as file:
            for event in events:
                file.write(json.dumps(event.as_json() if isinstance(event, Event) else event) + "\n")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listed:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    return Listed(tmp_path)


def in_time(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_listener_is_told_of_its_own_jobs_and_one_for_all_of_all(listed: Listed) -> None:
    async def run() -> None:
        async with aclosing(listed.board.listen(listed.ada)) as mine, aclosing(listed.board.listen(None)) as all_:
            assert await anext(mine) == await anext(all_) == News(first=True)
            one, other = listed.submit(listed.ada), listed.submit(listed.bo)
            assert await anext(mine) == News(jobs=(one,)) and await anext(all_) == News(jobs=(one, other))
            listed.board.lose(other)
            listed.board.lose(one)
            assert await anext(mine) == News(gone=(one.id,)) and await anext(all_) == News(gone=(one.id, other.id))
            listed.board.close()
            assert [news async for news in mine] == []

    in_time(run)


def test_what_comes_faster_than_ten_times_a_second_is_told_together_as_it_is_now(
    listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = list[float](), asyncio.Event()

    async def pause(seconds: float) -> None:
        asked.append(seconds)
        await go_on.wait()

    monkeypatch.setattr(module, "pause", pause)

    async def run() -> None:
        async with aclosing(listed.board.listen(None)) as news:
            await anext(news)
            first = listed.submit(listed.ada)
            assert await anext(news) == News(jobs=(first,))
            next_ = asyncio.ensure_future(anext(news))
            others = [listed.submit(listed.ada) for _ in range(30)]
            running = listed.start()
            while not asked:
                await asyncio.sleep(0)
            assert not next_.done() and asked == [0.1]
            go_on.set()
            assert await next_ == News(jobs=(*others, running)), "the last state stands for those before"

    in_time(run)


def test_where_a_running_job_is_is_told_when_it_has_gone_on(listed: Listed) -> None:
    async def run() -> None:
        listed.submit(listed.ada)
        number = listed.start().id
        listed.tell(number, {"step": 1}, plan_event("it", [Stage("a", 2, 1.0), Stage("b", 8, 9.0)]), Event("a", 0, 2))
        async with aclosing(listed.board.listen(listed.ada)) as news:
            assert await anext(news) == News(first=True)
            assert await anext(news) == News(places=(Place(number, "a", 1, 2, 0, 2),))
            listed.tell(number, Event("a", 2, 2, "round"), Event("b", 3, 8, "job"), Event("x", 1, 1, "artefact"))
            while (told := (await anext(news)).places[-1]).stage == "a":
                pass  # it was looked at between two lines
            assert told == Place(number, "b", 2, 2, 3, 8)
            async with aclosing(listed.board.listen(None)) as late:
                assert await anext(late) == News(first=True, places=(told,)), "who comes later knows it at once"
            async with aclosing(listed.board.listen(listed.bo)) as foreign:
                assert await anext(foreign) == News(first=True)
            listed.board.hear(listed.store.settle(number, 1, Outcome("succeeded"), "boot"))
            assert (await anext(news)).jobs[0].state == "succeeded"
            while listed.board._tails:
                await asyncio.sleep(0)  # nobody follows it any more
        assert listed.board._task is None

    in_time(run)


# --- over HTTP ---


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("service"))
    yield made
    made.close()


def test_a_stream_tells_of_the_list_beside_the_events_of_jobs(served: Served, token: str) -> None:
    followed = served.submit(token, **LONG)
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
        path = f"/api/v1/events?follow={followed}:0&jobs=1"
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        assert response.status == 200
        wanted = {b"event: jobs\n", b"event: job\n", f"id: {followed}:1\n".encode()}
        while wanted:
            wanted.discard(response.readline())
        response.close()
    served.ask("POST", f"/api/v1/jobs/{followed}/cancel", token)


def test_a_stream_of_the_list_tells_of_jobs_that_the_token_may_see(served: Served, token: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
        connection.request("GET", "/api/v1/events?jobs=1", headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        told = sent_events(response)
        assert next(told) == ("jobs", None, {"first": True, "jobs": [], "gone": [], "places": []})
        foreign, mine = served.submit(served.token()), served.submit(token)
        seen = set[int]()
        while mine not in seen:
            seen |= {job["id"] for job in next(told)[2]["jobs"]}
        assert foreign not in seen
        assert served.until_ended(token, mine)["state"] == "succeeded"
        assert served.ask("DELETE", f"/api/v1/jobs/{mine}", token).status == 204
        while mine not in next(told)[2]["gone"]:
            pass
        response.close()


def test_a_stream_of_nothing_is_refused(served: Served, token: str) -> None:
    assert served.ask("GET", "/api/v1/events", token).problem == "values"
    assert served.ask("GET", "/api/v1/events?jobs=yes", token).problem == "values"
