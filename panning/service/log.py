"""The server's log: one JSON object a line, control characters written out, no secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from panning.foundation.text import one_line

LOG = logging.getLogger("panning.service")
#: How long a trouble that goes on is not logged again.
AGAIN_S = 60.0
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


class Trouble:
    """Logs a failure that repeats at every try, as while a database is away, without a line for each try.

    It logs the failure as it begins or changes, then once a minute, and as it is over.

    >>> from panning.service.log import Trouble
    >>> trouble = Trouble("scheduler")
    >>> trouble.met(OSError("no space left"))
    >>> trouble.text
    'no space left'

    Attributes:
        text: one line; empty while nothing is wrong.
    """

    def __init__(self, where: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = ""
        self._where = where
        self._clock = clock
        self._again = 0.0

    def met(self, error: Exception) -> None:
        """A try has failed."""
        text, now = one_line(str(error)), self._clock()
        if text != self.text or now >= self._again:
            LOG.warning(self._where, extra={"facts": {"error": plain(str(error))}})
            self._again = now + AGAIN_S
        self.text = text

    def over(self) -> None:
        """A try went well."""
        if self.text:
            LOG.info(self._where, extra={"facts": {"over": plain(self.text)}})
        self.text = ""


def log_to(stream: TextIO = sys.stderr) -> logging.Logger:
    """The log of the service; what uvicorn has to say goes there, too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("panning.service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "panning.service" else logging.WARNING)
    return logging.getLogger("panning.service")
