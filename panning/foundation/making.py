"""Versions of how masks are made.

A change of the computation by which equal arguments give another mask, if only by another order of summation, is a new
version. Manifests and records name the version that made a mask, and ``panning reproduce`` makes it by that version again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from panning.foundation.context import holding
from panning.foundation.errors import PanningError

#: Version -> what came with it. The last is the one in use.
VERSIONS = {
    1: "convolutions by torch's own double backward, in the layout of the network",
    2: "on a CPU: convolutions' gradients differentiated by two fused calls, maps channels last where no norm is over them",
}
#: How manifests and records call the version; where they say none, it is 1.
ENTRY = "making"
NEWEST = max(VERSIONS)
_in_use = ContextVar("making", default=NEWEST)


def making() -> int:
    """The version by which masks are made here."""
    return _in_use.get()


@contextmanager
def made_by(version: int) -> Iterator[None]:
    """Make masks by an earlier version.

    Raises:
        PanningError: if this panning has no such version.

    Examples:
        >>> from panning.foundation.making import made_by, making
        >>> with made_by(1):
        ...     print(making())
        1
    """
    if version not in VERSIONS:
        raise PanningError(
            f"Masks made by version {version!r} cannot be made again here, which knows the versions "
            f"{', '.join(map(str, VERSIONS))}: take the panning of the record's commit."
        )
    with holding(_in_use, version):
        yield
