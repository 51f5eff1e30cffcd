"""Who hears how far jobs are while they run, and who says which of them are still wanted.

An executor asks for it (``current_watch``) in each step of its ``run``; the caller sets it for a block (``watched``). A
job that is not wanted any more is withdrawn between two of its steps: it is dropped, and leaves no outcome. An executor
that knows nothing of this lets every job run to its end, and results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from panning.foundation.context import holding
from panning.foundation.stopping import Reached
from panning.jobs.work import Job

#: Seconds after which a job that runs is heard of, and between two times. Shorter ones cost nothing.
HEARD_AFTER_S = 5.0


@dataclass(frozen=True)
class Running:
    """A job that runs.

    Attributes:
        seconds: since its worker has it.
        worker: the number of its place, from 0.
    """

    job: Job[Any]
    reached: Reached
    seconds: float
    worker: int = 0


@dataclass(frozen=True)
class Watch:
    """Hears of jobs that run, and says which are wanted.

    Attributes:
        heard: called for each job that has run for some seconds, every few seconds; None is nobody.
        is_wanted: whether the outcome of a job is still of use. One that is not wanted once never is again.
    """

    heard: Callable[[Running], None] | None = None
    is_wanted: Callable[[Job[Any]], bool] = lambda job: True


_watch: ContextVar[Watch] = ContextVar("panning_watch", default=Watch())  # noqa: B039  # it is frozen


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Within, executors tell ``watch`` how far jobs are, and ask it which are wanted."""
    with holding(_watch, watch):
        yield


def current_watch() -> Watch:
    """The watch of the block that is at work; without one all jobs are wanted, and nobody hears of them."""
    return _watch.get()
