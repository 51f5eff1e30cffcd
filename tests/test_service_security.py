"""What the service refuses: requests without a token, of other hosts and origins, too large, too slow, for what is
somebody else's, and for what lies outside."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from served import CONFIG, LONG, Served

from panning.foundation.errors import ConfigError, JobError
from panning.foundation.remote import TEXTS
from panning.service import checks as checks_module
from panning.service.api import files
from panning.service.api.access import MOST_FAILURES, Failures
from panning.service.api.app import MAX_BODY_BYTES, routes
from panning.service.api.deadline import TimedProtocol
from panning.service.checks import MOST_OF_ONE, Checks
from panning.service.words import SCOPES, BusyError, Quota

TESTS = Path(__file__).resolve().parent
#: Every route -> the scope that it needs; None lets anybody in.
TABLE: dict[tuple[str, str], str | None] = {
    ("POST", "/api/v1/jobs"): "submit", ("GET", "/api/v1/jobs"): "read", ("GET", "/api/v1/jobs/{job}"): "read",
    ("GET", "/api/v1/jobs/{job}/config"): "read", ("GET", "/api/v1/jobs/{job}/attempts"): "read",
    ("POST", "/api/v1/jobs/{job}/cancel"): "submit", ("POST", "/api/v1/jobs/{job}/retry"): "submit",
    ("PUT", "/api/v1/jobs/{job}/pin"): "submit", ("DELETE", "/api/v1/jobs/{job}/pin"): "submit",
    ("DELETE", "/api/v1/jobs/{job}"): "submit", ("GET", "/api/v1/jobs/{job}/events"): "read",
    ("GET", "/api/v1/events"): "read",
    ("GET", "/api/v1/jobs/{job}/artefacts"): "read", ("GET", "/api/v1/jobs/{job}/artefacts/{sha256}"): "read",
    ("GET", "/api/v1/jobs/{job}/log"): "read", ("GET", "/api/v1/tokens"): "admin", ("POST", "/api/v1/tokens"): "admin",
    ("DELETE", "/api/v1/tokens/{token}"): "admin", ("POST", "/api/v1/validate"): "submit",
    ("POST", "/api/v1/cost"): "submit",
    ("GET", "/api/v1/methods"): "read", ("GET", "/api/v1/data-sets"): "read", ("GET", "/api/v1/limits"): "read",
    ("GET", "/api/v1/uploads"): "read", ("GET", "/api/v1/uploads/{sha256}"): "read",
    ("PUT", "/api/v1/uploads/{sha256}"): "submit", ("DELETE", "/api/v1/uploads/{sha256}"): "submit",
    ("GET", "/api/v1/policies"): "read", ("GET", "/api/v1/policies/{name}"): "read",
    ("GET", "/api/v1/masks/compare"): "read",
    ("GET", "/healthz"): None, ("GET", "/readyz"): None, ("GET", "/metrics"): "metrics",
}  # fmt: skip
OF_A_JOB = sorted(route for route in TABLE if "{job}" in route[1])
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
OUTSIDE = [
    "../../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "....//....//etc/passwd", "..;/..;/etc/passwd",
    "file:///etc/passwd", "http://127.0.0.1:1/x", "\\\\host\\share", "~root/.ssh/id_rsa", "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%c0%afetc%c0%afpasswd", "..%252f..%252fetc%252fpasswd", "%00/etc/passwd", "npz:/etc/passwd", "folder:/", "a\nb",
    "\x1b[2J", "<script>alert(1)</script>", "${jndi:ldap://x}", "{{7*7}}", "'; DROP TABLE jobs; --", "os:system", "CON",
    "\u202e", "a" * 5000,
]  # fmt: skip


def patient() -> Failures:
    """As if minutes lay between any two failures."""
    return Failures(clock=itertools.count(0, 100).__next__)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("service"))
    made.service.access.failures = patient()
    yield made
    made.close()


# --- tokens and scopes ---


def test_the_table_has_every_route() -> None:
    described = routes().openapi()["paths"]
    assert set(TABLE) == {(method.upper(), path) for path, ways in described.items() for method in ways}
    for (method, path), scope in TABLE.items():
        assert ("security" in described[path][method.lower()]) == (scope is not None)


def test_every_route_asks_for_its_scope(served: Served) -> None:
    made: dict[str | None, str | None] = {scope: served.token(scope) for scope in SCOPES}
    for (method, path), needed in TABLE.items():
        path = path.format(job=10**6, token=10**6, sha256="0" * 64, name="none")
        for scope, token in {None: None, **made}.items():
            answer = served.ask(method, path, token, {} if method == "POST" else None)
            if needed is None or (scope is not None and needed in SCOPES[scope]):  # type: ignore[index]
                assert answer.status not in (401, 403), (method, path, scope)
            else:
                assert answer.problem == ("token" if scope is None else "scope"), (method, path, scope)


def test_a_stranger_is_not_told_what_is_wrong_with_a_body(served: Served) -> None:
    sent = {"Content-Type": "application/json"}
    for method, path in (route for route in TABLE if route[0] == "POST" and "{" not in route[1]):
        for body in (b"{", b"", b'{"a": NaN', b"\xff", b"[" * 100_000):
            assert served.ask(method, path, None, body, sent).problem == "token", (path, body[:9])
            assert served.ask(method, path, "pan_guess", body, sent).problem == "token", (path, body[:9])
            assert served.ask(method, path, served.token("metrics"), body, sent).problem == "scope", (path, body[:9])
            assert served.ask(method, path, served.admin, body, sent).status in (400, 422), (path, body[:9])


def test_a_number_is_written_in_one_way(served: Served) -> None:
    number = served.submit(served.admin)
    for wrong in (
        f"%20{number}",
        f"+{number}",
        f"0{number}",
        f"{number}.0",
        f"{number}%20",
        f"{number}_0",
        "%D9%A1",
        "1e0",
    ):
        query = wrong.replace("+", "%2B")
        for path in (
            f"jobs/{wrong}", f"jobs/{wrong}/events", f"jobs?before={query}", f"jobs?limit={query}",
            f"uploads?owner={query}", f"events?follow={number}:0{number}",
        ):  # fmt: skip
            assert served.ask("GET", f"/api/v1/{path}", served.admin).problem == "values", path
        assert served.ask("DELETE", f"/api/v1/tokens/{wrong}", served.admin).problem == "values"
        assert served.ask("GET", f"/jobs/{wrong}", served.admin).status == 404
    last = {"Last-Event-ID": "01"}
    assert served.ask("GET", f"/api/v1/jobs/{number}/events", served.admin, headers=last).problem == "values"
    assert served.ask("GET", f"/api/v1/jobs/{number}", served.admin).status == 200


def test_a_token_that_is_no_good_is_none(served: Served) -> None:
    def status(**headers: str) -> int:
        return served.ask("GET", "/api/v1/jobs", headers=headers).status

    good = served.token()
    assert status(Authorization=f"Bearer {good}") == status(Authorization=f"bearer {good}") == 200
    for wrong in (good[:-1], good + "a", good.upper(), "", "pan_", "a" * 10_000, "\xff", f"{good} {good}", f"x {good}"):
        assert status(Authorization=f"Bearer {wrong}") == 401, wrong
    for wrong in (good, f"Basic {good}", f"Token {good}"):
        assert status(Authorization=wrong) == 401
    assert status(Cookie=f"token={good}") == status(**{"X-Api-Key": good}) == 401
    assert served.ask("GET", f"/api/v1/jobs?token={good}").status == 401


def test_a_token_ends_when_it_expires_and_at_once_when_it_is_revoked(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr(served.service.store.tokens, "_now", lambda: now)
    expiring = served.token(expires=now + timedelta(seconds=1))
    made = served.ask("POST", "/api/v1/tokens", served.admin, {"name": "Bo"}).json
    for token in (expiring, made["secret"]):
        assert served.ask("GET", "/api/v1/jobs", token).status == 200
    now += timedelta(seconds=1)
    assert served.ask("GET", "/api/v1/jobs", expiring).status == 401
    path = f"/api/v1/tokens/{made['token']['id']}"
    assert [served.ask("DELETE", path, served.admin).status for _ in range(2)] == [204, 404]
    assert served.ask("GET", "/api/v1/jobs", made["secret"]).status == 401
    assert made["secret"] not in served.ask("GET", "/api/v1/tokens", served.admin).body.decode()
    for wrong in (
        {"name": "a\nb"}, {"name": ""}, {"name": "a", "scope": "root"}, {"name": "a", "owner": 10**6},
        {"name": "a", "expires": "9999-12-31T23:59:59-14:00"}, {"name": "a", "expires": "0001-01-01T00:00:00+14:00"},
        {"name": "a", "hash": "x"}, {"name": "a", "expires": "2030-01-01T00:00:00"}, {"name": "a", "running": -1},
    ):  # fmt: skip
        assert served.ask("POST", "/api/v1/tokens", served.admin, wrong).status == 422, wrong


def test_an_open_stream_tells_a_token_that_was_revoked_nothing_more(served: Served) -> None:
    made = served.ask("POST", "/api/v1/tokens", served.admin, {"name": "Bo"}).json
    number = served.submit(made["secret"], **LONG)
    told = served.events(made["secret"], number)
    next(told)
    assert served.ask("DELETE", f"/api/v1/tokens/{made['token']['id']}", served.admin).status == 204
    assert len(list(told)) < LONG["rounds"], "the stream ends before the job"
    assert served.ask("GET", f"/api/v1/jobs/{number}", served.admin).json["state"] == "running"
    assert served.ask("POST", f"/api/v1/jobs/{number}/cancel", served.admin).status == 202


def test_nobody_takes_all_streams(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_OF_ONE", 2)
    one, other = served.token(), served.token()
    numbers = {token: served.submit(token, **LONG) for token in (one, other)}
    open_ = [served.events(token, numbers[token]) for token in (one, one, other)]
    for told in open_:
        next(told)
    path = f"/api/v1/jobs/{numbers[one]}/events"
    assert served.ask("GET", path, one).problem == "busy"
    for token, number in numbers.items():
        served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
    for told in open_:
        assert [kind for kind, _, _ in told][-1] == "job"
    assert served.ask("GET", path, one).status == 200, "a stream that has ended counts no more"


def test_jobs_of_others_are_not_there(served: Served) -> None:
    owner, quota = served.service.store.tokens.add("Ada", "submit"), Quota(running=0)
    number = served.submit(owner[1], **LONG)
    other, screen = served.token(quota=quota), served.token("read", owner=owner[0].id)
    for method, path in OF_A_JOB:
        path = path.format(job=number, sha256="0" * 64)
        assert served.ask(method, path, other).problem == "absent", (method, path)
        assert str(number) not in json.dumps(
            [job["id"] for job in served.ask("GET", "/api/v1/jobs", other).json["jobs"]]
        )
    for token in (screen, served.admin):
        assert served.ask("GET", f"/api/v1/jobs/{number}", token).json["id"] == number
        assert number in [job["id"] for job in served.ask("GET", "/api/v1/jobs", token).json["jobs"]]
    assert served.ask("POST", f"/api/v1/jobs/{number}/cancel", screen).problem == "scope"
    assert served.ask("POST", f"/api/v1/jobs/{number}/cancel", served.admin).status == 202


def test_guesses_are_answered_ten_times_a_minute(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    good, now = served.token(), 0.0
    monkeypatch.setattr(served.service.access, "failures", Failures(clock=lambda: now))
    answers = [served.ask("GET", "/api/v1/jobs", f"pan_{guess}") for guess in range(60)]
    assert [answer.status for answer in answers] == [401] * MOST_FAILURES + [429] * (60 - MOST_FAILURES)
    assert answers[-1].problem == "failures" and answers[-1].headers["Retry-After"] == "61"
    assert served.ask("GET", "/api/v1/jobs", good).status == 200, "who guesses locks nobody out"
    now = 60.0
    assert served.ask("GET", "/api/v1/jobs", "pan_guess").status == 401


def test_failures_are_of_an_address_and_few_are_remembered() -> None:
    failures = Failures(clock=lambda: 0.0)
    waits = [failures.wait("2001:db8::1") for _ in range(10_000)]
    assert waits.count(0.0) == MOST_FAILURES
    assert failures.wait("2001:db8::2") > 0, "all of a /64 is one host's"
    assert failures.wait("2001:db8:0:1::2") == failures.wait("10.0.0.1") == failures.wait("::ffff:10.0.0.2") == 0
    for number in range(20_000):
        failures.wait(f"10.1.{number // 256}.{number % 256}")
    assert len(failures._times) == 10_000


# --- hosts and origins ---


@pytest.mark.parametrize("method", METHODS)
def test_a_host_is_one_of_ours(method: str, served: Served) -> None:
    port, token = served.port, served.token()
    for name in ("127.0.0.1", "localhost", "LocalHost", "[::1]"):
        assert served.ask(method, "/healthz", token, headers={"Host": f"{name}:{port}"}).status in (200, 405)
    for host in (
        "evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}.evil.example", "",
        f"localhost.evil.example:{port}", f"evil.example@127.0.0.1:{port}", f"[::2]:{port}", f"0.0.0.0:{port}", "null",
    ):  # fmt: skip
        answer = served.ask(method, "/healthz", token, headers={"Host": host})
        assert answer.status == 421 and (method == "HEAD" or answer.problem == "host"), host


@pytest.mark.parametrize("method", METHODS)
def test_a_page_of_another_origin_asks_for_nothing(method: str, served: Served) -> None:
    port, token = served.port, served.token()
    ours = {"Origin": f"http://127.0.0.1:{port}"}
    assert served.ask(method, "/api/v1/limits", token, headers=ours).status in (200, 405)
    for origin in (
        "null", "", "http://evil.example", "http://127.0.0.1", f"http://127.0.0.1:{port + 1}", f"http://localhost.evil:{port}",
        f"http://127.0.0.1:{port}.evil.example", f"http://127.0.0.1:{port}@evil.example", f"ftp://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}/", f"http://a@127.0.0.1:{port}", "file://", f"http://127.0.0.1:{port}, http://evil.example",
        "http://[", f"127.0.0.1:{port}",
    ):  # fmt: skip
        answer = served.ask(method, "/api/v1/limits", token, headers={"Origin": origin})
        assert answer.status == 403 and (method == "HEAD" or answer.problem == "origin"), origin


def test_names_of_a_proxy_are_told_to_the_service(tmp_path: Path) -> None:
    served = Served(tmp_path, names=["Lab.example"])
    headers = {"Host": "lab.example", "Origin": "https://lab.example"}
    assert served.ask("GET", "/healthz", headers=headers).status == 200
    served.close()


# --- sizes and times ---


def raw(served: Served, *pieces: bytes) -> bytes:
    """What is answered to these bytes, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        found = b""
        with contextlib.suppress(ConnectionResetError):  # it was closed with some of the bytes unread
            while piece := connection.recv(1 << 16):
                found += piece
    return found


