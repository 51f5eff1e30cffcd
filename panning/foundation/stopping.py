"""Stopping work from outside: a function is asked after each round, epoch, rollout and job, however deep in a run that is.

The function is not handed down through every call: it holds for a block (``stops_when``), and what is at work in the block
asks it (``check_stop``). Workers in other processes do not ask; the process that waits for them does, and ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from panning.foundation.errors import ConfigError, StoppedError

#: Says whether a run should stop now.
ShouldStop = Callable[[], bool]

_should_stop: ContextVar[ShouldStop | None] = ContextVar("panning_should_stop", default=None)


@contextmanager
def stops_when(should_stop: ShouldStop | None) -> Iterator[None]:
    """Within, work stops once ``should_stop()`` is true; None leaves that to the block around this one.

    Raises:
        ConfigError: if it cannot be called.

    Examples:
        >>> import panning
        >>> from panning.foundation.stopping import check_stop, stops_when
        >>> with stops_when(lambda: False):
        ...     check_stop()
        >>> try:
        ...     with stops_when(lambda: True):
        ...         check_stop()
        ... except panning.StoppedError as stopped:
        ...     print(stopped)
        The run was told to stop. What is done is kept; run the same again to go on.
    """
    if should_stop is None:
        yield
        return
    if not callable(should_stop):
        raise ConfigError(f"should_stop is {should_stop!r}; pass a function without arguments that says true or false.")
    token = _should_stop.set(should_stop)
    try:
        yield
    finally:
        _should_stop.reset(token)


def check_stop() -> None:
    """Raise StoppedError if the work that calls should stop."""
    should_stop = _should_stop.get()
    if should_stop is not None and should_stop():
        raise StoppedError("The run was told to stop. What is done is kept; run the same again to go on.")
