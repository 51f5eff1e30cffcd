"""What the page adds to the application."""

from __future__ import annotations

from fastapi import FastAPI

from panning.service.page import compare, jobs, signin, static, submit


def add_pages(app: FastAPI) -> None:
    """Add the pages, sign-in and the static files; none of them is part of the API's description."""
    for router in (static.router, signin.router, jobs.router, submit.router, compare.router):
        app.include_router(router)
