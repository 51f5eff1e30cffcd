"""How long work tells how far it is: it calls a listener with an event after every step, whoever listens.

The terminal shows a bar, a file takes a line, a test counts; none of them knows the others, and the work knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from panning.foundation.errors import ConfigError

Kind = Literal["plan", "stage", "round", "rollout", "epoch", "job", "row"]
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """A step of a stage is done; or, with kind "stage", the stage has begun; or, with kind "plan", a whole run of several
    stages has (``plan_event``).

    Attributes:
        stage: what is being done, as a reader is told: "training the agent".
        done: steps of this stage that are done by now, also by the run that this one resumes.
        total: steps of this stage in all.
        kind: what a step is.
        facts: JSON-able figures of this step.
    """

    stage: str
    done: int
    total: int
    kind: Kind = "stage"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stage of a run that is to come.

    Attributes:
        steps: at most so many.
        cost: of all its steps, in a unit that all stages of the run share.
        epochs: what it trains, in passes of the dense network over the training part.
        width: at most so many workers share it; None lets each have a step.
        kind: of its steps.
    """

    name: str
    steps: int
    cost: float
    epochs: float = 0.0
    width: int | None = None
    kind: Kind = "job"


def plan_event(run: str, stages: Sequence[Stage]) -> Event:
    """The event that tells the stages of a whole run before the first begins."""
    return Event(run, 0, sum(stage.steps for stage in stages), "plan", {"stages": [asdict(stage) for stage in stages]})


#: Called with each event, in order, in the process that began the work. What it raises ends the work.
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener that hears nothing."""


def check_listener(name: str, listen: object) -> None:
    """Raise ConfigError for an argument ``name`` that cannot hear events."""
    if not callable(listen):
        raise ConfigError(
            f"{name} is {listen!r}; pass a function of one argument, an Event (panning.foundation.progress), like print."
        )


def told(items: Sequence[T], listen: Listener, stage: str, kind: Kind) -> Iterator[T]:
    """The items one by one; the listener is called before the first, and after the body of the loop is done with each.

    Examples:
        >>> from panning.foundation.progress import told
        >>> [item for item in told("ab", lambda event: print(event.done, "of", event.total), "spelling", "row")]
        0 of 2
        1 of 2
        2 of 2
        ['a', 'b']
    """
    listen(Event(stage, 0, len(items)))
    for done, item in enumerate(items, start=1):
        yield item
        listen(Event(stage, done, len(items), kind))
