"""The application: routes, problems, and the guard around them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from panning.service.api import about, files, jobs, shelf, tokens, uploads
from panning.service.api.access import ask_for_token
from panning.service.api.guard import Guard, Seen
from panning.service.api.problems import Problem, handle_problems
from panning.service.api.service import Service
from panning.service.page.app import add_pages

#: Of a body: configs have at most 5,000 values.
MAX_BODY_BYTES = 1 << 18
LOG = logging.getLogger("panning.service")


def routes() -> FastAPI:
    """The routes, and what they say of themselves.

    Examples:
        >>> from panning.service.api.app import routes
        >>> "/api/v1/jobs/{job}" in routes().openapi()["paths"]
        True
    """
    app = FastAPI(
        title="panning", version=importlib.metadata.version("panning"), docs_url=None, redoc_url=None,
        openapi_url="/api/v1/openapi.json", max_body_size=MAX_BODY_BYTES, redirect_slashes=False,
        description="Send a network, watch the agent pan, take the mask home. Every error is a problem (RFC 9457).",
    )  # fmt: skip
    for router in (jobs.router, files.router, uploads.router, tokens.router, about.router, shelf.router, about.health):
        app.include_router(router)
    handle_problems(app, ask_for_token)
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = made().setdefault("components", {}).setdefault("schemas", {})
            parts = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(parts.pop("$defs", {}))
            schemas["Problem"] = parts
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return app.openapi_schema or made()

    app.openapi = described  # type: ignore[method-assign]
    return app


def make_app(service: Service, hosts: Collection[str]) -> ASGIApp:
    """The application of a service.

    Args:
        hosts: what requests may call it (``panning.service.api.guard.authorities``).
    """
    app = routes()
    app.state.service = service
    add_pages(app)

    def seen(one: Seen) -> None:
        service.metrics.hear(one)
        facts = {name: value for name, value in asdict(one).items() if value not in (None, "")}
        LOG.info("request", extra={"facts": {**facts, "seconds": round(one.seconds, 4)}})

    return Guard(app, hosts, MAX_BODY_BYTES, seen, service.most_upload_bytes)


if __name__ == "__main__":
    print(json.dumps(routes().openapi(), indent=2))
