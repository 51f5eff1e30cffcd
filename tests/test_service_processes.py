"""The processes of the service's jobs: one tree for each, none of which outlives its job, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_chaos import Chaos

from panning.foundation.errors import OutputError
from panning.service.events import reached
from panning.service.folder import Caps, JobFolder, Order
from panning.service.scheduler import Scheduler, Setup
from panning.service.store import Store
from panning.service.words import ENDED, Job, Quota

TESTS = Path(__file__).resolve().parent
DIGGER = (sys.executable, "-S", "-E", str(TESTS / "digger.py"))
CONFIG = {"kind": "dig", "steps": 3, "seed": 1}
#: Steps that no test waits for.
LONG = {**CONFIG, "steps": 10**6}


class Server:
    """A store and its scheduler, which the test drives by hand; ``restart`` is a server that was killed and starts again."""

    def __init__(self, root: Path, **setup: Any) -> None:
        self.root, self.steps = root, list[tuple[int, str]]()
        self.setup = Setup(root / "jobs", runner=DIGGER, grace_s=0.2, **{"slots": 2, **setup})
        self.store = Store.at(root / "service.sqlite")
        self.token = self.store.tokens.add("Ada", "submit", Quota(running=10))[0].id
        self.scheduler = Scheduler(self.store, self.setup, self.told)

    def told(self, job: Job) -> None:
        self.steps.append((job.id, job.state))

    def submit(self, **config: Any) -> int:
        return self.store.submit(self.token, {**CONFIG, **config}).job.id

    def folder(self, number: int) -> JobFolder:
        return self.scheduler.folder(number)

    def until_ended(self, *numbers: int) -> list[Job]:
        """Look around until the jobs have ended, waiting for the processes of this server."""
        while not all(self.store.job(number).state in ENDED for number in numbers):
            self.scheduler.tick()
            for child in self.scheduler._children:
                child.wait(60)
        return [self.store.job(number) for number in numbers]

    def restart(self) -> None:
        os.close(self.scheduler._lease)
        children = self.scheduler._children
        self.scheduler = Scheduler(self.store, self.setup, self.told)
        self.scheduler._children = children  # of this process still, which waits for them


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.scheduler.close(seconds=10)


def running(server: Server, **config: Any) -> tuple[int, dict[str, int]]:
    """A job that runs, with the numbers of its processes."""
    fifo = server.root / f"fifo-{len(list(server.root.glob('fifo-*')))}"
    os.mkfifo(fifo)
    number = server.submit(**{**LONG, **config, "fifo": str(fifo)})
    server.scheduler.tick()
    found: dict[str, int] = json.loads(fifo.read_text())
    return number, found


def reborn(server: Server, number: int) -> None:
    """Let somebody read that the next attempt runs, and ask it to end."""
    fifo = Path(server.store.config(number)["fifo"])
    server.scheduler.tick()
    fifo.read_text()


# --- ends ---


def test_a_job_runs_in_its_folder_and_leaves_its_word(server: Server) -> None:
    number = server.submit()
    (job,) = server.until_ended(number)
    assert (job.state, job.attempt, job.code) == ("succeeded", 1, None) and job.n_bytes > 0
    assert server.steps == [(number, "running"), (number, "succeeded")]
    assert json.loads((server.folder(number).run / "dug.json").read_text())["steps"] == 3
    assert [attempt.how for attempt in server.store.attempts(number)] == ["succeeded"]


def test_three_crashes_fail_a_job_and_a_retry_counts_anew(server: Server) -> None:
    number = server.submit(exits=3, prints=10)
    (job,) = server.until_ended(number)
    assert (job.state, job.code, job.attempt) == ("failed", "crashed", 3)
    assert job.message == "Its process ended by exit code 3."
    assert (
        server.store.retry(number).state == "queued" and server.folder(number).log.read_text() == ("x" * 10 + "\n") * 3
    )


def test_caps_on_time_and_on_the_log_hold(tmp_path: Path) -> None:
    server = Server(tmp_path, caps=Caps(seconds=0.3, log_bytes=100))
    number = server.submit(**{**LONG, "prints": 10**6})
    (job,) = server.until_ended(number)
    assert (job.state, job.code) == ("failed", "time")
    assert server.folder(number).log.stat().st_size == 100
    server.scheduler.close()


def test_a_job_that_is_deaf_to_a_stop_is_killed(server: Server) -> None:
    number, pids = running(server, deaf=True)
    server.store.cancel(number)
    (job,) = server.until_ended(number)
    assert (job.state, job.attempt) == ("cancelled", 1) and not alive(pids["runner"])


def test_no_process_outlives_a_job_not_even_orphans_in_sessions_of_their_own(server: Server) -> None:
    number, _ = running(server, helpers=2)
    assert len(server.folder(number).processes()) >= 4
    server.folder(number).ask_to_stop("cancel")
    for child in server.scheduler._children:
        child.wait(60)
    assert server.folder(number).processes() == [], (
        "the supervisor waits for all; nothing is left for the server to sweep"
    )
    assert server.folder(number).outcome(1).state == "stopped"  # type: ignore[union-attr]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- kills ---


@pytest.mark.parametrize("victim", ["runner", "supervisor"])
def test_a_job_whose_process_is_killed_goes_on_where_it_was(server: Server, victim: str) -> None:
    number, pids = running(server, helpers=1)
    os.kill(pids[victim], signal.SIGKILL)
    for child in server.scheduler._children:
        child.wait(60)
    while (lease := server.folder(number).take()) is None:
        pass  # a runner whose supervisor was killed is killed by the system, a moment later
    os.close(lease)
    server.scheduler.tick()  # settles it, and starts it again
    how = server.store.attempts(number)[0].how
    assert not alive(pids["runner"]) and how == ("crashed" if victim == "runner" else "interrupted")
    reborn(server, number)
    server.store.cancel(number)
    (job,) = server.until_ended(number)
    assert (job.state, job.attempt) == ("cancelled", 2) and server.folder(number).processes() == []
    assert not (server.folder(number).path / "TWICE").exists()


def kill_all(server: Server, number: int) -> None:
    """Kill the processes of a job and the server that looked after it, as a container that is killed does."""
    for child in server.scheduler._children:
        child.kill()
        child.wait(60)
    while (lease := server.folder(number).take()) is None:
        pass
    os.close(lease)
    server.restart()


def test_a_job_that_is_killed_with_the_server_goes_on_however_often_as_long_as_it_comes_further(server: Server) -> None:
    number, pids = running(server)
    os.kill(pids["runner"], signal.SIGKILL)  # once by itself
    for child in server.scheduler._children:
        child.wait(60)
    reborn(server, number)
    for attempt in range(2, 7):
        before = reached(server.folder(number).events)
        while reached(server.folder(number).events) == before:
            pass
        kill_all(server, number)
        reborn(server, number)
        assert (server.store.job(number).state, server.store.job(number).attempt) == ("running", attempt + 1)
    server.store.cancel(number)
    (job,) = server.until_ended(number)
    found = [attempt.how for attempt in server.store.attempts(number)]
    assert (job.state, found) == ("cancelled", ["crashed", *["interrupted"] * 5, "stopped"])


def test_a_job_that_is_killed_three_times_at_one_place_fails(server: Server) -> None:
    number, _ = running(server, step_s=600)
    kill_all(server, number)
    reborn(server, number)
    kill_all(server, number)
    reborn(server, number)
    kill_all(server, number)
    server.scheduler.tick()
    job = server.store.job(number)
    assert (job.state, job.code, job.attempt) == (
        "failed",
        "crashed",
        3,
    ) and "before it had come any further" in job.message
    assert [attempt.how for attempt in server.store.attempts(number)] == ["interrupted", "interrupted", "crashed"]
    server.store.retry(number)
    for _ in range(2):
        reborn(server, number)
        kill_all(server, number)
    reborn(server, number)
    assert server.store.job(number).state == "running", "a retry counts anew"


def test_a_server_that_starts_again_adopts_what_runs(server: Server) -> None:
    number, pids = running(server)
    server.restart()
    assert server.scheduler.tick() == 1 and alive(pids["runner"])
    assert server.store.job(number).attempt == 1, "it runs on, and no second time"
    server.store.cancel(number)
    (job,) = server.until_ended(number)
    assert (job.state, job.attempt) == ("cancelled", 1)


def test_a_server_that_was_away_when_a_job_ended_takes_its_word(server: Server) -> None:
    number = server.submit()
    server.scheduler.tick()
    for child in server.scheduler._children:
        child.wait(60)
    server.restart()
    server.scheduler.tick()
    assert server.store.job(number).state == "succeeded"


def test_a_server_that_ends_stops_its_jobs_which_are_queued_again(tmp_path: Path) -> None:
    server = Server(tmp_path)
    number, pids = running(server)
    server.scheduler.close()
    job = server.store.job(number)
    assert (job.state, job.attempt) == ("queued", 1) and not alive(pids["runner"])
    assert [attempt.how for attempt in server.store.attempts(number)] == ["stopped"]


def test_a_folder_has_one_server(server: Server) -> None:
    with pytest.raises(OutputError, match="Another server runs the jobs in"):
        Scheduler(server.store, server.setup)


def test_a_machine_that_cannot_start_a_job_keeps_it_queued(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Scheduler, "_spawn", full)
    number = server.submit()
    assert server.scheduler.tick() == 0 and server.scheduler.tick() == 0, "and starts nothing for a while"
    job = server.store.job(number)
    assert (job.state, job.attempt) == ("queued", 1)
    assert "No space left" in server.store.attempts(number)[0].message


# --- leases, deletion ---


def test_only_the_processes_of_a_job_hold_its_lease(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "1")
    lease = folder.take()
    assert lease is not None and folder.take() is None and not os.get_inheritable(lease)
    os.close(lease)
    again = folder.take()
    assert again is not None
    os.close(again)


def test_deleting_frees_the_disk(server: Server) -> None:
    number = server.submit()
    server.until_ended(number)
    server.store.delete(number)
    assert server.folder(number).path.exists()
    server.scheduler.tick()
    assert not server.folder(number).path.exists() and server.store.doomed() == []


def test_an_order_is_read_back_as_it_was_given(tmp_path: Path) -> None:
    folder, order = JobFolder(tmp_path / "1"), Order({"kind": "prune"}, 2, 1, "/data", Caps(memory_bytes=5))
    folder.give(order)
    folder.ask_to_stop("cancel")
    folder.ask_to_stop("shutdown")
    assert folder.order() == order and folder.stop.read_text() == "cancel", "the first reason stands"
    folder.give(order)
    assert not folder.stop.exists()
    (folder.path / "job.json").write_text("[")
    with pytest.raises(OutputError, match="cannot be read"):
        folder.order()


# --- all at once ---


@pytest.mark.slow
def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path) -> None:
    """The harness of docs/measure/service_chaos.py, with jobs that take no torch."""
    configs = [{**CONFIG, "steps": 20, "seed": seed, "helpers": 1, "step_s": 0.03} for seed in range(12)]
    chaos = Chaos(tmp_path, configs, n_kills=10, slots=3, runner=DIGGER, every_s=0.7, seconds=240)
    found = chaos.run()
    assert found["outcomes"] == {"succeeded": 12} and found["acknowledged"] == 12
    assert (found["run twice at a time"], found["processes left"], found["faults of events"]) == (0, 0, 0)
    assert found["events"] >= 12 * 20 and sum(found["kills"].values()) >= 5
    alone = Server(tmp_path / "alone")
    for place, config in enumerate(configs):
        chaotic, calm = chaos.folder(chaos.acknowledged[place]), alone.submit(**config)
        alone.until_ended(calm)
        assert (chaotic.run / "dug.json").read_bytes() == (alone.folder(calm).run / "dug.json").read_bytes()
        assert not (chaotic.path / "TWICE").exists()
    alone.scheduler.close()
