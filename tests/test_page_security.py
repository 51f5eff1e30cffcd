"""The page's doors: the cookie of a session, what it lets in, and what no other page can do with it."""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from served import LONG, Answer, Served
from test_service_security import TABLE

from panning.service.api.access import MOST_FAILURES, Failures
from panning.service.api.sessions import LIFETIME, MOST_OF_ONE, Sessions
from panning.service.database import Database
from panning.service.tokens import Tokens
from panning.service.words import SCOPES

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("/", "/jobs", "/jobs/{job}", "/submit", "/compare", "/policies", "/costs?job=1")
POSTS = ("/submit/read",)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("service"))
    made.service.access.failures = Failures(clock=itertools.count(0, 100).__next__)
    yield made
    made.close()


def ours(served: Served) -> dict[str, str]:
    """What a page of ours sends with whatever changes something."""
    return {"Origin": served.url, "X-Panning": "1"}


def sign_in(served: Served, secret: str, **headers: str) -> Answer:
    return served.ask("POST", "/session", None, {"token": secret}, {**ours(served), **headers})


def cookie(served: Served, secret: str) -> dict[str, str]:
    """The header of a browser that is signed in."""
    made = SimpleCookie(sign_in(served, secret).headers["Set-Cookie"])
    return {"Cookie": "; ".join(f"{name}={one.value}" for name, one in made.items())}


# --- sign-in ---


def test_a_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(served: Served) -> None:
    secret = served.token("read")
    answer = sign_in(served, secret)
    made = SimpleCookie(answer.headers["Set-Cookie"])[f"panning-{served.port}"]
    assert answer.status == 204 and made["httponly"] and made["samesite"] == "strict" and not made["secure"]
    assert (made["path"], int(made["max-age"]), made["domain"]) == ("/", LIFETIME.total_seconds(), "")
    assert secret[4:] not in made.value and len(made.value) == 43
    kept = served.service.access.sessions._sessions
    assert made.value not in kept and hashlib.sha256(made.value.encode()).hexdigest() in kept
    for file in served.running.options.root.glob("service.sqlite*"):
        assert made.value.encode() not in file.read_bytes(), "memory and disk have the hash alone"


def test_over_https_the_cookie_is_marked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = served.token()
    monkeypatch.setattr(served.service.access, "secure", True)
    assert sign_in(served, secret).problem == "origin", "a page that came without https is none of ours"
    answer = sign_in(served, secret, Origin=served.url.replace("http:", "https:"))
    made = SimpleCookie(answer.headers["Set-Cookie"])[f"__Host-panning-{served.port}"]
    assert made["secure"] and made["httponly"] and made["path"] == "/"


