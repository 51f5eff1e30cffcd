"""The service's answers over HTTP: jobs, streams of events, artefacts, checks, tokens, health."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from served import COMMANDS, CONFIG, LONG, Served

from panning.service import serve, streams
from panning.service.api.app import routes
from panning.service.words import Quota

ROOT = Path(__file__).resolve().parent.parent


# --- jobs ---


def test_a_job_is_taken_in_runs_and_leaves_its_files(served: Served, token: str) -> None:
    answer = served.ask("POST", "/api/v1/jobs", token, CONFIG)
    number = answer.json["id"]
    assert (answer.status, answer.headers["Location"]) == (201, f"/api/v1/jobs/{number}")
    assert served.until_ended(token, number)["state"] == "succeeded"
    job = served.ask("GET", f"/api/v1/jobs/{number}", token).json
    assert (job["state"], job["attempt"], job["submitted"][-1]) == ("succeeded", 1, "Z")
    assert served.ask("GET", f"/api/v1/jobs/{number}/config", token).json == CONFIG
    assert [one["how"] for one in served.ask("GET", f"/api/v1/jobs/{number}/attempts", token).json] == ["succeeded"]
    (left,) = served.ask("GET", f"/api/v1/jobs/{number}/artefacts", token).json
    assert left["path"] == "dug.json"


def test_the_same_request_under_a_key_is_the_same_job(served: Served, token: str) -> None:
    key = {"Idempotency-Key": "mine"}
    first, again = (served.ask("POST", "/api/v1/jobs", token, CONFIG, key) for _ in range(2))
    assert (first.status, again.status) == (201, 200) and first.json["id"] == again.json["id"]
    assert served.ask("POST", "/api/v1/jobs", token, {**CONFIG, "seed": 1}, key).problem == "key"
    other = served.ask("POST", "/api/v1/jobs", served.token(), {**CONFIG, "seed": 1}, key)
    assert other.status == 201, "keys are of a token"


def test_pages_lead_to_one_another(served: Served) -> None:
    token = served.token(quota=Quota(running=0, queued=20))
    numbers = [served.submit(token, seed=seed) for seed in range(5)]
    seen, path = [], "/api/v1/jobs?limit=2"
    while path:
        page = served.ask("GET", path, token).json
        seen += [job["id"] for job in page["jobs"]]
        path = page["next"] and f"/api/v1/jobs?limit=2&before={page['next']}"
    assert seen == numbers[::-1]
    served.ask("POST", f"/api/v1/jobs/{numbers[0]}/cancel", token)
    page = served.ask("GET", "/api/v1/jobs?state=cancelled", token).json
    assert [job["id"] for job in page["jobs"]] == numbers[:1] and page["next"] is None


def test_a_job_is_cancelled_tried_again_kept_and_deleted(served: Served, token: str) -> None:
    number = served.submit(token, **LONG)
    steps = served.events(token, number)
    while next(steps)[0] != "message":
        pass  # it runs
    path = f"/api/v1/jobs/{number}"
    assert served.ask("DELETE", path, token).problem == "step"
    assert served.ask("POST", f"{path}/cancel", token).json["cancel_asked"]
    assert [values["state"] for kind, _, values in steps if kind == "job"][-1] == "cancelled"
    assert served.ask("POST", f"{path}/cancel", token).problem == "step"
    assert served.ask("POST", f"{path}/retry", token).json["state"] in ("queued", "running")
    served.ask("POST", f"{path}/cancel", token)
    served.until_ended(token, number)
    assert served.ask("PUT", f"{path}/pin", token).json["pinned"]
    assert served.ask("DELETE", path, token).problem == "step"
    assert not served.ask("DELETE", f"{path}/pin", token).json["pinned"]
    assert served.ask("DELETE", path, token).status == 204
    assert served.ask("GET", path, token).problem == "absent"


def test_a_config_that_is_refused_says_all_that_is_wrong(served: Served, token: str) -> None:
    answer = served.ask("POST", "/api/v1/jobs", token, {**CONFIG, "policy": "/etc/passwd", "density": 7})
    assert answer.problem == "config" and answer.status == 422
    assert [one["at"] for one in answer.json["errors"]] == ["density", "policy"]
    answer = served.ask("POST", "/api/v1/jobs", token, {**CONFIG, "method": "none"})
    assert answer.json["errors"] == [{"at": "method", "said": "Unknown method 'none'."}]
    assert served.ask("POST", "/api/v1/validate", token, CONFIG).json == {"status": "well-formed"}
    assert served.ask("POST", "/api/v1/cost", token, CONFIG).json["n_parameters"] == 50_826
    for body in (b"{", b'{"kind": NaN}', b"[1]", b""):
        answer = served.ask("POST", "/api/v1/jobs", token, body, {"Content-Type": "application/json"})
        assert answer.status in (400, 422) and answer.problem in ("request", "values", "config")


def test_a_quota_holds(served: Served) -> None:
    token = served.token(quota=Quota(running=0, queued=2))
    assert [served.ask("POST", "/api/v1/jobs", token, CONFIG).status for _ in range(3)] == [201, 201, 429]
    assert served.ask("POST", "/api/v1/jobs", token, CONFIG).problem == "quota"
    limits = served.ask("GET", "/api/v1/limits", token).json
    assert limits["jobs"]["queued"] == 2 and limits["token"]["quota"]["queued"] == 2


def test_a_method_that_a_path_has_not_is_told_those_that_it_has(served: Served, token: str) -> None:
    answer = served.ask("PATCH", "/api/v1/jobs", token)
    assert answer.problem == "method" and answer.headers["Allow"] == "GET, POST"


# --- streams ---


def test_every_event_comes_once_and_in_order_whoever_listens_and_reconnects(served: Served, token: str) -> None:
    number = served.submit(token, rounds=60)
    heard: list[list[int]] = [[] for _ in range(5)]

    def listen(mine: list[int], breaks: int) -> None:
        while True:
            for kind, place, values in served.events(token, number, mine[-1] if mine else None):
                if kind == "message":
                    assert values["step"] == place
                    mine.append(place)
                    if breaks and len(mine) % breaks == 0:
                        break  # and comes again
                elif values["state"] == "succeeded":
                    return

    listeners = [threading.Thread(target=listen, args=(mine, breaks)) for breaks, mine in enumerate(heard, start=9)]
    for one in listeners:
        one.start()
    for one in listeners:
        one.join(60)
    assert heard == [list(range(1, 61))] * 5
    while served.service.streams.n_listeners:
        pass  # the server hears of the last that has gone


def test_a_listener_that_is_late_reads_what_is_not_kept_any_more(
    served: Served, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_KEPT", 7)
    number = served.submit(token, rounds=40)
    assert served.until_ended(token, number)["state"] == "succeeded"
    for last in (None, 3, 39, 40, 10**9):
        told = list(served.events(token, number, last))
        assert [place for kind, place, _ in told if kind == "message"] == list(range((last or 0) + 1, 41))
        assert told[-1][0] == "job", "the end is told last"


def test_a_stream_ends_at_once_when_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "GRACE_S", 3600)  # as long as requests that are at work may take
    served = Served(tmp_path)
    token = served.token()
    number = served.submit(token, **LONG)
    told = served.events(token, number)
    while next(told)[0] != "message":
        pass
    served.running.stop()
    assert all(kind == "message" or values["state"] == "running" for kind, _, values in told), (
        "nobody says it had ended"
    )
    served.close()
    again = Served(tmp_path)
    job = again.ask("GET", f"/api/v1/jobs/{number}", token).json
    assert (job["state"], job["attempt"]) in (("queued", 1), ("running", 2)), "it was stopped, and goes on"
    again.close()


# --- artefacts ---


@pytest.fixture(scope="module")
def left(served: Served) -> tuple[str, str, bytes]:
    """A token, the path of an artefact of its job, and the artefact's content."""
    token = served.token()
    number = served.submit(token)
    served.until_ended(token, number)
    content = bytes(range(256)) * 3000
    (served.service.scheduler.folder(number).run / "mask.bin").write_bytes(content)
    return token, f"/api/v1/jobs/{number}/artefacts/{hashlib.sha256(content).hexdigest()}", content


