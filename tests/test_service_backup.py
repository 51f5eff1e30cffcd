"""Backups of a service that runs: what is in them goes on where it was, and is what was there at one instant."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from served import LONG, Served
from test_service_retention import code, on_disk

from panning.foundation.errors import OutputError
from panning.service import backup as module
from panning.service.backup import back_up
from panning.service.events import EventReader
from panning.service.store import Store


def test_a_backup_that_is_taken_while_a_job_runs_is_a_service_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served(tmp_path / "root")
    token, content = served.token(), b"of somebody"
    sha256 = hashlib.sha256(content).hexdigest()
    ended = served.submit(token)
    served.until_ended(token, ended)
    served.service.access.sessions.begin(served.service.access.of(token))  # type: ignore[arg-type]
    assert served.ask("PUT", f"/api/v1/uploads/{sha256}?kind=network", token, content).status == 201
    running = served.submit(token, **LONG)
    told = served.events(token, running)
    while next(told)[1] != 5:
        pass
    assert code("backup", str(tmp_path / "copy"), "--root", str(tmp_path / "root"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["jobs"], said["uploads"]) == (2, 1) and said["n_bytes"] == sum(on_disk(tmp_path / "copy").values())
    last = EventReader(tmp_path / "copy" / "jobs" / str(running) / "events.jsonl")
    n = len(list(last.lines()))
    assert n >= 5 and next(told)[0] == "message", "the service itself goes on"
    served.ask("POST", f"/api/v1/jobs/{running}/cancel", token)
    list(told)
    served.close()
    with closing(sqlite3.connect(tmp_path / "copy" / "service.sqlite")) as copy:
        assert copy.execute("SELECT count(*) FROM sessions").fetchall() == [(0,)], "whoever signs out meanwhile is out"
    assert not (tmp_path / "root" / ".backup").exists()
    shutil.copytree(tmp_path / "copy", tmp_path / "again")
    restored = Served(tmp_path / "again")
    try:
        assert restored.admin == "", "its tokens are those of the service"
        assert restored.ask("GET", f"/api/v1/jobs/{ended}", token).json["state"] == "succeeded"
        (left,) = restored.ask("GET", f"/api/v1/jobs/{ended}/artefacts", token).json
        path = f"/api/v1/jobs/{ended}/artefacts/{left['sha256']}"
        assert (
            restored.ask("GET", path, token).body == (tmp_path / "root/jobs" / str(ended) / "run/dug.json").read_bytes()
        )
        assert [one["sha256"] for one in restored.ask("GET", "/api/v1/uploads", token).json] == [sha256]
        told = restored.events(token, running)
        places = []
        while len(places) < n + 5:
            if (event := next(told))[0] == "message":
                places.append((event[1], event[2]["step"]))
        assert places == [(i, i) for i in range(1, n + 6)], "every event once, and on behind the last"
        attempts = restored.ask("GET", f"/api/v1/jobs/{running}/attempts", token).json
        assert [one["how"] for one in attempts] == ["interrupted", None], "as after a power cut"
        told.close()
        restored.ask("POST", f"/api/v1/jobs/{running}/cancel", token)
        restored.until_ended(token, running)
    finally:
        restored.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A service that does not run, with one job that has a checkpoint and records before it."""
    store = Store.at(tmp_path / "root" / "service.sqlite")
    store.submit(store.tokens.add("Ada", "submit")[0].id, {"kind": "prune"})
    store.close()
    run = tmp_path / "root" / "jobs" / "1" / "run"
    run.mkdir(parents=True)
    (run / "records.jsonl").write_text("1\n2\n")
    (run / "checkpoint").write_text("2")
    return tmp_path / "root"


def test_the_files_of_a_job_are_those_of_one_instant(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, n = root / "jobs" / "1" / "run", os.link, 0

    def step(*given: Any, **more: Any) -> None:
        """The job takes a step between any two files, the first few times."""
        nonlocal n
        real(*given, **more)
        n += 1
        if n < 6:
            with open(run / "records.jsonl", "a") as records:
                records.write(f"{n + 2}\n")
            (run / ".checkpoint.part").write_text(f"{n + 2}")
            os.replace(run / ".checkpoint.part", run / "checkpoint")

    monkeypatch.setattr("os.link", step)
    back_up(root, root.with_name("copy"))
    copy = root.with_name("copy") / "jobs" / "1" / "run"
    assert (copy / "records.jsonl").read_text().split()[-1] == (copy / "checkpoint").read_text() == "7"
    assert n > 6, "it looked again"


def test_what_is_written_on_while_it_is_copied_is_of_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, real = root / "jobs" / "1" / "run" / "records.jsonl", module._copy

    def copy(*given: Any) -> None:
        with open(records, "a") as more:
            more.write("later\n")
        real(*given)

    monkeypatch.setattr(module, "_copy", copy)
    back_up(root, root.with_name("copy"))
    assert (root.with_name("copy") / "jobs/1/run/records.jsonl").read_text() == "1\n2\n"


def test_what_cannot_be_copied_says_so_and_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, out: Path, said: str) -> None:
        with pytest.raises(OutputError, match=said):
            back_up(source, out)

    refused(root.parent, root.with_name("copy"), "holds no service: name the folder")
    refused(root, root, "is there already")
    refused(root, root / "copy", "lies in the service's own folder")
    count = iter(range(10**6))
    monkeypatch.setattr(module, "TRIES", 3)
    monkeypatch.setattr(module, "_state", lambda _: {"run/checkpoint": (next(count), 1, 0)})
    refused(root, root.with_name("copy"), "change all the time")
    monkeypatch.undo()
    (root.parent / "other").mkdir()
    (root.parent / "other" / "service.sqlite").write_text("no database" * 999)
    refused(root.parent / "other", root.with_name("copy"), "cannot be copied")
    assert {path.name for path in root.parent.iterdir()} == {"root", "other"}
    assert not (root / ".backup").exists()


def test_links_and_deleted_jobs_are_left_out(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of somebody else")
    (root / "jobs/1/run/link").symlink_to(tmp_path / "secret")
    store = Store.at(root / "service.sqlite")
    number = store.submit(1, {"kind": "prune"}).job.id
    store.cancel(number)
    (root / "jobs" / str(number)).mkdir()
    store.delete(number)
    store.close()
    made = back_up(root, root.with_name("copy"))
    assert made.n_jobs == 1 and set(on_disk(made.path / "jobs")) == {"1/run/records.jsonl", "1/run/checkpoint"}
    assert made.path.stat().st_mode & 0o77 == 0 and (made.path / "service.sqlite").stat().st_mode & 0o77 == 0
