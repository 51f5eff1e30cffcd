"""Stopping work from outside, and hearing how far it is: after each round, epoch, rollout and job, however deep in a run.

Functions are not handed down through every call: they hold for a block (``stops_when``, ``steps_heard``), and what is at
work in the block calls them (``check_stop``, ``step_done``). Workers in other processes do not ask whether the run stops;
the process that waits for them does, and ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from panning.foundation.context import holding
from panning.foundation.errors import ConfigError, StoppedError

#: Says whether a run should stop now.
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Reached:
    """How far a piece of work is: so many of its steps are done.

    >>> from panning.foundation.stopping import Reached
    >>> str(Reached(3, 12, "epoch"))
    'epoch 3 of 12'

    Attributes:
        unit: what a step is: "epoch" or "round".
    """

    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        return f"{self.unit} {self.done} of {self.total}"


#: Hears of each step; what it raises ends the work.
HearsSteps = Callable[[Reached], None]

_should_stop: ContextVar[ShouldStop | None] = ContextVar("panning_should_stop", default=None)
_hears_steps: ContextVar[HearsSteps | None] = ContextVar("panning_hears_steps", default=None)


class WithdrawnError(BaseException):
    """Ends one job whose outcome nobody wants any more, while the run goes on.

    It is no ``Exception``, as it is no failure: what takes failed trials in passes it on.
    """


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
    with holding(_should_stop, should_stop):
        yield


@contextmanager
def steps_heard(hear: HearsSteps) -> Iterator[None]:
    """Within, ``hear`` is told of each epoch of a training and each round of a pruning, when it is done.

    Examples:
        >>> from panning.foundation.stopping import step_done, steps_heard
        >>> with steps_heard(print):
        ...     step_done(1, 2, "epoch")
        ...     step_done(2, 2, "epoch")
        epoch 1 of 2
        epoch 2 of 2
    """
    with holding(_hears_steps, hear):
        yield


def step_done(done: int, total: int, unit: str) -> None:
    """Tell whoever hears it that a step is done, and stop if the work should."""
    hear = _hears_steps.get()
    if hear is not None:
        hear(Reached(done, total, unit))
    check_stop()


def check_stop() -> None:
    """Raise StoppedError if the work that calls should stop."""
    should_stop = _should_stop.get()
    if should_stop is not None and should_stop():
        raise StoppedError("The run was told to stop. What is done is kept; run the same again to go on.")