def test_an_artefact_is_the_content_of_its_hash(served: Served, left: tuple[str, str, bytes]) -> None:
    token, path, content = left
    answer = served.ask("GET", path, token)
    assert answer.body == content and hashlib.sha256(answer.body).hexdigest() in path
    assert answer.headers["Content-Disposition"] == 'attachment; filename="mask.bin"'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert served.ask("GET", path, token, headers={"If-None-Match": answer.headers["ETag"]}).status == 304
    assert served.ask("GET", path[:-1] + ("0" if path[-1] != "0" else "1"), token).problem == "absent"
    assert served.ask("GET", path[:-1], token).problem == "values"


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=700000-", 700_000, None), ("bytes=-5", -5, None), ("bytes=5-99999999", 5, None)],
)
def test_a_range_is_a_part(
    asked: str, begin: int, end: int | None, served: Served, left: tuple[str, str, bytes]
) -> None:
    token, path, content = left
    answer = served.ask("GET", path, token, headers={"Range": asked})
    assert (answer.status, answer.body) == (206, content[begin:end])
    start = begin % len(content)
    assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(answer.body) - 1}/{len(content)}"


def test_what_is_no_range_of_it_is_passed_over_or_refused(served: Served, left: tuple[str, str, bytes]) -> None:
    token, path, content = left
    for asked in ("bytes=0-1,5-6", "lines=1-2", "bytes=b-c", "bytes=5-2", "bytes", "bytes=\u00b2-"):
        answer = served.ask("GET", path, token, headers={"Range": asked})
        assert (answer.status, len(answer.body)) == (200, len(content)), asked
    stale = {"Range": "bytes=0-1", "If-Range": '"another"'}
    assert served.ask("GET", path, token, headers=stale).status == 200
    refused = served.ask("GET", path, token, headers={"Range": f"bytes={len(content)}-"})
    assert refused.problem == "range" and refused.headers["Content-Range"] == f"bytes */{len(content)}"


