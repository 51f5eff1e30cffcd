"""Sign-in: a token is exchanged for the cookie of a session, and sign-out ends the session."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from panning.service.api.access import Cookie, check_ours
from panning.service.api.problems import ProblemError
from panning.service.api.sessions import LIFETIME, cookie_name
from panning.service.page.pages import PageRoute, access_of
from panning.service.page.templates import answer

router = APIRouter(include_in_schema=False)
pages = APIRouter(include_in_schema=False, route_class=PageRoute)


class Shown(BaseModel):
    """A token that is shown for a session."""

    token: str = Field(max_length=200)


@pages.get("/signin")
async def signin(next_: Annotated[str, Query(alias="next", max_length=2000)] = "/jobs") -> Response:
    """The form that takes a token."""
    return answer("signin.html", next=next_)


@router.get("/session")
async def session(request: Request, cookie: Cookie) -> JSONResponse:
    """Whether a browser is signed in."""
    access = access_of(request)
    if cookie is None:
        return JSONResponse({"signed_in": False})
    found = access.sessions.of(cookie)
    is_good = found is not None and access.is_good(found.token)
    if not is_good:
        access.failed(request)
    return JSONResponse({"signed_in": is_good})


@router.post("/session")
async def sign_in(request: Request, shown: Shown) -> Response:
    """Begin a session of a token, for a page of ours."""
    access = access_of(request)
    check_ours(request, access.secure)
    token = access.of(shown.token)
    if token is None:
        access.failed(request)
        raise ProblemError("token", "This token is not good: it was mistyped, has expired or was revoked.")
    if not token.may("read"):
        raise ProblemError("scope", f"The scope of this token is {token.scope}: it may not look at jobs.")
    response = Response(status_code=204)
    response.set_cookie(
        cookie_name(request, access.secure), await asyncio.to_thread(access.sessions.begin, token),
        max_age=int(LIFETIME.total_seconds()), httponly=True, samesite="strict", secure=access.secure,
    )  # fmt: skip
    return response


@router.delete("/session")
async def sign_out(request: Request, cookie: Cookie) -> Response:
    """End the session of a browser; its open streams end with it."""
    access = access_of(request)
    check_ours(request, access.secure)
    if cookie is not None:
        await asyncio.to_thread(access.sessions.end, cookie)
    response = Response(status_code=204)
    response.delete_cookie(cookie_name(request, access.secure), secure=access.secure, httponly=True, samesite="strict")
    return response


router.include_router(pages)