def test_what_is_no_good_token_signs_nobody_in(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign_in(served, served.token("metrics")).problem == "scope"
    for wrong in ("", "pan_", "pan_guess", "x" * 200):
        assert sign_in(served, wrong).problem == "token"
    assert sign_in(served, "x" * 201).problem == "values"
    for sent in ({}, {"token": None}, {"token": ["x"]}, [], b"token=x"):
        assert served.ask("POST", "/session", None, sent, ours(served)).status == 422, sent
    assert "Set-Cookie" not in sign_in(served, "pan_guess").headers
    monkeypatch.setattr(served.service.access, "failures", Failures(clock=lambda: 0.0))
    stale = {"Cookie": f"panning-{served.port}=guess"}
    statuses = [sign_in(served, "pan_guess").status for _ in range(4)]
    statuses += [served.ask("GET", "/jobs", headers=stale).status for _ in range(3)]
    statuses += [served.ask("GET", "/session", headers=stale).status for _ in range(2)]
    statuses += [served.ask("GET", "/api/v1/jobs", headers=stale).status for _ in range(3)]
    assert len(statuses) == MOST_FAILURES + 2 and statuses[-2:] == [429, 429] and 429 not in statuses[:-2]
    assert sign_in(served, "pan_guess").problem == "failures"
    assert sign_in(served, served.token()).status == 204, "who guesses locks nobody out"


def test_sign_out_expiry_and_revocation_end_a_session(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    made = served.ask("POST", "/api/v1/tokens", served.admin, {"name": "Bo"}).json
    one, two = (cookie(served, made["secret"]) for _ in range(2))
    assert served.ask("GET", "/session", headers=one).json == {"signed_in": True}
    assert served.ask("DELETE", "/session", headers=one).problem == "origin"
    answer = served.ask("DELETE", "/session", headers={**one, **ours(served)})
    assert answer.status == 204 and "Max-Age=0" in answer.headers["Set-Cookie"]
    assert [served.ask("GET", "/api/v1/jobs", headers=each).status for each in (one, two)] == [401, 200]
    assert served.ask("DELETE", f"/api/v1/tokens/{made['token']['id']}", served.admin).status == 204
    assert served.ask("GET", "/api/v1/jobs", headers=two).status == 401
    sent = served.ask("GET", "/jobs?state=failed", headers=two)
    assert (sent.status, sent.headers["Location"]) == (303, "/signin?next=/jobs%3Fstate%3Dfailed")
    assert "Max-Age=0" in sent.headers["Set-Cookie"]
    three, late = cookie(served, served.token()), datetime.now(UTC) + LIFETIME
    monkeypatch.setattr(served.service.access.sessions, "_now", lambda: late)
    assert served.ask("GET", "/api/v1/jobs", headers=three).status == 401
    assert served.ask("GET", "/session").json == {"signed_in": False}


def test_sessions_of_one_token_are_few_and_those_that_are_over_leave_nothing(tmp_path: Path) -> None:
    now, tokens = datetime(2026, 1, 1, tzinfo=UTC), Tokens(Database(tmp_path / "service.sqlite"))
    sessions = Sessions(tokens, clock=lambda: now)
    one, two = (tokens.add(name, "read")[0] for name in "ab")
    other = sessions.begin(two)
    made = [sessions.begin(one) for _ in range(MOST_OF_ONE + 3)]
    for there in (sessions, Sessions(tokens, clock=lambda: now)):
        assert [there.of(secret) is not None for secret in made] == [False] * 3 + [True] * MOST_OF_ONE
        assert there.of(other) is not None
    now += LIFETIME
    last = sessions.begin(two)
    assert list(Sessions(tokens, clock=lambda: now)._sessions) == [hashlib.sha256(last.encode()).hexdigest()]


def test_a_session_goes_on_when_the_server_is_started_again_unless_it_has_ended(tmp_path: Path) -> None:
    first = Served(tmp_path)
    kept, revoked, out = (cookie(first, first.token()) for _ in range(3))
    assert first.ask("DELETE", "/session", headers={**out, **ours(first)}).status == 204
    number = first.service.store.tokens.all()[-2].id
    assert first.ask("DELETE", f"/api/v1/tokens/{number}", first.admin).status == 204
    first.close()
    again = Served(tmp_path, port=first.port)
    try:
        assert [again.ask("GET", "/api/v1/jobs", headers=one).status for one in (kept, revoked, out)] == [200, 401, 401]
    finally:
        again.close()


def test_a_stream_ends_with_its_session(served: Served) -> None:
    import http.client

    secret = served.token()
    number, sent = served.submit(secret, **LONG), cookie(served, secret)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("GET", f"/api/v1/jobs/{number}/events", headers=sent)
    response = connection.getresponse()
    assert response.status == 200 and response.readline()
    assert served.ask("DELETE", "/session", headers={**sent, **ours(served)}).status == 204
    rest = response.read()
    connection.close()
    assert b'"state":"cancelled"' not in rest, "the stream ends before the job"
    assert served.ask("GET", f"/api/v1/jobs/{number}", secret).json["state"] == "running"
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", secret)


# --- scopes ---


def test_every_route_by_every_scope_and_by_cookie(served: Served) -> None:
    for scope in ("read", "submit", "admin"):
        secret = served.token(scope)
        sent = cookie(served, secret)
        for (method, path), needed in TABLE.items():
            path = path.format(job=10**6, token=10**6, sha256="0" * 64, name="none")
            body = {} if method == "POST" else None
            if method != "GET":
                assert served.ask(method, path, None, body, sent).problem == "origin", (method, path)
            by_cookie = served.ask(method, path, None, body, {**sent, **ours(served)})
            by_token = served.ask(method, path, secret, body)
            assert by_cookie.status == by_token.status, (method, path, scope)
            if needed is not None and needed not in SCOPES[scope]:  # type: ignore[index]
                assert by_cookie.problem == "scope"


def test_every_page_asks_for_somebody(served: Served) -> None:
    secret = served.token()
    number = served.submit(secret)
    served.until_ended(secret, number)
    for page in PAGES:
        path = page.format(job=number)
        answer = served.ask("GET", path)
        assert answer.status == 303 and answer.headers["Location"].startswith("/signin"), path
        assert served.ask("GET", path, "pan_guess").status == 303
        assert served.ask("GET", path, served.token("metrics")).status == 403
        for scope in ("read", "submit", "admin"):
            sent = cookie(served, served.token(scope, owner=served.service.access.of(secret).id))  # type: ignore[union-attr]
            wanted = 303 if path == "/" else 403 if (path, scope) == ("/submit", "read") else 200
            assert served.ask("GET", path, headers=sent).status == wanted, (path, scope)
    for path in POSTS:
        body = {"text": "{}"}
        assert served.ask("POST", path, None, body).status == 401
        assert served.ask("POST", path, served.token("read"), body).problem == "scope"
        assert served.ask("POST", path, secret, body).status == 200
        assert served.ask("POST", path, None, body, cookie(served, secret)).problem == "origin"


def test_jobs_of_others_are_on_no_page(served: Served) -> None:
    secret, sent = served.token(), cookie(served, served.token())
    number = served.submit(secret)
    served.until_ended(secret, number)
    assert served.ask("GET", f"/jobs/{number}", headers=sent).status == 404
    assert f"/jobs/{number}" not in served.ask("GET", "/jobs", headers=sent).body.decode()
    found = served.ask("GET", f"/compare?one={number}&other={number}", headers=sent).body.decode()
    assert found.count(f"There is no job {number}.") == 2
    assert served.ask("GET", f"/costs?job={number}", headers=sent).json == {}
    assert list(served.ask("GET", f"/costs?job={number}", headers=cookie(served, secret)).json) == [str(number)]


# --- other pages ---


def test_a_cookie_changes_nothing_for_another_page(served: Served) -> None:
    secret = served.token()
    number, sent = served.submit(secret, **LONG), cookie(served, secret)
    path, port = f"/api/v1/jobs/{number}/cancel", served.port
    foreign = [
        {}, {"X-Panning": "1"}, {"Origin": served.url}, {"Origin": served.url, "X-Panning": "0"},
        {"Origin": "null", "X-Panning": "1"}, {"Origin": "", "X-Panning": "1"}, {"Origin": "https://evil.example"},
        {"Origin": f"http://127.0.0.1:{port + 1}", "X-Panning": "1"}, {"Origin": "http://127.0.0.1", "X-Panning": "1"},
        {"Origin": f"http://localhost:{port}", "X-Panning": "1"}, {"Referer": f"{served.url}/jobs", "X-Panning": "1"},
        {"Origin": f"{served.url}/", "X-Panning": "1"}, {"Origin": f"ftp://127.0.0.1:{port}", "X-Panning": "1"},
        {"Origin": f"http://x@127.0.0.1:{port}", "X-Panning": "1"},
    ]  # fmt: skip
    for headers in foreign:
        assert served.ask("POST", path, None, None, {**sent, **headers}).problem == "origin", headers
    assert served.ask("GET", f"/api/v1/jobs/{number}", secret).json["cancel_asked"] is False
    for site in ("cross-site", "same-site"):
        read = {**sent, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert served.ask("GET", "/api/v1/jobs", None, None, read).problem == "origin"
        assert served.ask("GET", "/jobs", None, None, read).status == 403
    link = {**sent, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert served.ask("GET", "/jobs", None, None, link).status == 200
    assert served.ask("POST", path, None, None, {**sent, **ours(served)}).status == 202


def test_nobody_is_signed_in_by_another_page(served: Served) -> None:
    secret = served.token()
    for headers in ({"Origin": "null"}, {"X-Panning": ""}, {"Origin": "https://evil.example"}):
        assert sign_in(served, secret, **headers).problem == "origin"
    assert served.ask("POST", "/session", None, {"token": secret}).problem == "origin"


def test_pages_allow_their_own_files_alone(served: Served) -> None:
    sent = cookie(served, served.token())
    for path in ("/signin", "/jobs", "/submit", "/compare", "/policies", "/jobs/77", "/static/page.js"):
        headers = served.ask("GET", path, headers=sent).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy, path
        assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == ("no-cache" if path.startswith("/static") else "no-store")
    for template in (ROOT / "panning/service/page/templates").iterdir():
        text = template.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|\|\s*safe|autoescape", text), template.name
        assert re.findall(r"<script(?! type=\"module\" src=\"/static/[\w.]+\"></script>)", text) == [], template.name


def test_static_files_have_tags_and_nothing_else_is_one(served: Served) -> None:
    answer = served.ask("GET", "/static/style.css")
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/css; charset=utf-8"
    tag = {"If-None-Match": answer.headers["ETag"]}
    again = served.ask("GET", "/static/style.css", headers=tag)
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", answer.headers["ETag"])
    for outside in (
        "../app.py",
        "%2e%2e/app.py",
        "..%2fapp.py",
        "/etc/passwd",
        "",
        "style.css%00",
        "templates/base.html",
    ):
        assert served.ask("GET", f"/static/{outside}").status in (404, 422), outside


def test_a_way_back_leads_to_this_service_alone(served: Served) -> None:
    text = served.ask("GET", "/signin?next=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").body.decode()
    assert 'data-next="&#34;&gt;&lt;script&gt;' in text
    assert served.ask("GET", "/jobs/1?x=%0d%0aSet-Cookie:a=b").headers["Location"] == (
        "/signin?next=/jobs/1%3Fx%3D%250d%250aSet-Cookie%3Aa%3Db"
    )


# --- what is installed ---


def test_all_files_of_the_page_are_installed() -> None:
    patterns: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    folder = ROOT / "panning/service/page"
    shipped = {path for pattern in patterns["panning.service.page"] for path in folder.glob(pattern) if path.is_file()}
    there = {path for part in ("static", "templates") for path in (folder / part).rglob("*") if path.is_file()}
    assert there == shipped and len(there) > 10
