"""Makes HTML: templates of the package, in which every value is escaped."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

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


def in_bytes(n_bytes: int) -> str:
    """A size in the unit that fits.

    Examples:
        >>> from panning.service.page.templates import in_bytes
        >>> in_bytes(0), in_bytes(1023), in_bytes(1536), in_bytes(5 << 30)
        ('0 B', '1,023 B', '1.5 KiB', '5.0 GiB')
    """
    size, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{n_bytes:,} B" if unit == "B" else f"{size:.1f} {unit}"


def utc(time: datetime) -> str:
    """A time for ``<time datetime>``."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def shown_utc(time: datetime) -> str:
    """A time as it is read until the browser writes it in the reader's zone."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def as_json(values: Any) -> str:
    """Values as JSON that is read by people."""
    return json.dumps(values, indent=2, ensure_ascii=False)
