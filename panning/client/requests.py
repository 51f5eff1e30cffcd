"""Requests to a service, with a token; what does not get through is tried again for a while."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from panning.foundation.errors import ConfigError, JobError, PanningError, PanningWarning

#: Answers that a moment may change.
PASSING = (502, 503, 504)
#: No answer but a file is longer.
MOST_BYTES = 64 << 20
#: No line of a stream is longer; an event has 64 KiB at most.
MOST_OF_LINE = 1 << 20
#: Waits before the same is tried again, in seconds.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
T = TypeVar("T")


class ServiceError(PanningError):
    """A request that the service refuses.

    Attributes:
        status: of HTTP.
        code: which problem it is, as "config" or "quota"; empty if the answer does not say.
    """

    def __init__(self, said: str, status: int, code: str = "") -> None:
        super().__init__(said)
        self.status, self.code = status, code


class UnreachableError(JobError):
    """A service that does not answer."""


class _PassingError(Exception):
    """A request that did not get through, and may yet."""


#: Errors of the connection, after which a request may be sent again.
BROKEN = (_PassingError, http.client.HTTPException, OSError)


class Patience:
    """Waits before what failed is tried again, longer each time, until there is no patience left.

    Args:
        url: of the service.
        seconds: of patience; a step forward renews it.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.url, self.seconds = url, seconds
        self.renew()

    def renew(self) -> None:
        """Something got through."""
        self._end, self._next = time.monotonic() + self.seconds, FIRST_WAIT_S

    def wait(self, reason: object) -> None:
        """Wait a while.

        Raises:
            UnreachableError: if there is no patience left.
        """
        if time.monotonic() + self._next > self._end:
            raise UnreachableError(
                f"The service at {self.url} does not answer: {reason}. Does `panning serve` run there?"
            )
        time.sleep(self._next)
        self._next = min(2 * self._next, LONGEST_WAIT_S)


class Requests:
    """Requests to one service.

    Args:
        url: of the service.
        token: its secret.
        patience_s: so long is tried again what does not get through.
        timeout_s: the service may be silent for so long.

    Raises:
        ConfigError: for a URL or a token that is none.
    """

    def __init__(self, url: str, token: str, patience_s: float, timeout_s: float) -> None:
        if (parts := _address(url)) is None or not parts.hostname:
            raise ConfigError(f"'{url}' is no address of a service: give http://HOST:PORT or https://HOST.")
        is_near = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
        if parts.scheme == "http" and not is_near:
            warnings.warn(f"The token goes to {parts.hostname} in the clear: use https.", PanningWarning, stacklevel=3)
        self.url = url.rstrip("/")
        self.patience_s, self.timeout_s = patience_s, timeout_s
        self._token = in_header(token.strip(), "A token")
        # A redirection would take the token elsewhere, and a proxy has no business on this machine.
        self._opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if is_near else []))

    def patience(self) -> Patience:
        """As much as there is."""
        return Patience(self.url, self.patience_s)

    def open(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Any:
        """The answer to a request, open.

        Args:
            body: goes as JSON, but for an iterator of bytes, whose ``Content-Length`` is among the headers.

        Raises:
            ConfigError: for a body that is no JSON, as an infinite number.
            ServiceError: if it is refused.
            Exception: one of ``BROKEN``, if it does not get through.
        """
        sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        data: Any = None
        if isinstance(body, Iterator):
            data = body
        elif body is not None:
            data, sent["Content-Type"] = _as_json(body), "application/json"
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, sent, method=method)
        try:
            return self._opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            refusal = _refusal(error)
            raise _PassingError(str(refusal)) if error.code in PASSING else refusal from None
        except urllib.error.URLError as error:
            raise _PassingError(str(error.reason)) from None

    def read(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
        """All of the answer to a request, which is sent once; raises as ``open``."""
        with self.open(method, path, headers, body) as answer:
            found: bytes = answer.read(MOST_BYTES)
            if answer.length:  # what broke off is no answer, and read says nothing of it
                raise http.client.IncompleteRead(b"", answer.length)
            return found

    def json(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The value of the answer to a request that may be sent again.

        Raises:
            ServiceError: if it is refused.
            UnreachableError: if it does not get through.
        """
        return self.until_through(lambda: self.read_json(method, path, body, headers))

    def read_json(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The value of the answer to a request, which is sent once; raises as ``open``."""
        answer = self.read(method, path, body, headers)
        with understood(self.url):
            return json.loads(answer)

    def once(self, method: str, path: str, body: Any = None) -> Any:
        """The value of the answer to a request that must not be sent again, None if it has none; raises as ``json``."""
        answer = self.until_through(lambda: self.read(method, path, body), Patience(self.url, 0.0))
        with understood(self.url):
            return json.loads(answer) if answer else None

    def until_through(self, call: Callable[[], T], patience: Patience | None = None) -> T:
        """Repeat a call until it gets through, and return its result; raises as ``json``."""
        patience = patience or self.patience()
        while True:
            try:
                return call()
            except BROKEN as error:
                patience.wait(error)


@contextmanager
def understood(url: str) -> Iterator[None]:
    """Within, what an answer says is read.

    Raises:
        ServiceError: if it is no answer of a service.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        said = (
            f"What {url} answers is no answer of `panning serve`: is it the right address, and as new as this client?"
        )
        raise ServiceError(said, 200) from None


def in_header(value: str, what: str) -> str:
    """The value of a header, which is one word.

    Raises:
        ConfigError: if it is none.
    """
    if not value or not all("!" <= letter <= "~" for letter in value):
        raise ConfigError(f"{what} is one word of ASCII letters, digits and signs, without spaces or line ends.")
    return value


def _address(url: str) -> urllib.parse.SplitResult | None:
    """The parts of a URL of a service; None if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    is_plain = url.isascii() and url.isprintable() and " " not in url and not parts.query and not parts.username
    return parts if parts.scheme in ("http", "https") and parts.hostname and port != 0 and is_plain else None


def _as_json(body: Any) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"This cannot be sent as JSON: {error}. Write numbers that are finite, and dates in quotes."
        ) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the answer is then an error."""


def sent_events(stream: Any) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """The server-sent events of a stream: kind, id, values.

    Raises:
        ValueError: for what is none.
    """
    event: dict[str, str] = {}
    while line := stream.readline(MOST_OF_LINE):
        if len(line) == MOST_OF_LINE:
            raise ValueError("a line without an end")
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name in ("id", "event", "data"):
            event[name] = value
        elif not name and "data" in event:
            place = int(event["id"]) if "id" in event else None
            yield event.get("event", "message"), place, json.loads(event["data"])
            event = {}


def _refusal(error: urllib.error.HTTPError) -> ServiceError:
    """What an answer says is wrong."""
    with error:
        try:
            problem = json.loads(error.read(MOST_BYTES))
            code = str(problem["type"]).removeprefix("urn:panning:")
            return ServiceError(str(problem["detail"]), error.code, code)
        except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
            return ServiceError(f"The service answers {error.code}: {error.reason}.", error.code)
