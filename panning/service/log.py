"""The server's log: one JSON object a line, control characters written out, no secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_SECRET = re.compile(r"pan_[\w-]+")
#: Characters of a text that are kept.
MOST = 4_000


class JsonLines(logging.Formatter):
    """Writes a record as JSON: time, level, what happened, and what the record was given as ``facts``.

    >>> import json, logging
    >>> from panning.service.log import JsonLines
    >>> record = logging.LogRecord("panning", logging.INFO, "", 0, "a\\nb pan_secret", None, None)
    >>> json.loads(JsonLines().format(record))["event"]
    'a\\nb pan_***'
    """

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "event": plain(record.getMessage()), **getattr(record, "facts", {}),
        }  # fmt: skip
        if record.exc_info:
            values["traceback"] = plain(self.formatException(record.exc_info))
        return json.dumps(values)  # of ASCII: what acts on a terminal stands as \u001b


def plain(text: str) -> str:
    """A text for the log: short, and without secrets."""
    return _SECRET.sub("pan_***", text[-MOST:])


def log_to(stream: TextIO = sys.stderr) -> logging.Logger:
    """The log of the service; what uvicorn has to say goes there, too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("panning.service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "panning.service" else logging.WARNING)
    return logging.getLogger("panning.service")
