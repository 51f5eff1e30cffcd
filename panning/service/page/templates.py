"""Makes HTML: templates of the package, in which every value is escaped."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from panning.foundation.text import in_bytes
from panning.service.page.static import POLICY, files

#: The pages that the head leads to.
PAGES = ("/jobs", "/submit", "/compare", "/policies")


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters |= {"bytes": in_bytes, "utc": utc, "shown_utc": shown_utc, "json": as_json}
    made.globals |= {"static": files(), "pages": PAGES}
    return made


def answer(template: str, status: int = 200, **values: Any) -> Response:
    """A page of a template.

    Args:
        values: what the template names.
    """
    text = _environment().get_template(template).render(values)
    headers = {"Content-Security-Policy": POLICY, "Content-Type": "text/html; charset=utf-8"}
    return Response(text, status, headers)


def utc(time: datetime) -> str:
    """A time for ``<time datetime>``."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def shown_utc(time: datetime) -> str:
    """A time as it is read until the browser writes it in the reader's zone."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def as_json(values: Any) -> str:
    """Values as JSON that is read by people."""
    return json.dumps(values, indent=2, ensure_ascii=False)
