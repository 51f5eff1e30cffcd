"""Sessions of browsers: a token is exchanged for a random id in a cookie, because streams of events and downloads of a page
send no header of ours. The server keeps the hash of the id, in memory: sessions end with it."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi.security import APIKeyCookie
from starlette.requests import HTTPConnection

from panning.service.words import Token

#: A session lasts so long, however busy it is.
LIFETIME_S = 12 * 3600.0
#: So many sessions of one token are kept: the oldest goes first.
MOST_OF_ONE = 50


@dataclass(frozen=True)
class Session:
    """A browser that is signed in.

    Attributes:
        key: the hash of its id.
        until: seconds of the clock at which it ends.
    """

    key: bytes
    token: Token
    until: float


class Sessions:
    """The sessions of a server.

    >>> from datetime import UTC, datetime
    >>> from panning.service.api.sessions import Sessions
    >>> from panning.service.words import Quota, Token
    >>> sessions = Sessions()
    >>> made = sessions.begin(Token(1, 1, "Ada", "read", Quota(), datetime.now(UTC), None, None))
    >>> sessions.of(made).token.name, sessions.of("guessed")
    ('Ada', None)
    >>> sessions.end(made)
    >>> sessions.of(made)

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    def begin(self, token: Token) -> str:
        """Begin a session of a token; its id, which nothing can tell again."""
        secret = secrets.token_urlsafe(32)
        session = Session(_hash(secret), token, self._clock() + LIFETIME_S)
        with self._lock:
            self._sessions = {key: one for key, one in self._sessions.items() if one.until > self._clock()}
            own = [key for key, one in self._sessions.items() if one.token.id == token.id]  # the oldest first
            for key in own[: max(0, len(own) - MOST_OF_ONE + 1)]:
                del self._sessions[key]
            self._sessions[session.key] = session
        return secret

    def of(self, secret: str) -> Session | None:
        """The session of an id; None if there is none, or it has ended."""
        session = self._sessions.get(_hash(secret))
        return session if session is not None and self.is_open(session) else None

    def is_open(self, session: Session) -> bool:
        """Whether a session has neither ended nor expired; its token is looked at elsewhere."""
        return session.key in self._sessions and session.until > self._clock()

    def end(self, secret: str) -> None:
        """Sign out."""
        with self._lock:
            self._sessions.pop(_hash(secret), None)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


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