def head(served: Served, token: str, *lines: str) -> bytes:
    first = ("POST /api/v1/jobs HTTP/1.1", f"Host: 127.0.0.1:{served.port}", f"Authorization: Bearer {token}")
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()


def test_a_body_is_bounded_with_and_without_a_length(served: Served) -> None:
    token = served.token()
    said = raw(served, head(served, token, f"Content-Length: {MAX_BODY_BYTES + 1}"))
    assert said.startswith(b"HTTP/1.1 413 ") and b"urn:panning:too-large" in said, "and no byte of it was waited for"
    piece = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    said = raw(served, head(served, token, "Transfer-Encoding: chunked", "Connection: close"), piece * 65, b"0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413 ") and b"urn:panning:too-large" in said
    body = json.dumps(CONFIG).encode().ljust(MAX_BODY_BYTES)
    assert served.ask("POST", "/api/v1/jobs", token, body, {"Content-Type": "application/json"}).status == 201
    deep = b'{"kind": "prune", "task": ' + b'{"task": ' * 50_000
    assert served.ask("POST", "/api/v1/jobs", token, deep[:MAX_BODY_BYTES]).status == 422
    assert served.ask("POST", "/api/v1/jobs", token, b"[" * 100_000).status in (400, 422)
    assert served.ask("GET", "/api/v1/limits", token).status == 200


