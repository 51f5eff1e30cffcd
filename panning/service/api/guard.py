"""What every request passes first: it gets an id, is refused for a wrong host, a foreign origin or a body that is too
large, and is counted and written into the log. Host and path are those of the ASGI scope.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from panning.service.api.problems import answer
from panning.service.log import plain

#: Of every answer. Nothing here is a page, and nothing is kept by caches unless its route says so.
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; sandbox",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
#: What the paths of uploads begin with.
UPLOADS = "/api/v1/uploads/"
LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


def authorities(port: int, names: Collection[str] = ()) -> frozenset[str]:
    """The names that requests may call the service by: this machine's own, and those that it was told.

    Args:
        names: with their port where it is none of the scheme's own, as "lab.example" or "lab.example:8000".

    Examples:
        >>> from panning.service.api.guard import authorities
        >>> sorted(authorities(8000, ["Lab.example"]))
        ['127.0.0.1:8000', '[::1]:8000', 'lab.example', 'localhost:8000']
    """
    return frozenset([f"{name}:{port}" for name in LOOPBACK] + [name.lower() for name in names])


@dataclass(frozen=True)
class Seen:
    """A request that was answered.

    Attributes:
        path: as it was sent, without the query and without secrets.
        route: the path with names in place of values; empty if there is none.
        seconds: until the last byte of the answer was handed on.
        token, job: their numbers, if any.
    """

    id: str
    method: str
    path: str
    route: str
    status: int
    seconds: float
    address: str
    token: int | None
    job: str | None


class Guard:
    """Around the application.

    Args:
        hosts: the authorities that requests may name (``authorities``).
        max_bytes: of a body.
        seen: hears of each request that was answered.
        most_upload_bytes: of a body that is an upload.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str], max_bytes: int, seen: Callable[[Seen], None],
        most_upload_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.app, self.hosts, self.seen = app, frozenset(hosts), seen
        self.max_bytes, self.most_upload_bytes = max_bytes, most_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing here speaks anything else
        began, status = time.perf_counter(), 500
        scope["panning.request"] = number = secrets.token_hex(8)

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                ours = [(name, value) for name, value in HEADERS.items() if name not in given]
                message["headers"] = [*message["headers"], *ours, (b"x-request-id", number.encode())]
            await send(message)

        try:
            if (refused := self._refusal(scope)) is None:
                await self.app(scope, receive, send_on)
            else:
                response = answer(*refused, number, headers={"Connection": "close"})
                await response(scope, receive, send_on)
        finally:
            self.seen(_seen(scope, number, status, time.perf_counter() - began))

    def _refusal(self, scope: Scope) -> tuple[str, str] | None:
        """Why a request goes no further: a code and a sentence."""
        hosts, origins = _headers(scope, b"host"), _headers(scope, b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return "host", f"Call the service by one of its names: {', '.join(sorted(self.hosts))}."
        if len(origins) > 1 or not all(self._is_ours(origin) for origin in origins):
            return "origin", "Only pages of the service itself may ask it in a browser."
        lengths = _headers(scope, b"content-length")
        most = self.most_upload_bytes if is_upload(scope) else self.max_bytes
        if any(not length.isdecimal() or int(length[:20]) > most for length in lengths):
            return "too-large", f"A body may have {most:,} bytes."
        return None

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        is_plain = origin.lower() == f"{parts.scheme}://{parts.netloc}"
        return is_plain and parts.scheme in ("http", "https") and parts.netloc in self.hosts


def is_upload(scope: Scope) -> bool:
    """Whether a request sends a file, which may be larger and take longer than others."""
    return bool(scope["method"] == "PUT" and scope["path"].startswith(UPLOADS))


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _seen(scope: Scope, number: str, status: int, seconds: float) -> Seen:
    raw: bytes = scope.get("raw_path") or b""
    client: Any = scope.get("client")
    parameters = scope.get("path_params") or {}
    return Seen(
        number, scope["method"], plain(raw[:200].decode("latin-1")),
        str(getattr(scope.get("route"), "path_format", "")), status, seconds, str(client[0]) if client else "-",
        scope.get("panning.token"), str(parameters["job"])[:20] if "job" in parameters else None,
    )  # fmt: skip
