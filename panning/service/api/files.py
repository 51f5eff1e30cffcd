"""What a job tells and leaves: its events as a stream, its artefacts, its log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.sse import format_sse_event
from pydantic import Field, TypeAdapter
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from panning.foundation.files import open_regular
from panning.service.api.access import Reader
from panning.service.api.jobs import Here, Number
from panning.service.api.numbers import PLAIN
from panning.service.api.problems import ASKED, ONE, ProblemError, documented
from panning.service.api.service import Service, whose
from panning.service.artefacts import Artefact
from panning.service.board import News
from panning.service.streams import Told
from panning.service.words import Job, NoJobError, Token

#: Streams at a time, and of one owner of tokens, who is to leave some to others.
MOST_STREAMS, MOST_OF_ONE = 500, 100
#: Jobs in one stream.
MOST_FOLLOWED = 32
CHUNK_BYTES = 1 << 18
_JOB, _NEWS = TypeAdapter(Job), TypeAdapter(News)

router = APIRouter(prefix="/api/v1", tags=["files"])
Last = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, le=2**53, description="The id of the last event that was seen."),
    PLAIN,
]
Follow = Annotated[
    list[Annotated[str, Field(pattern="^[1-9][0-9]{0,14}:(0|[1-9][0-9]{0,14})$")]] | None,
    Query(
        max_length=MOST_FOLLOWED, description="A job and the id of the last of its events that was seen, as `7:0`."
    ),
]  # fmt: skip
Listing = Annotated[
    Literal["1"] | None,
    Query(description="Tells what happens in the list of jobs, too. Either this is asked for, or a job is followed."),
]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Of the file's content.")]
Asked = Annotated[
    str | None, Header(alias="Range", description="One range of bytes; several are answered with the whole file.")
]
_BYTES: dict[int | str, dict[str, Any]] = {
    status: {"description": said, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}
    for status, said in ((200, "The file"), (206, "A range of it"))
}
_SSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`message` events hold what the run tells, with its line number as id; `job` events hold the job "
        "whenever its state has changed; the stream ends with the job.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}  # fmt: skip

_SSE_OF_ALL: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "As the stream of one job, with `JOB:LINE` as the id of an event; a `gone` event holds the `id` of a "
        "job that is not there; the stream ends when all jobs have. Of the list of jobs `jobs` events tell, ten a second at "
        "most: `jobs` that are new or have taken a step, ids of jobs that are `gone`, and `places` of running ones; the "
        "`first` one holds where they are by now.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}  # fmt: skip


@router.get("/jobs/{job}/events", responses={**documented(*ONE), **_SSE}, response_class=StreamingResponse)
def events(here: Here, token: Reader, number: Number, request: Request, last: Last = None) -> Response:
    """The events of a job as they come (server-sent events), from the first or behind Last-Event-ID."""
    job = here.job(number, token)
    _check_room(here, token)
    told = _told(here, token, job.id, last or 0, lambda: here.access.still(request, token))
    return StreamingResponse(told, media_type="text/event-stream")


@router.get("/events", responses={**documented(*ASKED), **_SSE_OF_ALL}, response_class=StreamingResponse)
def events_of_jobs(
    here: Here, token: Reader, request: Request, follow: Follow = None, jobs: Listing = None
) -> Response:
    """The events of several jobs, and of the list of jobs, in one stream: browsers open six connections to a server."""
    if not follow and jobs is None:
        raise ProblemError("values", "Name a job to follow, as follow=7:0, or ask for the list by jobs=1.")
    after = {int(job): int(last) for job, _, last in (one.partition(":") for one in follow or ())}
    _check_room(here, token)
    told = _told_of_all(here, token, after, jobs is not None, lambda: here.access.still(request, token))
    return StreamingResponse(told, media_type="text/event-stream")


def _check_room(here: Service, token: Token) -> None:
    if here.streams.n_listeners >= MOST_STREAMS:
        raise ProblemError("busy", f"{MOST_STREAMS} streams are open, and no more may be.", {"Retry-After": "5"})
    if here.listening[token.owner] >= MOST_OF_ONE:
        said = f"{MOST_OF_ONE} streams of this token and those with its jobs are open, and no more may be: close some."
        raise ProblemError("busy", said, {"Retry-After": "5"})


async def _told(
    here: Service, token: Token, number: int, after: int, is_good: Callable[[], bool]
) -> AsyncIterator[bytes]:
    here.listening[token.owner] += 1
    try:
        async for told in here.streams.listen(number, after):
            if not is_good():
                return
            yield _sent(told)
    finally:
        here.listening[token.owner] -= 1


async def _told_of_all(
    here: Service, token: Token, after: Mapping[int, int], listing: bool, is_good: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """``after``: number of a job -> the id of the last event that was seen."""
    here.listening[token.owner] += 1
    try:
        theirs = await asyncio.to_thread(lambda: [number for number in after if _may_see(here, number, token)])
        for number in sorted(set(after) - set(theirs)):
            yield _gone(number)
        async with contextlib.aclosing(
            here.streams.listen_to_all({number: after[number] for number in theirs}, listing, whose(token))
        ) as all_told:
            async for one in all_told:
                if not is_good():
                    return
                if isinstance(one, News):
                    yield _news(one)
                    continue
                number, told = one
                yield _gone(number) if told is None else _sent(told, f"{number}:")
    finally:
        here.listening[token.owner] -= 1


def _sent(told: Told, of_job: str = "") -> bytes:
    found = [format_sse_event(data_str=line.decode(), id=f"{of_job}{place}") for place, line in told.lines]
    if told.job is not None:
        found.append(format_sse_event(event="job", data_str=_JOB.dump_json(told.job).decode()))
    return b"".join(found) or b":\n\n"


def _news(news: News) -> bytes:
    return b":\n\n" if news == News() else format_sse_event(event="jobs", data_str=_NEWS.dump_json(news).decode())


def _gone(number: int) -> bytes:
    return format_sse_event(event="gone", data_str=json.dumps({"id": number}))


def _may_see(here: Service, number: int, token: Token) -> bool:
    try:
        here.job(number, token)
    except NoJobError:
        return False
    return True


@router.get("/jobs/{job}/artefacts", responses=documented(*ONE))
def artefacts(here: Here, token: Reader, number: Number) -> list[Artefact]:
    """The files that a job has left by now."""
    return here.artefacts.all(here.scheduler.folder(here.job(number, token).id))


@router.get(
    "/jobs/{job}/artefacts/{sha256}",
    responses={**documented(*ONE, "range"), **_BYTES, 304: {"description": "It is what you have"}},
    response_class=Response,
)
def artefact(
    here: Here,
    token: Reader,
    number: Number,
    sha256: Sha256,
    asked: Asked = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A file of a job by the hash of its content, or a range of it."""
    job = here.job(number, token)
    if (found := here.artefacts.open(here.scheduler.folder(job.id), sha256)) is None:
        raise NoJobError(f"Job {number} has no file with this content. {job.gone}".rstrip())
    artefact, file = found
    tag = f'"{sha256}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match is not None and {tag, "*"} & {one.strip() for one in if_none_match.split(",")}:
        file.close()
        return Response(status_code=304, headers=headers)
    name = artefact.path.rpartition("/")[2]
    return _bytes(file, artefact.n_bytes, asked if if_range in (None, tag) else None, name, headers)


