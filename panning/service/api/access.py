"""Who may ask: a token in the header ``Authorization: Bearer``, or the cookie of a page's session, whose scope includes what
is asked for. A browser sends cookies along whoever made the request, so with one a page must show that it is ours."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from panning.service.api.problems import ProblemError
from panning.service.api.sessions import COOKIE, Session, Sessions
from panning.service.tokens import Tokens
from panning.service.words import Scope, Token

#: So many failures of an address in so many seconds are answered; then it waits.
MOST_FAILURES, FAILURES_S = 10, 60.0
#: At most so many addresses and tokens are remembered.
MOST_KNOWN = 10_000

#: The header that our pages send with whatever changes something: no page of another origin can.
OURS = "X-Panning"
#: Methods that change nothing.
SAFE = ("GET", "HEAD", "OPTIONS")

BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="A token of `panning token add`.")


class Failures:
    """Counts the requests without a good token, by address; a good token is asked for none of it.

    >>> from panning.service.api.access import Failures
    >>> failures = Failures(clock=lambda: 0.0)
    >>> [failures.wait("10.0.0.1") for _ in range(11)][-2:]
    [0.0, 60.0]

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def wait(self, address: str) -> float:
        """Take note of a failure; how many seconds the address must wait, 0 if it need not."""
        now, key = self._clock(), _network(address)
        times = self._times.pop(key, None) or deque(maxlen=MOST_FAILURES)
        self._times[key] = times  # the latest stands last
        while len(self._times) > MOST_KNOWN:
            del self._times[next(iter(self._times))]
        if len(times) == MOST_FAILURES and now - times[0] < FAILURES_S:
            return FAILURES_S - (now - times[0])
        times.append(now)
        return 0.0


def _network(address: str) -> str:
    """An address, or the /64 of IPv6, all of which one host may have."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and (mapped := found.ipv4_mapped) is not None:
        return str(mapped)
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


class Access:
    """Finds the token of a request.

    Args:
        tokens: of the store. Tokens that were good are remembered, so they are to be revoked here.
        clock: in seconds, for failures.
        secure: the service is reached over https alone: cookies go no other way.
    """

    def __init__(self, tokens: Tokens, clock: Callable[[], float] = time.monotonic, secure: bool = False) -> None:
        self.tokens = tokens
        self.secure = secure
        self.sessions = Sessions(tokens)
        self.failures = Failures(clock)
        self._known: dict[bytes, Token] = {}
        self._revoked: set[int] = set()

    def of(self, secret: str) -> Token | None:
        """The token of a secret; None if there is none that is good now."""
        key = hashlib.sha256(secret.encode(errors="replace")).digest()
        token = self._known.get(key)
        if token is not None:
            return token if self.is_good(token) else None
        token = self.tokens.of(secret)
        if token is not None and len(self._known) < MOST_KNOWN:
            self._known[key] = token
        return token

    def is_good(self, token: Token) -> bool:
        """Whether a token that was good has neither expired nor been revoked since."""
        return token.id not in self._revoked and self.tokens.is_good(token)

    def revoke(self, number: int) -> bool:
        """End a token at once; whether it was good until now."""
        if not self.tokens.revoke(number):
            return False
        self._revoked.add(number)
        return True

    def still(self, request: Request, token: Token) -> bool:
        """Whether what a request was let in by is good by now: its token, and its session if it had one."""
        session: Session | None = request.scope.get("panning.session")
        return self.is_good(token) and (session is None or self.sessions.is_open(session))

    def check(self, request: Request, secret: str | None, scope: Scope, cookie: str | None = None) -> Token:
        """The token of a request.

        Args:
            secret: that of a token.
            cookie: the id of a session, which counts where there is no secret.

        Raises:
            ProblemError: if there is none, it is no good, its scope does not include ``scope``, or it comes by a cookie and
                not from a page of ours.
        """
        if secret is None and cookie is not None:
            check_ours(request, self.secure)
            token = self._of_session(request, cookie)
        else:
            token = None if secret is None else self.of(secret)
        if token is None:
            self.failed(request)
            said = "Send a token that is good, as 'Authorization: Bearer pan_...'; `panning token add` makes one."
            raise ProblemError("token", said, {"WWW-Authenticate": "Bearer"})
        request.scope["panning.token"] = token.id
        if not token.may(scope):
            raise ProblemError("scope", f"The scope of this token is {token.scope}, and {scope} is needed.")
        return token

    def failed(self, request: Request) -> None:
        """Take note of a request without a good token.

        Raises:
            ProblemError: if too many came from its address.
        """
        address = "-" if request.client is None else request.client.host
        if (seconds := self.failures.wait(address)) > 0:
            said = f"Of this address came {MOST_FAILURES} requests without a good token within a minute: wait."
            raise ProblemError("failures", said, {"Retry-After": str(int(seconds) + 1)})

    def _of_session(self, request: Request, cookie: str) -> Token | None:
        session = self.sessions.of(cookie)
        if session is None or not self.is_good(session.token):
            return None
        request.scope["panning.session"] = session
        return session.token


def check_ours(request: Request, secure: bool) -> None:
    """Raise if a request with a cookie may not come from a page of ours.

    A request that changes something says its origin, which is that of the address that it goes to, and has a header that
    other pages cannot send. One that reads is refused where the browser says that another site made it.

    Args:
        secure: the service is reached over https alone.

    Raises:
        ProblemError: if so.
    """
    if request.method not in SAFE:
        origin = urlsplit(request.headers.get("origin", "").lower())  # the guard has refused what is no origin
        is_ours = origin.netloc == request.headers["host"].lower() and origin.scheme in _schemes(secure)
        if not is_ours or request.headers.get(OURS) != "1":
            said = (
                f"By cookie, only a page of the service may ask for this: send its Origin and '{OURS}: 1', or a token."
            )
            raise ProblemError("origin", said)
    elif (
        request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        and request.headers.get("sec-fetch-mode") != "navigate"
    ):
        raise ProblemError("origin", "By cookie, only a page of the service may ask for this: send a token.")


def _schemes(secure: bool) -> tuple[str, ...]:
    return ("https",) if secure else ("http", "https")


Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
Cookie = Annotated[str | None, Security(COOKIE)]


#: All that ``needs`` has made.
_CHECKS: set[Callable[..., Awaitable[Token]]] = set()


def needs(scope: Scope) -> Callable[..., Awaitable[Token]]:
    """The dependency of a route that needs a scope."""

    async def token(request: Request, given: Bearer, cookie: Cookie) -> Token:
        access: Access = request.app.state.service.access
        return access.check(request, None if given is None else given.credentials, scope, cookie)

    _CHECKS.add(token)
    return token


async def ask_for_token(request: Request) -> None:
    """Check the token of a request as its route does, if that needs one and has not done so.

    Raises:
        ProblemError: as ``Access.check``.
    """
    parts = getattr(getattr(request.scope.get("route"), "dependant", None), "dependencies", ())
    for check in {part.call for part in parts} & _CHECKS if "panning.token" not in request.scope else ():
        await check(request, await BEARER(request), await COOKIE(request))


#: Of a route's arguments: the token of a request that may do so much.
Reader = Annotated[Token, Security(needs("read"))]
Submitter = Annotated[Token, Security(needs("submit"))]
Admin = Annotated[Token, Security(needs("admin"))]
Scraper = Annotated[Token, Security(needs("metrics"))]
