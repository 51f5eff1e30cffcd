"""Workers as the dispatcher sees them: places behind a small interface, and the news of what happens at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from panning.foundation.stopping import Reached
from panning.jobs.outcome import Outcome
from panning.jobs.work import Job


@dataclass(frozen=True)
class Up:
    """A worker is up and waits for its first job."""

    place: int


@dataclass(frozen=True)
class Done:
    """A job came to its end."""

    place: int
    outcome: Outcome


@dataclass(frozen=True)
class Heard:
    """How far the job of a worker is."""

    place: int
    reached: Reached


@dataclass(frozen=True)
class Withdrawn:
    """A job that was not wanted any more has ended without an outcome."""

    place: int


@dataclass(frozen=True)
class Lost:
    """A worker is gone.

    Attributes:
        reason: "memory" if it was ended for taking too much; "node" if its machine is gone, which no job is to blame for.
        said: what is known of it, for messages.
    """

    place: int
    reason: str = "worker"
    said: str = ""


@dataclass(frozen=True)
class Unfit:
    """A worker cannot do the jobs, as its machine lacks something or has something else; its place is left out."""

    place: int
    error: Exception


News = Up | Done | Heard | Withdrawn | Lost | Unfit


class Workers(Protocol):
    """Places with a worker each, which does one job at a time."""

    n_places: int

    def start(self, place: int) -> None:
        """Ask for a worker; news tell when it is up."""

    def send(self, place: int, job: Job[Any]) -> None:
        """Let the worker at a place, which is up and idle, do a job."""

    def ask(self) -> None:
        """Ask how far the jobs are that run; news may tell (``Heard``)."""

    def withdraw(self, place: int) -> None:
        """Let a worker end its job between two steps; news tell that it did (``Withdrawn``), or the job's end."""

    def stop(self, place: int) -> None:
        """End what is at a place, whatever it does; nothing is heard of it any more."""

    def news(self, timeout_s: float) -> list[News]:
        """What has happened; waits for it, but no longer than this.

        Raises:
            WorkerError: if nothing will happen any more.
        """