@router.get("/jobs/{job}/log", responses={**documented(*ONE), 200: _BYTES[200]}, response_class=Response)
def log(here: Here, token: Reader, number: Number) -> Response:
    """What the processes of a job have printed."""
    job = here.job(number, token)
    try:
        file = open_regular(here.scheduler.folder(job.id).log, os.O_NOFOLLOW)
    except OSError:
        raise NoJobError(job.gone or f"Job {number} has printed nothing yet.") from None
    return _bytes(file, os.fstat(file.fileno()).st_size, None, "log.txt", {})


def _bytes(file: BinaryIO, size: int, asked: str | None, name: str, headers: dict[str, str]) -> Response:
    """The answer with an open file, which it closes, or with a range of it."""
    try:
        span = None if asked is None else byte_range(asked, size)
    except ProblemError:
        file.close()
        raise
    begin, end = (0, size) if span is None else span
    headers |= {"Content-Disposition": _attachment(name), "Content-Length": str(end - begin)}
    if span is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return _FileResponse(file, _pieces(file, begin, end), 200 if span is None else 206, headers)


class _FileResponse(StreamingResponse):
    """An answer that closes its file whatever becomes of whoever reads it."""

    def __init__(self, file: BinaryIO, pieces: Iterator[bytes], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(pieces, status, headers, "application/octet-stream")
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def _pieces(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(begin)
        while begin < end and (piece := file.read(min(CHUNK_BYTES, end - begin))):
            begin += len(piece)
            yield piece


def _attachment(name: str) -> str:
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return f'attachment; filename="{kept}"'


def byte_range(asked: str, size: int) -> tuple[int, int] | None:
    """Where a range of bytes begins and ends; None for what is not one range of bytes, which is passed over.

    Raises:
        ProblemError: if the file has no such range.

    Examples:
        >>> from panning.service.api.files import byte_range
        >>> byte_range("bytes=2-4", 10), byte_range("bytes=-3", 10), byte_range("bytes=7-", 10), byte_range("lines=1-", 10)
        ((2, 5), (7, 10), (7, 10), None)
    """
    unit, _, spans = asked.partition("=")
    first, dash, last = spans.strip().partition("-")
    digits = first + last
    if unit.strip().lower() != "bytes" or not dash or not (digits.isascii() and digits.isdigit()) or len(digits) > 40:
        return None
    begin = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < begin:
        return None
    if begin >= size:
        raise ProblemError("range", f"The file has {size} bytes.", {"Content-Range": f"bytes */{size}"})
    return begin, end