def test_links_and_what_is_no_file_are_no_artefacts(served: Served, tmp_path: Path) -> None:
    token = served.token()
    number = served.submit(token)
    served.until_ended(token, number)
    run = served.service.scheduler.folder(number).run
    (tmp_path / "secret").write_text("of somebody else")
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "linked").symlink_to(tmp_path)
    (run / ".hidden").write_text("ours")
    (run / "b\x1b[2J").write_text("x")
    left = served.ask("GET", f"/api/v1/jobs/{number}/artefacts", token).json
    assert [one["path"] for one in left] == ["dug.json"]
    secret = hashlib.sha256(b"of somebody else").hexdigest()
    assert served.ask("GET", f"/api/v1/jobs/{number}/artefacts/{secret}", token).problem == "absent"


# --- about ---


def test_methods_data_sets_health_and_figures(served: Served, token: str) -> None:
    assert served.ask("GET", "/api/v1/methods", token).json == [{"name": "snip"}]
    there = served.ask("GET", "/api/v1/data-sets", token).json
    assert there == [{"name": "digits", "there": True}, {"name": "mnist", "there": False}]
    assert served.ask("GET", "/healthz").json == {"status": "alive"}
    assert served.ask("GET", "/readyz").json == {"status": "ready"}
    text = served.ask("GET", "/metrics", served.token("metrics")).body.decode()
    assert 'panning_requests_total{method="GET",route="/healthz",status="200"} ' in text
    assert "panning_jobs{" in text and "panning_streams 0.0" in text


