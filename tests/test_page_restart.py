"""Pages that are open, in a real browser, while the server is killed and started again on the same port."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import PATIENCE_MS
from served import CONFIG, TESTS
from test_page_live import as_table, rollouts

from panning.client import Client
from panning.foundation.progress import Event

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
TOTAL = 99


class Server:
    """A server in a process of its own, whose jobs go on when it is killed."""

    def __init__(self, root: Path) -> None:
        self.root, self.port, self.token = root, 0, ""
        self.start()
        self.client = Client(f"http://127.0.0.1:{self.port}", self.token)

    def start(self) -> None:
        command = [sys.executable, str(TESTS / "served.py"), str(self.root), str(self.port), "teller.py"]
        log = open(self.root.with_suffix(".log"), "ab")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        assert self.process.stdout is not None
        port, _, token = self.process.stdout.readline().strip().partition(" ")
        self.port, self.token = int(port), token or self.token

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate()

    def tell(self, number: int, *events: Event) -> None:
        """Tell of a job that runs, whether the server does or not."""
        folder = self.root / "jobs" / str(number)
        folder.mkdir(exist_ok=True)  # the table says a moment earlier that the job runs
        with open(folder / "events.jsonl", "a") as file:
            for event in events:
                file.write(json.dumps({"time": 1e9 + event.done, **event.as_json()}) + "\n")

    def job(self) -> int:
        """A job that runs and has told of its beginning."""
        number = self.client.submit(CONFIG).id
        while self.client.job(number).state != "running":
            pass
        self.tell(number, Event("training the agent", 0, TOTAL))
        return number


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "service")
    yield made
    made.close()


@contextmanager
def signed_in(chromium: Browser, server: Server) -> Iterator[Callable[[str], Page]]:
    """Opens pages in tabs of one browser, which is signed in by its first."""
    context = chromium.new_context(base_url=f"http://127.0.0.1:{server.port}", locale="en-GB")
    context.set_default_timeout(PATIENCE_MS)

    def tab(path: str) -> Page:
        page = context.new_page()
        page.goto(path)
        if "/signin" in page.url:
            sign_in(page, server)
        page.evaluate("window.same = true")
        return page

    try:
        yield tab
    finally:
        context.close()


def sign_in(page: Page, server: Server) -> None:
    page.get_by_label("Token").fill(server.token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/signin" not in url)


def drawn(page: Page, n: int) -> list[str]:
    """The rollouts that a page shows, once it has ``n`` of them."""
    view = page.locator(f"#live[data-events='{n + 1}']")
    view.wait_for()
    return [line[0] for line in as_table(view, "reward")]


def told(n: int) -> list[str]:
    return [str(i) for i in range(1, n + 1)]


def test_a_page_goes_on_by_itself_when_the_server_is_killed_and_started_again(
    chromium: Browser, server: Server
) -> None:
    number = server.job()
    with signed_in(chromium, server) as tab:
        page, listed = tab(f"/jobs/{number}"), tab("/jobs")
        server.tell(number, *rollouts(2, TOTAL))
        server.kill()
        page.locator("#trouble:visible").get_by_text("The service does not answer; trying again.").wait_for()
        server.tell(number, rollouts(3, TOTAL)[-1])  # the job itself goes on
        server.start()
        assert drawn(page, 3) == told(3), "nothing is lost, and nothing is there twice"
        page.locator("#trouble").wait_for(state="hidden")
        server.kill()
        for one in (page, listed):
            one.locator("#trouble:visible").wait_for()
        (server.root / "jobs" / str(number) / "end").touch()
        server.start()
        page.locator("#live[data-state='succeeded']").wait_for()
        page.locator("#facts .state.succeeded").wait_for()
        listed.locator(f"tr[data-job='{number}'][data-state='succeeded']").wait_for()
        listed.locator("#trouble").wait_for(state="hidden")
        assert page.evaluate("window.same") and listed.evaluate("window.same"), "and they were not loaded anew"


def test_who_is_signed_out_is_told_so_and_comes_back_to_the_same_page(chromium: Browser, server: Server) -> None:
    number, second = server.job(), server.job()
    for job in (number, second):
        server.tell(job, *rollouts(2, TOTAL))
    with signed_in(chromium, server) as tab:
        page, other = tab(f"/jobs/{number}"), tab(f"/jobs/{second}")
        for one in (page, other):
            assert drawn(one, 2) == told(2)
        server.kill()
        with closing(sqlite3.connect(server.root / "service.sqlite")) as database, database:
            assert database.execute("DELETE FROM sessions").rowcount == 1
        for job in (number, second):
            server.tell(job, rollouts(3, TOTAL)[-1])
        server.start()
        for one in (page, other):
            one.locator("#trouble").get_by_text("You are signed out: sign in again to see what goes on.").wait_for()
        page.get_by_role("button", name="Pin").click()
        page.locator("#said").get_by_text("You are signed out.").wait_for()
        assert page.evaluate("window.same"), "nobody is led away"
        page.get_by_role("link", name="sign in again").click()
        sign_in(page, server)
        assert page.url.endswith(f"/jobs/{number}") and drawn(page, 3) == told(3)
        assert drawn(other, 3) == told(3), "the other tab goes on by itself"
        other.locator("#trouble").wait_for(state="hidden")
        assert other.evaluate("window.same")
