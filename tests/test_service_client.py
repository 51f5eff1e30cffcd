"""The client of the service and its commands: what fails on the way is tried again, and nothing is done twice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from console import run
from served import CONFIG, Served

import panning
from panning.client import Client, ServiceError, UnreachableError, client, config_values, download, requests
from panning.client.requests import Requests
from panning.foundation.errors import ConfigError, OutputError
from panning.service.artefacts import Artefact

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def mine(served: Served, token: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(requests.time, "sleep", lambda _: None)
    return panning.Client(served.running.url, token)


# --- the way there and back ---


class Torn:
    """An answer that breaks off after so many lines, or reads."""

    def __init__(self, answer: Any, n: int) -> None:
        self.answer, self.n, self.status, self.length = answer, n, answer.status, answer.length

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()

    def _step(self) -> None:
        self.n -= 1
        if self.n < 0:
            raise ConnectionResetError("torn")

    def read(self, n: int) -> Any:
        self._step()
        return self.answer.read(n)

    def readline(self, n: int) -> Any:
        self._step()
        return self.answer.readline(n)


def tear(monkeypatch: pytest.MonkeyPatch, *after: int | None) -> list[str]:
    """Let the answers to the next requests break off after so many steps; the paths that were asked for."""
    left, asked, real = list(after), list[str](), Requests.open

    def open_(self: Requests, method: str, path: str, *rest: Any) -> Any:
        asked.append(path)
        answer = real(self, method, path, *rest)
        n = left.pop(0) if left else None
        return answer if n is None else Torn(answer, n)

    monkeypatch.setattr(Requests, "open", open_)
    return asked


def test_a_job_is_sent_followed_and_fetched(mine: Client, tmp_path: Path) -> None:
    job = mine.submit(CONFIG, ["seed=3"])
    assert [(place, values["step"]) for place, values in mine.events(job.id)] == [(1, 1), (2, 2), (3, 3)]
    done = mine.wait(job.id)
    assert (done.state, done.id) == ("succeeded", job.id) and done == mine.job(job.id) == mine.jobs()[0]
    assert done.submitted.tzinfo is not None
    (path,) = mine.fetch(job.id, tmp_path)
    assert path == tmp_path / "dug.json" and json.loads(path.read_text())["steps"] == 3


def test_a_submission_whose_answer_is_lost_is_one_job(mine: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(mine.jobs())
    asked = tear(monkeypatch, 0, 0)
    job = mine.submit(CONFIG)
    assert asked == ["/jobs"] * 3 and len(mine.jobs()) == before + 1
    assert mine.submit(CONFIG, key="mine").id == mine.submit(CONFIG, key="mine").id != job.id


def test_a_stream_that_breaks_goes_on_behind_the_last_event(mine: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = mine.submit({**CONFIG, "rounds": 30})
    assert mine.wait(job.id).state == "succeeded"
    asked = tear(monkeypatch, 10, 23, 0, 40)
    assert [place for place, _ in mine.events(job.id)] == list(range(1, 31))
    assert asked == [f"/jobs/{job.id}/events"] * 5
    assert [place for place, _ in mine.events(job.id, after=28)] == [29, 30]


def test_a_fetch_that_breaks_goes_on_behind_the_last_byte(
    mine: Client, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
    job = mine.submit(CONFIG)
    mine.wait(job.id)
    run_folder = served.service.scheduler.folder(job.id).run
    content = os.urandom(10_500)
    (run_folder / "masks").mkdir()
    (run_folder / "masks" / "a").write_bytes(content)
    (run_folder / "empty").touch()
    read: list[str] = []
    asked = tear(monkeypatch, None, 3, 5)
    real = Requests.open

    def spy(self: Requests, method: str, path: str, headers: Any = None, *rest: Any) -> Any:
        read.append((headers or {}).get("Range", ""))
        return real(self, method, path, headers, *rest)

    monkeypatch.setattr(Requests, "open", spy)
    assert len(mine.fetch(job.id, tmp_path, ["masks/a"])) == 1
    assert read == ["", "", "bytes=3000-", "bytes=8000-"] and len(asked) == 4
    assert (tmp_path / "masks" / "a").read_bytes() == content
    assert sorted(mine.fetch(job.id, tmp_path)) == [tmp_path / "dug.json", tmp_path / "empty", tmp_path / "masks" / "a"]
    n = len(asked)
    mine.fetch(job.id, tmp_path)
    assert len(asked) == n + 1, "what is there is not fetched again"
    assert [path.name for path in tmp_path.rglob(".*")] == []
    with pytest.raises(ServiceError, match="has not left no, nor"):
        mine.fetch(job.id, tmp_path, ["no", "nor"])


def test_a_file_that_is_not_what_its_hash_says_is_not_kept(mine: Client, tmp_path: Path) -> None:
    job = mine.submit(CONFIG)
    mine.wait(job.id)
    (one,) = mine.artefacts(job.id)
    (tmp_path / f".{one.sha256[:32]}.part").write_bytes(b"x" * (one.n_bytes - 1))
    with pytest.raises(ServiceError, match="is not what its hash says"):
        mine.fetch(job.id, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_is_told_and_not_tried_again(
    mine: Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tear(monkeypatch)
    refusals: dict[str, Callable[[], object]] = {
        "config": lambda: mine.submit({**CONFIG, "density": 7}), "absent": lambda: mine.job(10**6),
        "scope": mine.tokens, "step": lambda: mine.retry(job.id), "token": Client(mine.url, "pan_x").jobs,
    }  # fmt: skip
    job = mine.submit(CONFIG)
    mine.wait(job.id)
    for code, call in refusals.items():
        before = len(asked)
        with pytest.raises(ServiceError) as refused:
            call()
        assert refused.value.code == code and len(asked) == before + 1
    with pytest.raises(ServiceError, match="There is no job"):
        mine.wait(10**6)


def test_a_service_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(requests.time, "sleep", sleep)
    monkeypatch.setattr(requests.time, "monotonic", lambda: now)
    away = Client("http://127.0.0.1:9", "pan_x", patience_s=20)
    for call in (away.jobs, lambda: away.wait(1), lambda: away.fetch(1, "x")):
        with pytest.raises(UnreachableError, match=r"Does `panning serve` run there\?"):
            call()
        assert 14 < sum(slept) <= 20 and slept[:3] == [0.1, 0.2, 0.4]
        slept.clear()
    with pytest.raises(UnreachableError):
        away.delete(1)
    assert slept == [], "that is not sent twice"


def test_a_redirection_is_not_followed_and_the_token_goes_nowhere_else() -> None:
    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{port}/stolen")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(ServiceError, match="answers 302"):
            Client(f"http://127.0.0.1:{port}", "pan_x").job(1)
        server.shutdown()
        thread.join()
    assert seen == ["/api/v1/jobs/1"]


@contextmanager
def pretender(answers: Callable[[str], tuple[bytes, int]]) -> Iterator[Client]:
    """A client of something else than a service, which answers a path with bytes, and says that they are so many."""

    class Pretender(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, length = answers(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pretender) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{server.server_port}", "pan_x", patience_s=5)
        finally:
            server.shutdown()
            thread.join()


def test_what_is_no_answer_of_a_service_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.time, "sleep", lambda _: None)
    for said in (b"<html>", b"", b"3", b"null", b"\xff", b'{"id": 1}', b"[" * 100_000, b'{"jobs": 1}'):
        with pretender(lambda _, said=said: (said, len(said))) as mine:  # type: ignore[misc]
            for call in (lambda: mine.job(1), mine.jobs, lambda: mine.fetch(1, "x")):
                with pytest.raises(ServiceError, match="no answer of `panning serve`"):
                    call()
    for said in (b"data: {\n\n", b"id: x\ndata: {}\n\n", b"event: job\ndata: []\n\n", b"a" * (2 << 20)):
        with (
            pretender(lambda _, said=said: (said, len(said))) as mine,  # type: ignore[misc]
            pytest.raises(ServiceError, match="no answer of `panning serve`"),
        ):
            mine.wait(1)


def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.time, "sleep", lambda _: None)
    whole, asked = b'{"jobs": [], "next": null}', []

    def answers(path: str) -> tuple[bytes, int]:
        asked.append(path)
        return whole[: 10 if len(asked) == 1 else None], len(whole)

    with pretender(answers) as mine:
        assert mine.jobs() == [] and len(asked) == 2


WRONG: list[dict[str, Any]] = [
    *(
        {"path": path}
        for path in ("../x", "a/../x", "/tmp/x", "", ".", "a//b", "a\\b", "a\x1b", ".bashrc", ".git/x", 3)
    ),
    *({"sha256": text} for text in ("", "../" * 30, "A" * 64, 5)),
    *({"n_bytes": n} for n in (-1, "9", True, 1e3, None)),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_service_writes_nowhere_but_into_the_folder(wrong: dict[str, Any], tmp_path: Path) -> None:
    told = json.dumps([{"path": "x", "sha256": "0" * 64, "n_bytes": 3, **wrong}]).encode()
    out = tmp_path / "in" / "out"
    with (
        pretender(lambda path: (told, len(told)) if path.endswith("artefacts") else (b"abc", 3)) as mine,
        pytest.raises(ServiceError, match=r"outside of the folder|no answer of"),
    ):
        mine.fetch(1, out)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/dug.json", "a/b/part"])
def test_a_link_within_the_folder_is_not_followed(link: str, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    place = out / link.replace("part", f".{sha256[:32]}.part")
    place.parent.mkdir(parents=True)
    place.symlink_to(other if link in ("a", "a/b") else other / "made")
    with pytest.raises(OutputError, match="is a link"):
        download.fetch_file(None, 1, Artefact("a/b/dug.json", 1, sha256), out)  # type: ignore[arg-type]
    assert list(other.iterdir()) == []


def test_a_fetch_that_this_machine_has_no_room_for_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(requests.time, "sleep", slept.append)
    sha256 = hashlib.sha256(b"abc").hexdigest()

    def full(path: Path, mode: str) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def answers(path: str) -> tuple[bytes, int]:
        told = json.dumps([{"path": "x", "sha256": sha256, "n_bytes": n_bytes}]).encode()
        return (told, len(told)) if path.endswith("artefacts") else (b"abc", 3)

    with pretender(answers) as mine:
        n_bytes = 1 << 62
        with pytest.raises(OutputError, match="the disk has room for"):
            mine.fetch(1, tmp_path / "large")
        n_bytes = 3
        monkeypatch.setattr(download, "open", full, raising=False)
        with pytest.raises(OutputError, match="No space left on device"):
            mine.fetch(1, tmp_path / "out")
    assert slept == [], "no other try at the service would help"


def test_addresses_and_configs_are_checked() -> None:
    for url in ("", "127.0.0.1:8750", "ftp://host", "http://", "http://me:secret@host", "http://host?x", "http://[::1",
                "http://host:abc", "http://host:0", "http://host:99999", "http://h\n:1", "http://a b"):  # fmt: skip
        with pytest.raises(ConfigError, match="is no address of a service"):
            Client(url, "pan_x")
    for wrong in ("", "pan_a\nb", "pan \u221e", "p\xe4n"):
        with pytest.raises(ConfigError, match="A token is one word"):
            Client("http://localhost:1", wrong)
    mine = Client("http://localhost:1", "pan_x")
    with pytest.raises(ConfigError, match="A key is one word"):
        mine.submit(CONFIG, key="a\nb")
    for value in (float("inf"), float("nan"), date(2030, 1, 1)):
        with pytest.raises(ConfigError, match="cannot be sent as JSON"):
            mine.submit({**CONFIG, "density": value})
    with pytest.warns(panning.PanningWarning, match="The token goes to lab.example in the clear"):
        Client("http://lab.example:8750", "pan_x")
    assert Client("https://lab.example/", "pan_x").url == "https://lab.example"
    assert config_values("demo/digits")["kind"] == "search" and client.FOLDERS
    with pytest.raises(ConfigError, match="Did you mean 'demo/digits'"):
        config_values("demo/digit")


def test_every_packaged_config_that_runs_may_be_sent() -> None:
    from panning.foundation.packaged import packaged_configs
    from panning.foundation.remote import RUNS, check_remote

    names = packaged_configs(*client.FOLDERS)
    assert names and {config_values(name)["kind"] for name in names} == set(RUNS)
    for name in ("demo/digits", "prune/digits-mlp", "train/digits-mlp", "agent/digits", "bench/digits-mlp"):
        check_remote(config_values(name))


def test_a_client_outlives_its_server_whose_jobs_run_on(tmp_path: Path) -> None:
    def serve(port: str) -> tuple[subprocess.Popen[str], list[str]]:
        command = [sys.executable, str(Path(__file__).with_name("served.py")), str(tmp_path), port]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        return started, started.stdout.readline().split()

    first, (port, token) = serve("0")
    mine = Client(f"http://127.0.0.1:{port}", token)
    number = mine.submit({**CONFIG, "rounds": 150}).id
    told = mine.events(number)
    assert next(told)[0] == 1
    first.kill()
    first.communicate()
    second, again = serve(port)
    assert again == [port], "it has its token still"
    assert [place for place, _ in told] == list(range(2, 151)), "each event once and in order"
    done = mine.wait(number)
    assert (done.state, done.attempt) == ("succeeded", 1), "nobody has run it twice"
    second.terminate()
    assert second.wait(60) == 0
    second.communicate()


# --- files ---


def test_a_file_goes_up_once_and_is_named_in_the_config(mine: Client, tmp_path: Path) -> None:
    files = {field: tmp_path / name for field, name in (("model", "net.safetensors"), ("data", "my:scans.npz"))}
    for field, path in files.items():
        path.write_bytes(field.encode() * 100_000)
    number = mine.submit(CONFIG, ["seed=4"], files=files).id
    sent = {one.kind: one for one in mine.uploads()}
    task = mine._requests.json("GET", f"/jobs/{number}/config")["task"]
    assert task == {
        "model": f"upload:{sent['network'].sha256}", "data": f"upload:{sent['data'].sha256}", "label": "my_scans"
    }  # fmt: skip
    assert (sent["data"].name, sent["data"].n_bytes, sent["data"].facts) == (
        "my:scans.npz",
        400_000,
        {"begins": "datad"},
    )
    assert mine.upload(files["data"], "data") == sent["data"]
    labelled = mine.submit(CONFIG, ["task.label=Mine"], files={"data": files["data"]})
    assert mine._requests.json("GET", f"/jobs/{labelled.id}/config")["task"]["label"] == "Mine"
    for job in (number, labelled.id):
        mine.wait(job)
    for one in sent.values():
        mine.delete_upload(one.sha256)
    assert mine.uploads() == []


def test_what_cannot_be_sent_says_so(mine: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        mine.upload(tmp_path / "none", "data")
    (tmp_path / "file").write_bytes(b"bad: it says")
    with pytest.raises(ServiceError, match="The file is bad") as refused:
        mine.upload(tmp_path / "file", "data")
    assert refused.value.code == "file"
    with pytest.raises(ConfigError, match="Did you mean 'data'"):
        mine.submit(CONFIG, files={"dat": tmp_path / "file"})
    several = {"kind": "bench", "tasks": [{"task": CONFIG["task"]}]}
    (tmp_path / "file").write_bytes(b"good")
    with pytest.raises(ConfigError, match="has not one task"):
        mine.submit(several, files={"data": tmp_path / "file"})
    read = Requests.read_json
    limits = {"upload_bytes": 3, "stored_bytes": 0, "token": {"quota": {"stored_bytes": 9}}}
    monkeypatch.setattr(Requests, "read_json", lambda *given: limits if given[2] == "/limits" else read(*given))
    with pytest.raises(ServiceError, match="has 4 bytes, and the service takes 3 now"):
        mine.upload(tmp_path / "file", "masks")


def test_an_upload_that_breaks_off_is_sent_again(mine: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 100_000)
    read, torn = Requests.read, iter([True, True, False])

    def reads(self: Requests, method: str, *more: Any) -> bytes:
        found = read(self, method, *more)
        if method == "PUT" and next(torn):
            raise ConnectionResetError("the answer was lost")
        return found

    monkeypatch.setattr(Requests, "read", reads)
    assert mine.upload(tmp_path / "file", "masks").n_bytes == 1_000_000
    assert next(torn), "it was there when it was asked for again"


def test_a_network_is_traced_here(mine: Client) -> None:
    import torch

    job = mine.submit_network(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), torch.ones(2, 1, 8, 8), CONFIG
    )
    (sent,) = [one for one in mine.uploads() if one.name == "Sequential.safetensors"]
    task = mine._requests.json("GET", f"/jobs/{job.id}/config")["task"]
    assert task == {**CONFIG["task"], "model": f"upload:{sent.sha256}"} and sent.kind == "network"
    mine.wait(job.id)


# --- commands ---


def test_commands_send_show_watch_fetch_and_cancel(
    served: Served, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        assert run(*arguments) == code, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANNING_URL", served.running.url)
    monkeypatch.delenv("PANNING_TOKEN", raising=False)
    assert run("status") == 2 and "There is no token" in capsys.readouterr().err
    Path("token").write_text(token + "\n")
    assert run("status", "--token-file", "token") == 0 and "No job yet" in capsys.readouterr().err
    monkeypatch.setenv("PANNING_TOKEN", token)
    Path("mine.yaml").write_text(json.dumps(CONFIG))
    number = json.loads(said("submit", "mine.yaml", "seed=1", "--key", "a", "--json"))["id"]
    assert said("submit", "mine.yaml", "seed=1", "--key", "a").startswith(f"Job {number} is ")
    assert said("watch", str(number)) == f"Job {number} has succeeded.\n"
    assert json.loads(said("status", str(number), "--json"))["state"] == "succeeded"
    assert re.search(rf"{number} +prune +succeeded", said("status"))
    assert said("fetch", str(number), "--out", "got") == "1 files in got\n" and Path("got/dug.json").exists()
    Path("net").write_bytes(b"a network")
    sent = json.loads(said("submit", "mine.yaml", "--network", "net", "--data", "net", "--json", code=2) or "{}")
    assert sent == {}, "it is there as a network"
    Path("scans.npz").write_bytes(b"data")
    sent = json.loads(said("submit", "mine.yaml", "--network", "net", "--data", "scans.npz", "--json"))
    assert "succeeded" in said("watch", str(sent["id"]))
    assert run("cancel", str(number)) == 2 and "Cannot cancel job" in capsys.readouterr().err
    long = json.loads(said("submit", "mine.yaml", "rounds=10000", "--json"))["id"]
    assert "is asked to end" in (out := said("cancel", str(long))) or "is cancelled" in out
    assert "is cancelled" in said("watch", str(long), code=1)
    assert run("submit", "mine.yaml", "method=none") == 2 and "Unknown method 'none'" in capsys.readouterr().err


def test_commands_make_list_and_revoke_tokens(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PANNING_URL", served.running.url)
    monkeypatch.setenv("PANNING_TOKEN", served.admin)
    assert run("token", "add", "Eve", "--days", "3", "--running", "2", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["token"]["quota"]["running"] == 2 and made["token"]["expires"]
    number = made["token"]["id"]
    assert run("token", "add", "Eve's screen", "--scope", "read", "--owner", str(number)) == 0
    assert re.search(r"^pan_\S{43}$", capsys.readouterr().out, re.MULTILINE)
    assert run("token", "list") == 0 and "Eve's screen" in capsys.readouterr().out
    assert run("token", "revoke", str(number)) == 0
    capsys.readouterr()
    monkeypatch.setenv("PANNING_TOKEN", made["secret"])
    assert run("status") == 2 and "Send a token that is good" in capsys.readouterr().err


def test_a_service_for_everybody_needs_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("serve", "--host", "0.0.0.0", "--root", str(tmp_path / "s")) == 2
    assert "say which names" in capsys.readouterr().err and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "bound",
    ["--memory-gib", "--hours", "--disk-gib", "--dense-epochs", "--reduce-days", "--remove-days", "--jobs-gib"],
)
def test_a_bound_of_jobs_is_a_number(bound: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("inf", "nan", "-1"):
        assert run("serve", bound, wrong, "--root", str(tmp_path / "s")) == 2
        assert bound in capsys.readouterr().err and not (tmp_path / "s").exists()


# --- from nothing ---


def test_the_readme_s_commands_serve_a_job(tmp_path: Path) -> None:
    """All of them but the installation, on a free port, with a smaller job; in the end SIGTERM while a stream is open."""
    block = (ROOT / "README.md").read_text().split("```sh\n")[1].split("```")[0]
    lines = [shlex.split(line, comments=True) for line in block.replace("demo/digits", "prune/digits-mlp").splitlines()]
    install, serve, export, *rest = lines
    assert install[:2] == ["pip", "install"] and serve == ["panning", "serve", "&"] and len(lines) <= 10
    assert [line[1] for line in rest] == ["submit", "watch", "fetch"]
    panning_ = [sys.executable, "-m", "panning"]
    command = [*panning_, "serve", "--port", "0"]
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        shown = next(shlex.split(line) for line in server.stdout if line.startswith("export "))
        assert [word.partition("=")[0] for word in shown] == [word.partition("=")[0] for word in export]
        environment = {**os.environ, **dict(word.split("=", 1) for word in shown[1:])}
        for line in rest:
            subprocess.run([*panning_, *line[1:]], cwd=tmp_path, env=environment, check=True, capture_output=True)
        assert (tmp_path / rest[-1][-1] / "mask.safetensors").is_file()
        mine = Client(environment["PANNING_URL"], environment["PANNING_TOKEN"])
        told = mine.events(mine.submit("prune/digits-mlp", ["rounds=10000"]).id)
        next(told)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        told.close()
    secret = environment["PANNING_TOKEN"]
    assert all(json.loads(line) for line in (tmp_path / "log").read_text().splitlines())
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in stored, "neither the database nor a log has it"


def test_the_client_loads_no_torch() -> None:
    code = (
        "import sys, panning, panning.cli.remote; panning.Client('http://localhost:1', 'x'); "
        "from panning.client import config_values; config_values('demo/digits'); "
        "print(sorted({'torch', 'ray', 'sqlalchemy', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
