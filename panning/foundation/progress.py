"""How long work tells how far it is: it calls a listener with an event after every step, whoever listens.

The terminal shows a bar, a file takes a line, a test counts; none of them knows the others, and the work knows none of them.
What an event of each kind says: ``panning.foundation.facts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, get_args

from panning.foundation.errors import ConfigError, PanningError

Kind = Literal["plan", "stage", "round", "rollout", "epoch", "job", "running", "rung", "row", "artefact"]
#: What is said beside the steps of a stage: of a whole run, of jobs that run, and of the files that it left.
BESIDE = ("plan", "running", "artefact")
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """A step of a stage is done; or, with kind "stage", the stage has begun; or, with kind "plan", a whole run of several
    stages has (``plan_event``).

    >>> from panning.foundation.progress import Event
    >>> event = Event("pruning", 1, 2, "round", {"density": 0.5})
    >>> event.as_json()
    {'stage': 'pruning', 'done': 1, 'total': 2, 'kind': 'round', 'facts': {'density': 0.5}}
    >>> Event.of_json(event.as_json()) == event
    True

    Attributes:
        stage: what is being done, as a reader is told: "training the agent".
        done: steps of this stage that are done by now, also by the run that this one resumes. A rung and a row of a table
            are no steps: they come between.
        total: steps of this stage in all.
        kind: what a step is.
        facts: JSON-able, by kind as ``panning.foundation.facts`` has them.
    """

    stage: str
    done: int
    total: int
    kind: Kind = "stage"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As files and requests have it: numbers that are not finite are null, what JSON does not know is text."""
        return {
            "stage": self.stage, "done": self.done, "total": self.total, "kind": self.kind, "facts": _plain(self.facts),
        }  # fmt: skip

    @classmethod
    def of_json(cls, values: Any) -> Event:
        """The event of a line of a log; keys of others, as ``time``, are passed over.

        Raises:
            PanningError: if it is none.
        """
        if isinstance(values, dict):
            stage, done, total, kind, facts = (values.get(name) for name in ("stage", "done", "total", "kind", "facts"))
            counts = type(done) is int and type(total) is int
            if isinstance(stage, str) and counts and kind in get_args(Kind) and isinstance(facts, dict):
                return cls(stage, done, total, kind, facts)  # type: ignore[arg-type]
        raise PanningError(
            f"This is no event: it needs stage, done, total, kind ({', '.join(get_args(Kind))}) and facts."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


class LazyFacts(Mapping[str, Any]):
    """Facts of which some are computed when a listener first looks at them: whoever only counts steps pays nothing.

    >>> from panning.foundation.progress import LazyFacts
    >>> facts = LazyFacts({"density": 0.5}, {"dead": lambda: 0.25})
    >>> dict(facts)
    {'density': 0.5, 'dead': 0.25}

    Args:
        known: facts that are there.
        later: name -> what gives the fact.
        held: what a listener of this process may look at, and no fact: it goes into no file.
    """

    def __init__(self, known: Mapping[str, Any], later: Mapping[str, Callable[[], Any]], held: Any = None) -> None:
        self.held = held
        self._known = dict(known)
        self._later = dict(later)

    def __getitem__(self, name: str) -> Any:
        if name not in self._known and name in self._later:
            self._known[name] = self._later[name]()
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._later

    def __iter__(self) -> Iterator[str]:
        return iter(list(dict.fromkeys([*self._known, *self._later])))

    def __len__(self) -> int:
        return len(self._known | self._later)


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
