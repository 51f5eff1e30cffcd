"""Trials that fail: what becomes a recorded result, and what is the machine's fault and ends the run or its worker.

A trial that raises, gives what is no number, takes more memory than there is, takes too long or ends its process fails, and
the search goes on: the failure is its outcome, with its reason. What the next trial would meet as well, data that are not
there, a missing package or device, is no result and is raised.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch

from panning.foundation.errors import (
    DataError,
    DensityError,
    DeviceError,
    MaskError,
    MissingExtraError,
    NonFiniteError,
    OutputError,
    PanningError,
    PluginError,
)
from panning.foundation.text import one_line
from panning.jobs.outcome import Failure

#: Errors that say that the work itself is impossible: results of comparisons like any other.
IMPOSSIBLE = (NonFiniteError, DensityError, MaskError)
#: Errors of the machine that a trial runs on.
OF_MACHINE = (DataError, DeviceError, MissingExtraError, OutputError, PluginError)
#: Reason -> in words.
REASONS: dict[Failure, str] = {
    "raised": "it raised an error",
    "memory": "it took more memory than there is",
    "time": "it took too long",
    "worker": "its process ended",
}
MAX_SAID = 500
#: What torch says where it has no type of its own for it.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def failed(error: BaseException) -> dict[str, Any]:
    """The fields of the outcome of a trial that raised ``error``."""
    if isinstance(error, IMPOSSIBLE):
        return {"error": str(error)}
    said = one_line(str(error))[:MAX_SAID]
    said = said if isinstance(error, PanningError) else f"{type(error).__name__}: {said}".rstrip(": ")
    lines = traceback.format_exception(error)
    return {"error": said, "failure": "memory" if is_memory(error) else "raised", "trace": "".join(lines)}


def is_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
