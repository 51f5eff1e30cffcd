"""Every error as problem details (RFC 9457): one table of what can be wrong, with the status of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from panning.foundation.errors import ConfigError, PanningError
from panning.foundation.remote import shown
from panning.foundation.text import one_line, printable
from panning.service.words import (
    BusyError,
    HashError,
    InUseError,
    KeyConflictError,
    NoJobError,
    NoUploadError,
    OtherKindError,
    QuotaError,
    StepError,
    UploadError,
)

TYPE = "urn:panning:"
MEDIA = "application/problem+json"
#: Code -> status and title.
PROBLEMS: Mapping[str, tuple[int, str]] = {
    "request": (400, "The request is malformed"),
    "token": (401, "A token is needed"),
    "scope": (403, "The token's scope does not include this"),
    "origin": (403, "The request comes from a page of another origin"),
    "absent": (404, "There is nothing here"),
    "method": (405, "This cannot be done here"),
    "step": (409, "The job's state does not allow this"),
    "key": (409, "The idempotency key stands for another request"),
    "used": (409, "A job uses this"),
    "kind": (409, "It is there as a file of another kind"),
    "length": (411, "The length of the body is needed"),
    "too-large": (413, "The body is too large"),
    "range": (416, "The file has no such range"),
    "host": (421, "The service has another name"),
    "values": (422, "A value is refused"),
    "config": (422, "The config is refused"),
    "hash": (422, "The content is not that of its name"),
    "file": (422, "The file is refused"),
    "quota": (429, "The quota of the token is used up"),
    "failures": (429, "Too many requests without a good token"),
    "busy": (503, "The service is busy"),
    "fault": (500, "The service failed"),
}
#: What any request may be answered with, and one that names a job or token.
ASKED = ("request", "token", "scope", "origin", "too-large", "host", "values", "failures", "busy", "fault")
ONE = (*ASKED, "absent")
#: Status -> code, for errors that say no more than a status.
OF_STATUS = {400: "request", 401: "token", 403: "scope", 404: "absent", 405: "method", 413: "too-large", 503: "busy"}
#: Error of the store -> code.
OF_ERROR: Mapping[type[PanningError], str] = {
    NoJobError: "absent", StepError: "step", KeyConflictError: "key", QuotaError: "quota", ConfigError: "config",
    BusyError: "busy", NoUploadError: "absent", InUseError: "used", OtherKindError: "kind", HashError: "hash",
    UploadError: "file",
}  # fmt: skip


class Wrong(BaseModel):
    """One wrong value of a request."""

    at: str = Field(description="The field, with dots.")
    said: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description=f"{TYPE} and one of: {', '.join(PROBLEMS)}.")
    title: str
    status: int
    detail: str
    request: str = Field(description="The request's id, as in the log.")
    errors: list[Wrong] = Field(default_factory=list, description="The wrong values, one by one.")


class ProblemError(Exception):
    """An answer that is a problem.

    Args:
        code: a key of ``PROBLEMS``.
    """

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.headers = code, detail, dict(headers or {})


def answer(
    code: str, detail: str, request: str, errors: list[Wrong] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that tells a problem.

    Examples:
        >>> from panning.service.api.problems import answer
        >>> answer("absent", "There is no job 7.", "a1").status_code
        404
    """
    status, title = PROBLEMS[code]
    problem = Problem(
        type=TYPE + code, title=title, status=status, detail=printable(detail), request=request, errors=errors or []
    )
    return JSONResponse(problem.model_dump(), status, dict(headers or {}), media_type=MEDIA)


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({PROBLEMS[code][0] for code in codes}):
        titles = [PROBLEMS[code][1] for code in codes if PROBLEMS[code][0] == status]
        schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
        found[status] = {"description": "; ".join(titles), "content": {MEDIA: schema}}
    return found


def of_config(error: ConfigError) -> list[Wrong]:
    """The lines of an error on a config, each with its field.

    Examples:
        >>> from panning.foundation.errors import ConfigError
        >>> from panning.service.api.problems import of_config
        >>> of_config(ConfigError("It is refused, with 1 error(s):\\n  task.data: this key is needed."))
        [Wrong(at='task.data', said='this key is needed.')]
    """
    found = []
    for line in str(error).splitlines():
        field, colon, said = line.strip().partition(": ")
        if line.startswith("  ") and colon:
            found.append(Wrong(at=field, said=said))
    return found


def handle_problems(app: FastAPI, ask: Callable[[Request], Awaitable[None]]) -> None:
    """Let every error of an application be answered as a problem.

    Args:
        ask: raises if whoever sent a request may not ask what it asks. A body is read before its route asks for a token, and
            strangers are not told what is wrong with it.
    """

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return answer(error.code, error.detail, id_of(request), headers=error.headers)

    async def refusal(request: Request) -> Response | None:
        """The answer to whoever may not ask this; None to whoever may."""
        try:
            await ask(request)
        except ProblemError as refused:
            return await _problem(request, refused)
        return None

    @app.exception_handler(PanningError)
    async def _known(request: Request, error: PanningError) -> Response:
        code = next((code for kind, code in OF_ERROR.items() if isinstance(error, kind)), "fault")
        if code == "fault":
            raise error
        errors = of_config(error) if isinstance(error, ConfigError) else []
        headers = {"Retry-After": "1"} if code == "busy" else {}
        return answer(code, str(error), id_of(request), errors, headers)

    @app.exception_handler(RequestValidationError)
    async def _values(request: Request, error: RequestValidationError) -> Response:
        if (refused := await refusal(request)) is not None:
            return refused
        found = [_wrong(entry) for entry in error.errors()[:20]]
        return answer("values", "; ".join(f"{one.at}: {one.said}" for one in found), id_of(request), found)

    @app.exception_handler(HTTPException)
    async def _plain(request: Request, error: HTTPException) -> Response:
        # 400 is a body that cannot be read at all.
        if error.status_code == 400 and (refused := await refusal(request)) is not None:
            return refused
        code = OF_STATUS.get(error.status_code, "request" if error.status_code < 500 else "fault")
        headers = _allowed(request, error) if error.status_code == 405 else error.headers
        return answer(code, one_line(str(error.detail)), id_of(request), headers=headers)

    @app.exception_handler(Exception)
    async def _fault(request: Request, _: Exception) -> Response:
        return answer("fault", "The log tells more, under the request's id.", id_of(request))


def _allowed(request: Request, error: HTTPException) -> Mapping[str, str] | None:
    """The headers of a refused method: all methods of the path, which has a route for each; Starlette names one's alone."""
    path = getattr(request.scope.get("route"), "path_format", "")
    ways = request.app.openapi()["paths"].get(path)
    return error.headers if ways is None else {"Allow": ", ".join(sorted(way.upper() for way in ways))}


def _wrong(entry: Any) -> Wrong:
    return Wrong(at=".".join(shown(str(part)).strip("'") for part in entry["loc"]), said=one_line(entry["msg"]))


def id_of(request: Request) -> str:
    """The id of a request, which ``panning.service.api.guard`` gave it."""
    return str(request.scope.get("panning.request", "-"))
