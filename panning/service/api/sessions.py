"""Sessions of browsers: a token is exchanged for a random id in a cookie, because streams of events and downloads of a page
send no header of ours. The database has the hash of the id, so that a session goes on when the server is started again, and
nobody who reads the database can show it. The server is the only one that writes there, and looks sessions up in memory."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from fastapi.security import APIKeyCookie
from starlette.requests import HTTPConnection

from panning.service.database import SESSIONS
from panning.service.tokens import Tokens, now_utc
from panning.service.words import Token

#: A session lasts so long, however busy it is.
LIFETIME = timedelta(hours=12)
#: So many sessions of one token are kept: the oldest goes first.
MOST_OF_ONE = 50


@dataclass(frozen=True)
class Session:
    """A browser that is signed in.

    Attributes:
        key: the hash of its id.
        until: when it ends.
    """

    key: str
    token: Token
    until: datetime


class Sessions:
    """The sessions of a service.

    >>> from pathlib import Path
    >>> from panning.service.api.sessions import Sessions
    >>> from panning.service.database import Database
    >>> from panning.service.tokens import Tokens
    >>> tokens = Tokens(Database(Path("service.sqlite")))
    >>> made = Sessions(tokens).begin(tokens.add("Ada", "read")[0])
    >>> later = Sessions(tokens)
    >>> later.of(made).token.name, later.of("guessed")
    ('Ada', None)
    >>> later.end(made)
    >>> later.of(made)

    Args:
        tokens: whose sessions they are; the database is theirs.
        clock: gives the present time.
    """

    def __init__(self, tokens: Tokens, clock: Callable[[], datetime] = now_utc) -> None:
        self._database, self._now = tokens.database, clock
        self._lock = threading.Lock()
        good = {token.id: token for token in tokens.all() if tokens.is_good(token)}
        with self._database.reads() as connection:
            rows = connection.execute(sa.select(SESSIONS).order_by(SESSIONS.c.until)).all()
        found = [Session(row.hash, good[row.token], row.until) for row in rows if row.token in good]
        self._sessions = {one.key: one for one in found}  # the oldest first

    def begin(self, token: Token) -> str:
        """Begin a session of a token; its id, which nothing can tell again. Once this returns, it is on the disk."""
        secret = secrets.token_urlsafe(32)
        session = Session(_hash(secret), token, self._now() + LIFETIME)
        with self._lock:
            own = [key for key, one in self._sessions.items() if one.token.id == token.id]
            gone = {*own[: max(0, len(own) - MOST_OF_ONE + 1)]}
            gone |= {key for key, one in self._sessions.items() if one.until <= self._now()}
            values = {"hash": session.key, "token": token.id, "until": session.until}
            with self._database.writes() as connection:
                is_over = SESSIONS.c.hash.in_(gone) | (SESSIONS.c.until <= self._now())
                connection.execute(sa.delete(SESSIONS).where(is_over))
                connection.execute(sa.insert(SESSIONS).values(values))
            self._sessions = {key: one for key, one in self._sessions.items() if key not in gone}
            self._sessions[session.key] = session
        return secret

    def of(self, secret: str) -> Session | None:
        """The session of an id; None if there is none, or it has ended."""
        session = self._sessions.get(_hash(secret))
        return session if session is not None and self.is_open(session) else None

    def is_open(self, session: Session) -> bool:
        """Whether a session has neither ended nor expired; its token is looked at elsewhere."""
        return session.key in self._sessions and session.until > self._now()

    def end(self, secret: str) -> None:
        """Sign out."""
        with self._lock:
            self._sessions.pop(_hash(secret), None)
            with self._database.writes() as connection:
                connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.hash == _hash(secret)))


def _hash(secret: str) -> str:
    # The id has 256 random bits: nothing is gained by a slow hash.
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def cookie_name(request: HTTPConnection, secure: bool) -> str:
    """The name of the cookie: browsers tell cookies apart by host, not by port, so the name has the port.

    Args:
        secure: the service is reached over https alone.
    """
    name, _, port = request.headers["host"].rpartition(":")
    of_port = f"-{port}" if name and port.isdecimal() else ""
    return ("__Host-" if secure else "") + "panning" + of_port


class SessionCookie(APIKeyCookie):
    """Finds the session's cookie by the name that it has for this request."""

    async def __call__(self, request: HTTPConnection) -> str | None:
        return request.cookies.get(cookie_name(request, request.app.state.service.access.secure))


COOKIE = SessionCookie(
    name="panning-8750",
    scheme_name="session",
    auto_error=False,
    description=(
        "The session of a page of the service. The name ends with the port of the address, and begins with `__Host-` where "
        "the service is reached over https. Requests that change something also need the header `Origin` of the service "
        "and `X-Panning: 1`."
    ),
)