def test_policies_have_cards(served: Served, token: str) -> None:
    (card,) = served.ask("GET", "/api/v1/policies", token).json
    assert (card["name"], card["seen"], card["fails"]) == ("mine", {"depth": [0.1, 0.2]}, ["On wide networks."])
    assert served.ask("GET", "/api/v1/policies/mine", token).json == card
    assert served.ask("GET", "/api/v1/policies/other", token).problem == "absent"
    assert served.ask("POST", "/api/v1/jobs", token, {**CONFIG, "policy": "mine"}).status == 201
    assert served.ask("POST", "/api/v1/jobs", token, {**CONFIG, "policy": "../mine"}).problem == "config"


def test_masks_of_jobs_and_uploads_are_compared(served: Served, token: str) -> None:
    number = served.submit(token)
    served.until_ended(token, number)
    (left,) = served.ask("GET", f"/api/v1/jobs/{number}/artefacts", token).json
    content = b"another mask"
    sent = hashlib.sha256(content).hexdigest()
    assert served.ask("PUT", f"/api/v1/uploads/{sent}?kind=masks", token, content).status == 201
    ours = f"/api/v1/masks/compare?first={left['sha256']}&first_job={number}"
    assert served.ask("GET", f"{ours}&second={left['sha256']}&second_job={number}", token).json["jaccard"] == 1
    assert served.ask("GET", f"{ours}&second={sent}", token).json["jaccard"] == 0
    other = served.token()
    assert served.ask("GET", f"{ours}&second={sent}", other).problem == "absent"
    assert served.ask("GET", f"/api/v1/masks/compare?first={sent}&second={sent}", other).problem == "absent"
    assert served.ask("GET", f"{ours}&second={'0' * 64}&second_job={number}", token).problem == "absent"
    assert served.ask("GET", ours, token).problem == "values"


def test_the_log_has_one_line_of_json_for_each_request_and_no_secret(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    from panning.service.log import JsonLines

    token = served.token()
    with caplog.at_level(logging.INFO, "panning.service"):
        answer = served.ask("GET", f"/api/v1/jobs/7?x={token}&y=%0a", token)
        served.ask("GET", f"/%1b[2J{token}", None)
        while sum(record.message == "request" for record in caplog.records) < 2:
            pass  # a line is written once the answer is away
    lines = [JsonLines().format(record) for record in caplog.records]
    values = [json.loads(line) for line in lines if "request" in line]
    assert values[0]["id"] == answer.headers["X-Request-Id"] and values[0]["job"] == "7"
    assert values[1]["path"] == "/%1b[2Jpan_***" and values[1]["status"] == 404
    assert all(line.isascii() and line.isprintable() and token[4:] not in line for line in lines)


def test_the_description_is_the_file_in_the_repository() -> None:
    """After a change: python -m panning.service.api.app > docs/reference/openapi.json"""
    told = json.loads((ROOT / "docs" / "reference" / "openapi.json").read_text())
    assert routes().openapi() == told


def test_every_error_is_described() -> None:
    for path, ways in routes().openapi()["paths"].items():
        for method, way in ways.items():
            errors = {status: said for status, said in way["responses"].items() if status >= "400"}
            assert "421" in errors, (path, method)
            for said in errors.values():
                assert list(said["content"]) == ["application/problem+json"]


def test_a_signal_before_the_server_listens_ends_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve.Running(serve.Options(tmp_path, port=0, **COMMANDS))
    before = set(threading.enumerate())

    def interrupted(what: str, **_: object) -> None:
        if what == "serving":
            raise KeyboardInterrupt

    monkeypatch.setattr(serve.LOG, "info", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    running.socket.close()
    assert [thread for thread in set(threading.enumerate()) - before if thread.name == "scheduler"] == []


def test_the_server_loads_no_torch() -> None:
    code = "import sys, panning.service.serve; print(sorted({'torch', 'ray', 'typer'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
