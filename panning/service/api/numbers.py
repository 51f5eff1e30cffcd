"""Whole numbers in paths, queries and headers: written in one way each, so that no two addresses name the same thing."""

from __future__ import annotations

import re

from pydantic import BeforeValidator

#: Ids are at most so large: JavaScript reads them without loss.
MAX_NUMBER = 2**53


def _plain(given: object) -> object:
    if isinstance(given, str) and not re.fullmatch("0|-?[1-9][0-9]{0,18}", given):
        raise ValueError("a whole number has digits alone, the first of which is no 0")
    return given


#: Of an annotated number, behind its bounds: it is written in decimal, neither as `+1` nor `01`, `1.0` or ` 1`.
PLAIN = BeforeValidator(_plain)
