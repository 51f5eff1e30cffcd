"""What all pages share: who looks at them, and errors told as a page."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse, Response

from panning.foundation.errors import PanningError
from panning.service.api.access import Access, Bearer, Cookie
from panning.service.api.problems import OF_ERROR, PROBLEMS, ProblemError
from panning.service.api.sessions import cookie_name
from panning.service.page.templates import answer
from panning.service.words import Token


class PageRoute(APIRoute):
    """A route whose errors are told as a page; whoever is not signed in is led to the sign-in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except ProblemError as error:
                return _sign_in(request) if error.code == "token" else _told(request, error.code, error.detail)
            except RequestValidationError:
                return _told(request, "absent", "The address names nothing that there is.")
            except PanningError as error:
                code = next((code for kind, code in OF_ERROR.items() if isinstance(error, kind)), None)
                if code is None:
                    raise
                return _told(request, code, str(error))

        return handle


def _told(request: Request, code: str, detail: str) -> Response:
    status, title = PROBLEMS[code]
    return answer("error.html", status, viewer=request.scope.get("panning.viewer"), title=title, detail=detail)


def _sign_in(request: Request) -> Response:
    path = request.scope["path"] + (f"?{query}" if (query := request.scope["query_string"].decode("latin-1")) else "")
    response = RedirectResponse(f"/signin?next={quote(path, safe='/')}" if path != "/" else "/signin", 303)
    name = cookie_name(request, access_of(request).secure)
    if name in request.cookies:  # it has ended: browsers need not send it any more
        response.delete_cookie(name, secure=access_of(request).secure, httponly=True, samesite="strict")
    return response


def access_of(request: Request) -> Access:
    """Who may ask the service that a request came to."""
    found: Access = request.app.state.service.access
    return found


async def _viewer(request: Request, given: Bearer, cookie: Cookie) -> Token:
    if given is None and cookie is None:
        raise ProblemError("token", "Sign in.")  # nothing was guessed: it counts as no failure
    token = access_of(request).check(request, None if given is None else given.credentials, "read", cookie)
    request.scope["panning.viewer"] = token
    return token


#: Of a page's arguments: the token of whoever looks at it.
Viewer = Annotated[Token, Depends(_viewer)]
