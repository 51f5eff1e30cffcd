"""Files that callers send to the service: how they come, what is refused, whose they are, what they count, how they go."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from served import CONFIG, LONG, Answer, Served

from panning.service import uploads as uploads_module
from panning.service.api.deadline import TimedProtocol
from panning.service.words import Quota

CONTENT = b"a network, says who sent it" * 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def send(served: Served, token: str, content: bytes, kind: str = "network", **more: Any) -> Answer:
    path = f"/api/v1/uploads/{more.pop('named', sha256(content))}?kind={kind}" + more.pop("query", "")
    return served.ask("PUT", path, token, content, **more)


def left(served: Served) -> list[str]:
    """All files in the folder of uploads that are not those of a row."""
    kept = {path for path in served.service.uploads.root.glob("*/*") if len(path.name) == 64}
    return [str(path) for path in served.service.uploads.root.rglob("*") if path.is_file() and path not in kept]


# --- coming and going ---


def test_a_file_is_sent_listed_and_deleted(served: Served, token: str) -> None:
    answer = send(served, token, CONTENT, query="&name=mine")
    found = answer.json
    assert (answer.status, found["kind"], found["name"], found["n_bytes"]) == (201, "network", "mine", len(CONTENT))
    assert found["sha256"] == sha256(CONTENT) and found["facts"] == {"begins": "a net"} and found["made"].endswith("Z")
    assert served.ask("GET", "/api/v1/uploads", token).json == [found]
    path = f"/api/v1/uploads/{found['sha256']}"
    assert served.ask("GET", path, token).json == found
    assert served.ask("GET", "/api/v1/limits", token).json["stored_bytes"] == len(CONTENT)
    again = send(served, token, CONTENT, query="&name=other")
    assert (again.status, again.json) == (200, found), "it is there already"
    (file,) = served.service.uploads.root.glob(f"*/{found['sha256']}")
    assert file.read_bytes() == CONTENT and file.parent.stat().st_mode & 0o77 == 0
    assert served.ask("DELETE", path, token).status == 204
    assert not file.exists() and served.ask("GET", "/api/v1/limits", token).json["stored_bytes"] == 0
    assert served.ask("DELETE", path, token).problem == served.ask("GET", path, token).problem == "absent"


def test_what_is_not_as_it_says_is_refused_and_leaves_nothing(served: Served, token: str) -> None:
    assert send(served, token, CONTENT, named="0" * 64).problem == "hash"
    assert send(served, token, b"bad: as its check says").problem == "file"
    assert send(served, token, b"bad: as its check says").status == 422, "it was not kept"
    for named in ("0" * 63, "0" * 65, "G" * 64, sha256(CONTENT).upper(), "..%2f" * 12 + "0000", "%00" * 64):
        assert send(served, token, CONTENT, named=named).status in (404, 422), named
    assert send(served, token, CONTENT, kind="pickle").problem == "values"
    assert send(served, token, CONTENT, query="&name=a%0Ab").problem == "values"
    assert send(served, token, CONTENT, query="&name=" + "a" * 101).problem == "values"
    assert served.ask("GET", "/api/v1/uploads", token).json == [] and left(served) == []


def test_a_file_is_there_as_one_kind(served: Served, token: str) -> None:
    assert send(served, token, CONTENT).status == 201
    assert send(served, token, CONTENT, kind="masks").problem == "kind"


def test_uploads_of_others_are_not_there(served: Served, token: str) -> None:
    other, screen = served.token(), served.token("read", owner=served.service.access.of(token).owner)  # type: ignore[union-attr]
    path = f"/api/v1/uploads/{send(served, token, CONTENT).json['sha256']}"
    assert served.ask("GET", "/api/v1/uploads", other).json == []
    for asked in ("", f"?owner={served.service.access.of(token).owner}"):  # type: ignore[union-attr]
        assert served.ask("GET", path + asked, other).problem == served.ask("DELETE", path + asked, other).problem
        assert served.ask("GET", path + asked, other).problem == "absent"
    assert served.ask("GET", path, screen).status == 200
    assert served.ask("DELETE", path, screen).problem == "scope"
    config = {**CONFIG, "task": {"model": f"upload:{sha256(CONTENT)}", "data": "digits"}}
    refused = served.ask("POST", "/api/v1/jobs", other, config)
    assert refused.problem == "config" and refused.json["errors"][0]["at"] == "model"
    assert send(served, other, CONTENT).status == 201, "everybody has their own"
    assert served.ask("DELETE", path, other).status == 204 and served.ask("GET", path, token).status == 200


def test_a_name_is_no_markup(served: Served, token: str) -> None:
    name = "<script>alert(1)</script>"
    found = send(served, token, CONTENT, query="&name=%3Cscript%3Ealert(1)%3C/script%3E")
    assert found.json["name"] == name and found.headers["Content-Type"] == "application/json"


def test_the_scope_admin_sees_the_files_of_all(served: Served, token: str) -> None:
    owner, content = served.service.access.of(token).owner, b"of one of many"  # type: ignore[union-attr]
    found = send(served, token, content, kind="masks").json
    path = f"/api/v1/uploads/{found['sha256']}"
    assert found["token"] == owner and found in served.ask("GET", "/api/v1/uploads", served.admin).json
    assert served.ask("GET", f"/api/v1/uploads?owner={owner}", served.admin).json == [found]
    assert served.ask("GET", f"/api/v1/uploads?owner={owner}", served.token()).problem == "absent"
    assert served.ask("GET", path, served.admin).problem == "absent", "without an owner it is one's own"
    assert served.ask("GET", f"{path}?owner={owner}", served.admin).json == found
    compared = f"/api/v1/masks/compare?first={found['sha256']}&second={found['sha256']}"
    assert served.ask("GET", compared, served.admin).json["jaccard"] == 1
    assert served.ask("GET", compared, served.token()).problem == "absent"
    assert served.ask("DELETE", f"{path}?owner={owner}", served.admin).status == 204
    assert served.ask("GET", path, token).problem == "absent"


# --- sizes ---


def raw(served: Served, token: str, *lines: str, body: bytes = b"", named: str = "0" * 64) -> bytes:
    """What is answered to a request that is written out, until the connection is closed."""
    head = (f"PUT /api/v1/uploads/{named}?kind=data HTTP/1.1", f"Host: 127.0.0.1:{served.port}",
            f"Authorization: Bearer {token}", *lines, "", "")  # fmt: skip
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall("\r\n".join(head).encode() + body)
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
    return found


def test_a_length_is_needed_and_bounded_before_anything_is_read(served: Served, token: str) -> None:
    chunked = raw(served, token, "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 411 ") and b"urn:panning:length" in chunked
    assert raw(served, token).startswith(b"HTTP/1.1 411 ")
    most = served.ask("GET", "/api/v1/limits", token).json["upload_bytes"]
    assert most == 1 << 30
    said = raw(served, token, f"Content-Length: {most + 1}")
    assert said.startswith(b"HTTP/1.1 413 ") and b"urn:panning:too-large" in said
    assert raw(served, token, "Content-Length: " + "9" * 4000).startswith(b"HTTP/1.1 4")
    for path in ("/api/v1/jobs", "/api/v1/uploads"):
        answer = served.ask("PUT", path, token, b" " * (1 << 19))
        assert answer.problem == "too-large", "only files may be so large"


def test_a_quota_holds_also_for_files_on_their_way(served: Served) -> None:
    token = served.token(quota=Quota(stored_bytes=50_000))
    assert send(served, token, b"a" * 30_000).status == 201
    refused = raw(served, token, "Content-Length: 20001", "Connection: close")
    assert refused.startswith(b"HTTP/1.1 429 ") and b"urn:panning:quota" in refused, "and no byte of it was waited for"
    owner = served.service.access.of(token).owner  # type: ignore[union-attr]
    with served.service.uploads.coming(owner, "0" * 64, 15_000):
        assert send(served, token, b"b" * 6_000).problem == "quota"
    assert send(served, token, b"b" * 6_000).status == 201
    assert served.ask("POST", "/api/v1/jobs", token, CONFIG).status == 201
    assert send(served, token, b"c" * 14_001).problem == "quota"


def test_few_come_at_a_time_and_few_are_kept(served: Served, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = served.service.access.of(token).owner  # type: ignore[union-attr]
    monkeypatch.setattr(uploads_module, "MOST_COMING_OF_ONE", 1)
    with served.service.uploads.coming(owner, "0" * 64, 1):
        assert send(served, token, CONTENT).problem == "busy"
    monkeypatch.setattr(uploads_module, "MOST_OF_ONE", 1)
    assert send(served, token, CONTENT).status == 201
    assert send(served, token, b"one more").problem == "quota"


def test_a_file_may_take_longer_than_a_request_as_long_as_it_comes(
    served: Served, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimedProtocol, "deadline_s", 0.3)
    monkeypatch.setattr(TimedProtocol, "least_bytes", 1)
    lines = [f"PUT /api/v1/uploads/{sha256(b'abc')}?kind=data HTTP/1.1", f"Host: 127.0.0.1:{served.port}",
             f"Authorization: Bearer {token}", "Content-Length: 3", "Connection: close", "", ""]  # fmt: skip
    came = threading.Event()
    timer = TimedProtocol._late

    def late(self: TimedProtocol) -> None:
        timer(self)
        came.set()

    monkeypatch.setattr(TimedProtocol, "_late", late)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode())
        for piece in (b"a", b"b", b"c"):
            connection.sendall(piece)
            if piece != b"c":
                assert came.wait(60)  # a deadline has passed, and the next begins
                came.clear()
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 201 ")
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).replace(sha256(b"abc"), "0" * 64).encode() + b"a")
        assert came.wait(60)
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
        assert found.startswith(b"HTTP/1.1 408 "), "it came, and comes no more"
    number = served.submit(token)
    assert served.until_ended(token, number)["state"] == "succeeded"
    assert left(served) == []


def test_a_file_that_breaks_off_leaves_nothing(served: Served, token: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        lines = [f"PUT /api/v1/uploads/{'0' * 64}?kind=data HTTP/1.1", f"Host: 127.0.0.1:{served.port}",
                 f"Authorization: Bearer {token}", "Content-Length: 5000000", "", ""]  # fmt: skip
        connection.sendall("\r\n".join(lines).encode() + b"x" * 2_000_000)
        while not left(served):
            pass
    while left(served) or served.service.uploads._coming_bytes.total():
        pass  # the room that was held for the file is given back after its part has gone


# --- with jobs ---


def named(content: bytes = CONTENT) -> dict[str, Any]:
    return {"task": {"model": f"upload:{sha256(content)}", "data": "digits"}}


def test_a_file_that_a_job_uses_is_kept_until_the_job_has_ended(served: Served, token: str) -> None:
    path = f"/api/v1/uploads/{send(served, token, CONTENT).json['sha256']}"
    number = served.submit(token, **{**LONG, **named()})
    refused = served.ask("DELETE", path, token)
    assert refused.problem == "used" and str(number) in refused.json["detail"]
    steps = served.events(token, number)
    while next(steps)[0] != "message":
        pass  # it runs, and has its folder
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
    served.until_ended(token, number)
    order = served.service.scheduler.folder(number).order()
    assert [Path(one).read_bytes() for one in order.files.values()] == [CONTENT]
    assert served.ask("DELETE", path, token).status == 204
    retried = served.ask("POST", f"/api/v1/jobs/{number}/retry", token)
    assert retried.problem == "config" and "send the file first" in retried.json["detail"]
    assert served.ask("POST", "/api/v1/jobs", token, {**CONFIG, **named()}).problem == "config"


def test_a_file_belongs_into_the_fields_of_its_kind(served: Served, token: str) -> None:
    send(served, token, CONTENT, kind="masks")
    for path in ("jobs", "validate", "cost"):
        refused = served.ask("POST", f"/api/v1/{path}", token, {**CONFIG, **named()})
        assert refused.json["errors"] == [
            {"at": "model", "said": f"the upload {sha256(CONTENT)} is masks, and network belongs here"}
        ]
    for field in ("kind", "method", "device", "label", "quotas"):
        config = {**CONFIG, field: f"upload:{sha256(CONTENT)}"}
        assert served.ask("POST", "/api/v1/jobs", token, config).problem == "config"


# --- what a server that was killed has left ---


def test_a_start_removes_what_was_left(tmp_path: Path) -> None:
    served = Served(tmp_path)
    token = served.token()
    assert send(served, token, CONTENT).status == 201
    assert send(served, token, b"gone").status == 201
    (kept,) = (tmp_path / "uploads").glob(f"*/{sha256(CONTENT)}")
    served.close()
    kept.with_name(sha256(b"gone")).unlink()
    (kept.parent / ".0123.part").write_bytes(b"half")
    (kept.parent / ("0" * 64)).write_bytes(b"without a row")
    again = Served(tmp_path)
    assert os.listdir(kept.parent) == [kept.name]
    assert [one["sha256"] for one in again.ask("GET", "/api/v1/uploads", token).json] == [sha256(CONTENT)]
    again.close()
