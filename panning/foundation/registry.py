"""Closed tables: names from outside are looked up here and never imported."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from panning.foundation.errors import UnknownNameError

Row = TypeVar("Row")


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name closest in spelling to ``name``, or None if none is close."""
    matches = difflib.get_close_matches(name.lower(), list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name_message(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Say which name was given, the nearest right one, and all that are allowed."""
    names = sorted(allowed)
    near = nearest(str(name), names)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"Unknown {kind} '{name}'.{hint} Allowed: {', '.join(names)}."


def lookup(table: Mapping[str, Row], name: str, kind: str) -> Row:
    """The row called ``name``.

    Raises:
        UnknownNameError: with the nearest and all allowed names.
    """
    if name not in table:
        raise UnknownNameError(unknown_name_message(kind, name, table))
    return table[name]
