"""Names that stand for places of this machine: results of a run that takes a file by its name say the name, and are the same
wherever the file lies.

The names are in the environment, so that workers that a process starts know them, too.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "PANNING_PLACES"


@dataclass(frozen=True)
class Places:
    """Names with the places that they stand for.

    Attributes:
        data: what a config says of data, as ``npz:PATH``, by name.
        files: paths of other files, by name.
    """

    data: Mapping[str, str]
    files: Mapping[str, str]


def name_places(data: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Give names to places, for this process and those that it starts; earlier names are forgotten.

    Args:
        data, files: as of ``Places``.

    Examples:
        >>> from panning.foundation.places import name_places, named, placed
        >>> name_places({"scans": "npz:/srv/scans.npz"}, {"mine": "/srv/mask"})
        >>> placed("scans"), placed("digits"), named({"data": ["npz:/srv/scans.npz"], "mask": "/srv/mask"})
        ('npz:/srv/scans.npz', 'digits', {'data': ['scans'], 'mask': 'mine'})
        >>> name_places({}, {})
    """
    os.environ[VARIABLE] = json.dumps([dict(data), dict(files)])


def places() -> Places:
    """The names that are known."""
    return _read(os.environ.get(VARIABLE, "[{}, {}]"))


def placed(data: str) -> str:
    """The place that a name of data stands for; a text that is no name comes back as it is."""
    return places().data.get(data, data)


def named(value: Any) -> Any:
    """A value of JSON with names in place of places."""
    known = places()
    names = {place: name for one in (known.data, known.files) for name, place in one.items()}

    def within(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: within(item) for key, item in value.items()}
        if isinstance(value, list):
            return [within(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    return within(value) if names else value


def without_places(text: str) -> str:
    """A message with names in place of paths."""
    known = places()
    paths = {place.partition(":")[2]: name for name, place in known.data.items()}
    paths |= {place: name for name, place in known.files.items()}
    for path in sorted(paths, key=len, reverse=True):
        text = text.replace(f"npz:{path}", paths[path]).replace(path, paths[path])
    return text


@functools.lru_cache(maxsize=8)
def _read(text: str) -> Places:
    return Places(*json.loads(text))
