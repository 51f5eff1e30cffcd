"""A context variable that has a value for a block alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Within, the variable has this value; afterwards, also after an error, the one before.

    Examples:
        >>> from contextvars import ContextVar
        >>> from panning.foundation.context import holding
        >>> level = ContextVar("level", default=0)
        >>> with holding(level, 1):
        ...     print(level.get())
        1
        >>> level.get()
        0
    """
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
