"""Uploads: files that callers send, by the hash of their content, for configs to name."""

from __future__ import annotations

import errno
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from panning.service.api.access import Reader, Submitter
from panning.service.api.jobs import Here
from panning.service.api.numbers import MAX_NUMBER, PLAIN
from panning.service.api.problems import ASKED, ONE, ProblemError, documented
from panning.service.api.service import whose
from panning.service.uploads import MAX_NAME, Coming
from panning.service.words import HashError, NoUploadError, Token, Upload, UploadKind

router = APIRouter(prefix="/api/v1", tags=["uploads"])
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Of the file's content.")]
Kind = Annotated[UploadKind, Query(description="What the file is: it is checked as that.")]
Name = Annotated[str, Query(max_length=MAX_NAME, description="What to call it, on one line.")]
Owner = Annotated[
    int | None,
    Query(ge=1, le=MAX_NUMBER, description="The token whose file it is, for the scope admin; else it is one's own."),
    PLAIN,
]
Length = Annotated[int | None, Header(alias="Content-Length", include_in_schema=False)]
#: So much is written at a time, beside the event loop.
PIECE_BYTES = 1 << 20
#: The guard looks at the length before, and no more is taken in.
_NO_OTHER_LIMIT = 1 << 60
_RAW = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/uploads", responses=documented(*ONE))
def uploads(here: Here, token: Reader, owner: Owner = None) -> list[Upload]:
    """The files that were sent and that the token may see, the newest first."""
    return here.uploads.all(whose(token) if owner is None else _owner(token, owner))


@router.get("/uploads/{sha256}", responses=documented(*ONE))
def upload(here: Here, token: Reader, sha256: Sha256, owner: Owner = None) -> Upload:
    """One of them, and what the check has found in it."""
    return here.uploads.one(_owner(token, owner), sha256)


def _owner(token: Token, asked: int | None) -> int:
    """Whose files are asked for.

    Raises:
        NoUploadError: if they are somebody else's.
    """
    if asked is not None and whose(token) not in (None, asked):
        raise NoUploadError(f"There is no upload of token {asked}.")
    return token.owner if asked is None else asked


@router.put(
    "/uploads/{sha256}",
    status_code=201,
    max_body_size=_NO_OTHER_LIMIT,
    openapi_extra=_RAW,
    responses={
        **documented(*ASKED, "length", "kind", "hash", "file", "quota"),
        200: {"model": Upload, "description": "It was there"},
    },
)
async def send(
    request: Request,
    response: Response,
    here: Here,
    token: Submitter,
    sha256: Sha256,
    kind: Kind,
    name: Name = "",
    length: Length = None,
) -> Upload:
    """Send a file, as the body. It is kept once its content is that of the hash and it is what it is said to be; a file that
    is there already is answered with 200."""
    if length is None or "transfer-encoding" in request.headers:
        raise ProblemError("length", "Say how long the body is, as Content-Length.", {"Connection": "close"})
    if not name.isprintable():
        raise ProblemError("values", "query.name: has printable characters, on one line.")
    if (there := await run_in_threadpool(here.uploads.known, token.owner, sha256, kind)) is not None:
        response.status_code = 200
        return there
    try:
        with here.uploads.coming(token.owner, sha256, length) as came:
            await _receive(request, came)
            facts = await run_in_threadpool(here.checks.file, came.path, kind, token.owner)
            return await run_in_threadpool(here.uploads.keep, token.owner, came, kind, name, facts)
    except ClientDisconnect:
        raise ProblemError("request", "The body broke off.", {"Connection": "close"}) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ProblemError("busy", "The disk of the service has no room for this file.") from None


async def _receive(request: Request, came: Coming) -> None:
    """Take in the body."""
    waiting = bytearray()
    async for piece in request.stream():
        waiting += piece
        if came.n_bytes + len(waiting) > came.length:
            raise HashError(f"More came than the {came.length:,} bytes that were announced.")
        if len(waiting) >= PIECE_BYTES:
            await run_in_threadpool(came.write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(_finish, came, bytes(waiting))


def _finish(came: Coming, rest: bytes) -> None:
    came.write(rest)
    came.finish()


@router.delete("/uploads/{sha256}", status_code=204, responses=documented(*ONE, "used"))
def delete(here: Here, token: Submitter, sha256: Sha256, owner: Owner = None) -> None:
    """Delete a file; one that a job names is kept until the job has ended."""
    here.uploads.delete(_owner(token, owner), sha256)
