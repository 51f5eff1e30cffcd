"""The files of the page: styles, modules and pictures, read once, each with a tag of its content."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from panning.service.api.problems import ProblemError

ROOT = Path(__file__).parent / "static"
KINDS = {
    ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip
#: What a page may load, and a worker, whose script is answered with it, too.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; worker-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Static:
    """A file of the page."""

    content: bytes
    kind: str
    tag: str


@functools.cache
def files() -> Mapping[str, Static]:
    """All files, by their path with slashes.

    Examples:
        >>> from panning.service.page.static import files
        >>> files()["style.css"].kind
        'text/css; charset=utf-8'
    """
    found = {}
    for path in sorted(ROOT.rglob("*")):
        if path.suffix in KINDS:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(ROOT).as_posix()] = Static(content, KINDS[path.suffix], tag)
    return found


@router.get("/static/{path:path}")
async def static(path: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A file of the page, which browsers keep and ask for again."""
    found = files().get(path)
    if found is None:
        raise ProblemError("absent", "There is no such file.")
    headers = {"ETag": found.tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    if if_none_match is not None and found.tag in {one.strip() for one in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "Content-Type": found.kind})