def test_half_a_request_is_waited_for_only_so_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedProtocol, "deadline_s", 0.5)
    token = served.token()
    whole = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode()
    halves = [b"", b"G", whole[:-2], head(served, token, "Content-Length: 100") + b"{", whole + whole[:20]]
    halves.append(head(served, token, "Transfer-Encoding: chunked") + b"5\r\n{")
    waiting = []
    for half in halves * 10:
        waiting.append(socket.create_connection(("127.0.0.1", served.port), timeout=60))
        waiting[-1].sendall(half)
    assert served.ask("GET", "/api/v1/limits", token).status == 200, "others are answered meanwhile"
    for half, connection in zip(halves * 10, waiting, strict=True):
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
        connection.close()
        assert found.endswith(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"), half
    number = served.submit(token, rounds=80)
    assert served.until_ended(token, number)["state"] == "succeeded", "a stream may take longer"


def test_who_reads_nothing_of_a_file_is_let_go_and_who_reads_slowly_is_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, looks, gone = served.token(), threading.Semaphore(0), threading.Semaphore(0)
    number = served.submit(token)
    served.until_ended(token, number)
    with open(served.service.scheduler.folder(number).run / "big.bin", "wb") as file:
        file.truncate(64 << 20)  # of zeros, which take no room
    (sha256,) = (
        one["sha256"]
        for one in served.ask("GET", f"/api/v1/jobs/{number}/artefacts", token).json
        if one["path"] == "big.bin"
    )
    real = TimedProtocol._look

    def look(self: TimedProtocol, before: int) -> None:
        real(self, before)
        (gone if self.transport.is_closing() else looks).release()

    monkeypatch.setattr(TimedProtocol, "_look", look)
    monkeypatch.setattr(TimedProtocol, "read_s", 0.2)
    asked = (
        f"GET /api/v1/jobs/{number}/artefacts/{sha256} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
        f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )

    def read(reader: socket.socket, most: int) -> int:
        n = 0
        with contextlib.suppress(ConnectionResetError):
            while n < most and (piece := reader.recv(1 << 16)):
                n += len(piece)
        return n

    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        reader.connect(("127.0.0.1", served.port))
        reader.sendall(asked.encode())
        assert gone.acquire(timeout=60)
        assert read(reader, 1 << 30) < 64 << 20, "it was let go"
    left = itertools.count(1 << 40, -(1 << 20))
    monkeypatch.setattr(TimedProtocol, "_unread", lambda _: next(left))
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        reader.connect(("127.0.0.1", served.port))
        reader.sendall(asked.encode())
        assert all(looks.acquire(timeout=60) for _ in range(3)), "it is looked at again and again"
        assert read(reader, 1 << 30) > 64 << 20, "as long as it reads"


def test_what_is_no_http_is_refused(served: Served) -> None:
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\r\n" * 3 + b"\x00" * 50,
    ):
        assert raw(served, nonsense).startswith(b"HTTP/1.1 4")
    twice = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nHost: evil.example\r\n\r\n" % served.port
    assert raw(served, twice).startswith(b"HTTP/1.1 4")
    assert raw(served, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    long = b"GET /%s HTTP/1.1\r\n" % (b"a" * 200_000)
    assert raw(served, long)[:10] in (b"HTTP/1.1 4", b"")


# --- what lies outside ---


def test_no_text_leads_outside(served: Served) -> None:
    token = served.token()
    number = served.submit(token)
    places = [
        "/{}", "/api/v1/jobs/{}", "/api/v1/jobs/{}/log", f"/api/v1/jobs/{number}/artefacts/{{}}", "/api/v1/tokens/{}",
        f"/api/v1/jobs/{number}/{{}}", "/api/v1/uploads/{}",
        "/api/v1/policies/{}", "/api/v1/masks/compare?first={}", "/api/v1/masks/compare?first_job={}",
        "/api/v1/jobs?state={}", "/api/v1/jobs?before={}",
    ]  # fmt: skip
    n = 0
    for text, place in itertools.product(OUTSIDE, places):
        for sent in {urllib.parse.quote(text, safe=""), urllib.parse.quote(text, safe="/%:;.\\")}:
            answer = served.ask("GET", place.format(sent), token)
            assert 400 <= answer.status < 500 and answer.problem, (place, text)
            assert b"root:" not in answer.body and b"\x1b" not in answer.body
            n += 1
    for text in OUTSIDE:
        assert served.ask("POST", "/api/v1/jobs", token, {"kind": text}).problem == "config"
        if text.isprintable() and text.isascii():
            place = f"/api/v1/jobs/{number}/events"
            assert served.ask("GET", place, token, headers={"Last-Event-ID": text}).problem == "values"
    assert n > 300


@pytest.mark.parametrize("text", [text for text in OUTSIDE if text not in ("CON", "{{7*7}}")])
def test_no_text_of_a_config_leads_outside(text: str, served: Served) -> None:
    config: dict[str, Any] = {**CONFIG, **dict.fromkeys(sorted(TEXTS)[:15], text), "kind": "prune", "policy": text}
    answer = served.ask("POST", "/api/v1/jobs", served.token(), config)
    assert answer.problem == "config" and len(answer.json["errors"]) > 10
    assert not {"\x1b", "\u202e", "<", "$"} & set(answer.body.decode())


# --- the check process ---


def checks(**options: Any) -> Checks:
    import sys

    return Checks(command=(sys.executable, "-S", "-E", str(TESTS / "nodder.py")), **options)


def test_a_config_that_cannot_be_looked_at_is_refused_and_the_next_one_is_looked_at() -> None:
    asked = checks(seconds=0.05)
    for method in ("loops", "ends"):
        with pytest.raises(ConfigError, match=r"takes over 0\.05 s or too much memory"):
            asked.cost({"method": method}, 1)
        assert asked.cost({"method": "snip"}, 1)["n_parameters"] == 50_826
    with pytest.raises(JobError, match="KeyError: it"):
        asked.config({"method": "fails"}, 1)
    asked.close()
    with pytest.raises(BusyError, match="The service ends"):
        asked.cost({"method": "snip"}, 1)


def test_the_line_before_the_check_process_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = checks()
    asked.config(CONFIG, 1)
    asked._waiting[1] = MOST_OF_ONE
    with pytest.raises(BusyError):
        asked.cost(CONFIG, 1)
    asked.config(CONFIG, 1)  # that one is known to be good
    asked.cost(CONFIG, 2)
    monkeypatch.setattr(checks_module, "MOST_WAITING", MOST_OF_ONE)
    with pytest.raises(BusyError):
        asked.cost(CONFIG, 2)
    asked.close()


def test_a_stream_of_several_jobs_holds_those_of_the_token_alone(served: Served) -> None:
    mine, other = served.token(), served.token()
    numbers = [served.submit(token) for token in (mine, mine, other)]
    for token, number in zip((mine, mine, other), numbers, strict=True):
        served.until_ended(token, number)
    wanted = [f"follow={number}:{last}" for number, last in zip(numbers, (0, 2, 0), strict=True)]
    told = served.ask("GET", f"/api/v1/events?{'&'.join(wanted)}", mine).body.decode().strip().split("\n\n")
    fields = [dict(line.split(": ", 1) for line in one.split("\n")) for one in told]
    assert [one["data"] for one in fields if one.get("event") == "gone"] == [json.dumps({"id": numbers[2]})]
    of_jobs = [json.loads(one["data"]) for one in fields if one.get("event") == "job"]
    assert {one["id"] for one in of_jobs if one["state"] == "succeeded"} == set(numbers[:2])
    ids = sorted(one["id"] for one in fields if "id" in one)
    assert ids == sorted([f"{numbers[0]}:1", f"{numbers[0]}:2", f"{numbers[0]}:3", f"{numbers[1]}:3"])
    for wrong in ("", "?follow=", "?follow=1", "?follow=0:0", "?follow=1:-1", "?" + "&".join(["follow=1:0"] * 33)):
        assert served.ask("GET", f"/api/v1/events{wrong}", mine).problem == "values", wrong
