"""What goes of jobs that have ended, by the operator's rules: measured on the disk, and told wherever jobs are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from served import CONFIG, Served
from test_service_runs import CONFIGS, LEFT, ordered

from panning.cli import main
from panning.service import retention as module
from panning.service.folder import JobFolder, Outcome
from panning.service.retention import Retention, Rules, is_result, reduce
from panning.service.store import Store
from panning.service.supervisor import n_bytes
from panning.service.uploads import Uploads
from panning.service.words import Job, Quota, StepError

#: What runs leave that is no result: it goes first.
SCRATCH = {"model.safetensors", "agent.safetensors", "logs"}
FILES = {
    "run/mask.safetensors": 100, "run/table.csv": 30, "run/records.jsonl": 50, "run/model.safetensors": 5000,
    "run/logs/from-rollout-0/progress.csv": 400, "run/.cache/scores.csv": 300, "log.txt": 200, "events.jsonl": 20,
    "attempts/1.json": 10,
}  # fmt: skip
RESULTS = {name for name in FILES if is_result(name)}
N_ALL, N_RESULTS = sum(FILES.values()), sum(FILES[name] for name in RESULTS)


def on_disk(path: Path) -> dict[str, int]:
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}


# --- what is kept ---


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_of_each_kind_is_reduced_to_its_results(kind: str, tmp_path: Path) -> None:
    folder, outcome = ordered(tmp_path / "1", CONFIGS[kind])
    assert outcome.state == "succeeded"
    (folder.path / "log.txt").write_text("said")
    before = on_disk(folder.path)
    reduce(folder.path)
    left = on_disk(folder.path)
    gone = set(before) - set(left)
    assert {Path(name).name if "logs" not in name else "logs" for name in gone} <= {*SCRATCH, "log.txt"}
    assert "log.txt" in gone and {"job.json", "events.jsonl", "run/run.json"} <= set(left)
    assert all(left[name] == before[name] for name in left)
    assert (f"run/{LEFT[kind]}" in left) == (kind != "train"), "weights of a training are no mask, table or record"
    assert not (folder.run / "logs").exists(), "no empty folder is left"


def test_links_go_and_lead_to_nothing(tmp_path: Path) -> None:
    folder, other = tmp_path / "1", tmp_path / "other"
    (folder / "run").mkdir(parents=True)
    other.mkdir()
    (other / "kept.txt").write_text("of somebody else")
    (folder / "run" / "table.csv").symlink_to(other / "kept.txt")
    (folder / "run" / "logs").symlink_to(other)
    reduce(folder)
    assert on_disk(other) == {"kept.txt": 16} and not (folder / "run").exists()


# --- when ---


def named(sha256: str) -> dict[str, Any]:
    """A config that names an upload."""
    return {**CONFIG, "task": {"model": f"upload:{sha256}", "data": "digits"}}


class Kept:
    """A store with jobs that have ended, folders of theirs, and a clock."""

    def __init__(self, root: Path, **rules: float) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.store = Store.at(root / "service.sqlite")
        self.store._now = lambda: self.now
        self.token = self.store.tokens.add("Ada", "submit", Quota(running=100, queued=100))[0].id
        self.jobs = root / "jobs"
        self.uploads = Uploads(self.store.database, root / "uploads", lambda: self.now)
        given = Rules(**rules)  # type: ignore[arg-type]
        self.retention = Retention(self.store.database, self.folder, given, lambda: self.now, self.uploads)

    def folder(self, number: int) -> JobFolder:
        return JobFolder(self.jobs / str(number))

    def sent(self, content: str, owner: int | None = None) -> str:
        """The hash of an upload, which was there already or is sent now."""
        owner, sha256 = owner or self.token, hashlib.sha256(content.encode()).hexdigest()
        if self.uploads.known(owner, sha256, "network") is None:
            with self.uploads.coming(owner, sha256, len(content)) as came:
                came.write(content.encode())
                came.finish()
                self.uploads.keep(owner, came, "network", "", {})
        return sha256

    def ended(self, upload: str | None = None, state: str = "succeeded") -> int:
        number = self.store.submit(self.token, CONFIG if upload is None else named(upload)).job.id
        assert self.store.start_next("b") is not None
        for name, size in FILES.items():
            path = self.folder(number).path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        return self.store.settle(number, 1, Outcome(state), "b", N_ALL).id  # type: ignore[arg-type]

    def later(self, **more: float) -> None:
        self.now += timedelta(**more)

    def job(self, number: int) -> Job:
        """The job, of which the disk holds what the table says."""
        job, path = self.store.job(number), self.folder(number).path
        wanted: dict[str, set[str]] = {"all": set(FILES), "results": RESULTS, "nothing": set()}
        assert set(on_disk(path)) - {".lock"} == wanted[job.kept], job
        assert path.exists() == (job.kept != "nothing")
        assert job.n_bytes == n_bytes(path) == N_ALL - job.freed_bytes, "measured"
        return job


def test_by_age_a_job_is_reduced_and_then_removed(tmp_path: Path) -> None:
    kept = Kept(tmp_path, reduce_days=7, remove_days=30)
    first, failed, pinned = kept.ended(), kept.ended(state="failed"), kept.ended()
    kept.store.pin(pinned)
    kept.later(days=3)
    late, running = kept.ended(), kept.store.submit(kept.token, CONFIG).job.id
    kept.store.start_next("b")
    assert kept.retention.sweep() == 0, "nothing is so old"
    kept.later(days=4.5)
    assert kept.retention.sweep() == 2 and kept.retention.sweep() == 0
    for number in (first, failed):
        job = kept.job(number)
        assert (job.kept, job.n_bytes, job.reduced) == ("results", N_RESULTS, kept.now)
        assert "weights, checkpoints and logs were removed" in job.gone
    assert [kept.job(number).kept for number in (late, pinned)] == ["all", "all"]
    kept.later(days=23)
    assert kept.retention.sweep() == 3, "the late one is reduced"
    assert [kept.job(number).kept for number in (first, failed, late, pinned)] == [
        "nothing",
        "nothing",
        "results",
        "all",
    ]
    assert kept.job(first).gone.startswith("All its files were removed") and kept.job(pinned).gone == ""
    assert kept.store.job(running).kept == "all" and kept.store.config(first) == CONFIG, "the row says what it was"
    kept.store.pin(pinned, False)
    kept.store.pin(late)
    kept.later(days=30)
    kept.retention.sweep()
    assert [kept.job(number).kept for number in (late, pinned)] == ["results", "nothing"]


def test_by_size_the_oldest_are_reduced_before_any_is_removed(tmp_path: Path) -> None:
    kept = Kept(tmp_path, most_bytes=3 * N_RESULTS)
    jobs = []
    for _ in range(4):
        jobs.append(kept.ended())
        kept.later(minutes=20)
    kept.store.pin(jobs[0])
    assert kept.retention.sweep() == 0, "somebody is still to fetch them"
    kept.later(minutes=1)
    kept.retention.sweep()
    assert [kept.job(number).kept for number in jobs] == ["all", "nothing", "all", "all"]
    kept.later(hours=1)
    kept.retention.sweep()
    assert [kept.job(number).kept for number in jobs] == ["all", "nothing", "nothing", "nothing"]
    assert kept.retention.sweep() == 0, "a pinned job may take more than there is"
    kept.store.pin(jobs[0], False)
    kept.retention.sweep()
    assert kept.job(jobs[0]).kept == "results", "and no more goes than must"


def test_without_rules_nothing_goes(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    number = kept.ended()
    kept.later(days=36_500)
    assert kept.retention.sweep() == 0 and kept.job(number).kept == "all"


def test_uploads_that_no_job_needs_go_after_their_last_use_and_all_others_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept(tmp_path, reduce_days=7, remove_days=30)
    caplog.set_level("INFO", "panning.service")
    names = ("nobody", "runs", "waits", "ended", "pinned", "gone", "deleted", "again")
    hashes = {name: kept.sent(name) for name in names}
    other = kept.store.tokens.add("Bo", "submit")[0].id
    assert kept.sent("runs", other) == hashes["runs"], "everybody has their own"
    jobs = {name: kept.ended(hashes[name]) for name in ("pinned", "gone", "deleted")}
    kept.store.pin(jobs["pinned"])
    kept.store.delete(jobs["deleted"])
    kept.store.forget(jobs["deleted"])
    running = kept.store.submit(kept.token, named(hashes["runs"])).job.id
    kept.store.start_next("b")
    kept.later(days=29)
    kept.ended(hashes["ended"])
    kept.store.submit(kept.token, named(hashes["waits"]))
    kept.sent("again")
    assert kept.retention.sweep() > 0 and len(kept.uploads.all(None)) == len(names) + 1, "none is so old"
    kept.later(days=2)
    kept.retention.sweep()
    mine = {hashes[name] for name in ("runs", "waits", "ended", "pinned", "again")}
    assert {one.sha256 for one in kept.uploads.all(kept.token)} == set(os.listdir(tmp_path / "uploads/1")) == mine
    assert kept.uploads.all(other) == os.listdir(tmp_path / "uploads/2") == [], "what others need keeps none"
    facts = [record.facts for record in caplog.records if "upload" in getattr(record, "facts", {})]  # type: ignore[attr-defined]
    freed = {one["upload"]: one["freed_bytes"] for one in facts if one["token"] == kept.token}
    assert freed == {hashes[name]: len(name) for name in ("nobody", "gone", "deleted")}, "measured on the disk"
    kept.later(days=31)
    kept.retention.sweep()
    assert {one.sha256 for one in kept.uploads.all(kept.token)} == {
        hashes[name] for name in ("runs", "waits", "pinned")
    }
    kept.store.settle(running, 1, Outcome("succeeded"), "b")
    kept.later(days=31)
    kept.retention.sweep()
    assert {one.sha256 for one in kept.uploads.all(kept.token)} == {hashes[name] for name in ("waits", "pinned")}


def test_an_upload_that_is_used_or_cannot_be_removed_at_that_moment_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path, remove_days=30)
    sent, used, tried, alone = (kept.sent(name) for name in ("sent", "used", "tried", "alone"))
    failed = kept.ended(tried, "failed")
    kept.later(days=31)
    before = kept.now - timedelta(days=30)
    assert sorted(kept.uploads.unneeded(before, 9)) == sorted((1, one) for one in (sent, used, alone))
    kept.store.submit(kept.token, named(used))
    kept.sent("sent")
    kept.store.retry(failed)
    for one in (sent, used, tried):
        assert kept.uploads.remove_unneeded(kept.token, one, before) is None, "it was used since it was looked for"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        assert kept.retention.sweep() == 0
    assert kept.uploads.one(kept.token, alone).n_bytes == 5 and kept.uploads.path(kept.token, alone).is_file()
    assert kept.retention.sweep() == 1 and len(kept.uploads.all(kept.token)) == 3


def test_uploads_stay_without_a_rule_of_age(tmp_path: Path) -> None:
    kept = Kept(tmp_path, reduce_days=1, most_bytes=1)
    kept.sent("mine")
    kept.later(days=36_500)
    assert kept.retention.sweep() == 0 and len(kept.uploads.all(kept.token)) == 1


def test_few_are_seen_to_at_a_time_and_the_next_look_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path, remove_days=1)
    jobs = [kept.ended() for _ in range(5)]
    kept.later(days=2)
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    counts = []
    for _ in range(4):
        kept.retention.look()
        counts.append(sum(kept.job(number).kept == "nothing" for number in jobs))
    assert counts == [2, 4, 5, 5]
    late = kept.ended()
    kept.later(days=2)
    kept.retention.look()
    assert kept.job(late).kept == "all", "it has looked a moment ago"


def test_a_server_that_is_killed_meanwhile_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path, reduce_days=1)
    number = kept.ended()
    kept.later(days=2)

    class KilledError(Exception):
        pass

    def killed(path: Path) -> None:
        (path / "log.txt").unlink()
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(module, "reduce", killed)
        with pytest.raises(KilledError):
            kept.retention.sweep()
    with pytest.raises(StepError, match="Cannot retry"):
        kept.store.retry(number)
    kept.store.pin(number)  # too late for this time, and in time for the next
    assert kept.retention.sweep() == 1
    assert set(on_disk(kept.folder(number).path)) - {".lock"} == RESULTS
    job = kept.store.job(number)
    assert (
        job.kept == "results" and job.n_bytes == N_RESULTS and job.freed_bytes == N_ALL - N_RESULTS - FILES["log.txt"]
    )


def test_a_folder_that_a_process_holds_or_that_cannot_be_changed_is_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept(tmp_path, remove_days=1)
    number = kept.ended()
    kept.later(days=2)
    lease = kept.folder(number).take()
    assert lease is not None and kept.retention.sweep() == 0 and (kept.folder(number).run / "table.csv").exists()
    os.close(lease)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda _: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        assert kept.retention.sweep() == 0
    assert kept.retention.sweep() == 1 and kept.job(number).kept == "nothing"


def test_a_job_whose_files_are_gone_is_not_tried_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, reduce_days=1)
    number = kept.ended(state="failed")
    kept.later(days=2)
    kept.retention.sweep()
    with pytest.raises(StepError, match=r"it is failed in its attempt 1. Its weights.* Send its config again"):
        kept.store.retry(number)
    kept.store.delete(number)
    assert kept.retention.sweep() == 0, "it goes as all that are deleted"


# --- where it is told ---


def code(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules = Rules(reduce_days=7, remove_days=30)
    made = Served(tmp_path_factory.mktemp("service"), rules=rules)
    yield made
    made.close()


def aged(served: Served, token: str, days: float, *numbers: int) -> None:
    """Sweep as if so many days had passed, between two looks of the scheduler."""
    retention = served.service.scheduler.retention
    Retention(
        retention.database, served.service.scheduler.folder, retention.rules,
        lambda: datetime.now(UTC) + timedelta(days=days),
    ).sweep()  # fmt: skip


def test_api_page_and_commands_say_what_went(
    served: Served, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        assert code(*words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.setenv("PANNING_URL", served.url)
    monkeypatch.setenv("PANNING_TOKEN", token)
    assert served.ask("GET", "/api/v1/limits", token).json["retention"] == {
        "reduce_days": 7, "remove_days": 30, "most_bytes": 0
    }  # fmt: skip
    number, pinned = served.submit(token), served.submit(token)
    for one in (number, pinned):
        served.until_ended(token, one)
    weights = served.service.scheduler.folder(number).run / "model.safetensors"
    weights.write_bytes(b"weights")
    served.service.scheduler.folder(number).log.write_bytes(bytes(100))
    path = f"/api/v1/jobs/{number}"
    assert served.ask("GET", f"{path}/log", token).status == 200
    assert "stays until it is unpinned" in run("pin", str(pinned))
    assert "It is pinned." in run("status", str(pinned))
    aged(served, token, 8)
    job = served.ask("GET", path, token).json
    assert (job["kept"], job["freed_bytes"]) == ("results", 7 + 100) and job["reduced"].endswith("Z")
    said = served.ask("GET", f"{path}/log", token)
    assert said.problem == "absent" and "logs were removed by the service's rules" in said.json["detail"]
    gone = served.ask("GET", f"{path}/artefacts/{hashlib.sha256(b'weights').hexdigest()}", token)
    assert gone.problem == "absent" and "were removed" in gone.json["detail"]
    assert [one["path"] for one in served.ask("GET", f"{path}/artefacts", token).json] == ["dug.json"]
    assert "weights, checkpoints and logs were removed" in run("status", str(number))
    seen = {"Authorization": f"Bearer {token}"}
    page = served.ask("GET", f"/jobs/{number}", headers=seen).body.decode()
    assert "Masks, policies, tables, pictures and records are here" in page and "<dt>Reduced</dt>" in page
    assert ">reduced</span>" in served.ask("GET", "/jobs", headers=seen).body.decode()
    aged(served, token, 31)
    assert json.loads(run("status", str(number), "--json"))["kept"] == "nothing"
    page = served.ask("GET", f"/jobs/{number}", headers=seen).body.decode()
    assert page.count("All its files were removed by the service&#39;s rules") >= 2
    assert ">removed</span>" in served.ask("GET", "/jobs", headers=seen).body.decode()
    assert served.ask("GET", f"{path}/artefacts", token).json == []
    assert [kind for kind, _, _ in served.events(token, number)] == ["job"], "its events are gone"
    assert served.ask("GET", f"/api/v1/jobs/{pinned}", token).json["kept"] == "all"
    assert "may be deleted" in run("unpin", str(pinned))
    assert "is deleted" in run("delete", str(pinned))
    assert json.loads(run("delete", str(number), "--json")) == {"deleted": number, "n_bytes": 0}


def test_a_job_is_tried_again_by_a_command(
    served: Served, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PANNING_URL", served.url)
    monkeypatch.setenv("PANNING_TOKEN", token)
    number = served.submit(token, rounds=10_000)
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
    served.until_ended(token, number)
    assert code("retry", str(number)) == 0
    assert f"Job {number} is queued again." in capsys.readouterr().out
    assert code("delete", str(number)) == 2 and "Cannot delete job" in capsys.readouterr().err
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
    served.until_ended(token, number)
