"""Closed tables: names from outside are looked up here and never imported.

Installed packages extend some tables (``Table``). What such a name imports was said by its package when the user installed
it; a file can name a row, and nothing else.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import sys
import warnings
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from panning.foundation.errors import PanningError, PluginError, UnknownNameError

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
        PluginError: if a package has a row of this name that cannot be used.
    """
    if not isinstance(name, str) or name not in table:
        raise UnknownNameError(unknown_name_message(kind, name, table))
    return table[name]


class Table(UserDict[str, Row]):
    """A closed table whose rows are panning's own and those of installed packages, by entry points.

    The names of a package's rows are known without importing it; a row is imported when it is first looked up. Panning's own
    row stays what it is if a package has one of the same name, with a warning that names the package.

    Args:
        rows: panning's own.
        group: of the entry points, as ``panning.methods``.
        allowed: what an entry point must name, for messages.
        row_of: makes a row of what the entry point names, the row's name and the package with its version; None for
            anything else. It may raise a PanningError that says why the row cannot be used.
    """

    def __init__(
        self, rows: Mapping[str, Row], group: str, allowed: str, row_of: Callable[[Any, str, str], Row | None]
    ) -> None:
        super().__init__(rows)
        self.group, self.allowed, self.row_of = group, allowed, row_of
        self._loaded: dict[EntryPoint, Row] = {}

    def origin(self, name: str) -> str | None:
        """The package, with its version, that the row ``name`` comes from; None for panning's own and unknown names."""
        return None if name in self.data or name not in self._plugins else _packages(self._plugins[name])

    def __getitem__(self, name: str) -> Row:
        if name in self.data:
            if name in self._plugins:
                warnings.warn(
                    f"{_packages(self._plugins[name])} adds '{name}' to {self.group}, which is a name of panning's own; "
                    "panning's is used. The package must call its own otherwise.",
                    stacklevel=3,
                )
            return self.data[name]
        entries = self._plugins[name]
        if entries[0] not in self._loaded:
            self._loaded[entries[0]] = self._load(name, entries)
        return self._loaded[entries[0]]

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter([*self.data, *(name for name in self._plugins if name not in self.data)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def _plugins(self) -> Mapping[str, list[EntryPoint]]:
        return _entry_points(self.group, tuple(sys.path))

    def _load(self, name: str, entries: list[EntryPoint]) -> Row:
        package = _packages(entries)
        if len(entries) > 1:
            raise PluginError(f"'{name}' is in {self.group} of {package}: uninstall all of them but one.")
        place = f"'{name}' of {package} ({self.group}: {entries[0].value})"
        try:
            found = entries[0].load()
        except (Exception, SystemExit) as error:  # an import runs the module, which may raise anything
            raise PluginError(
                f"{place} cannot be imported: {type(error).__name__}: {error}. Mend the package, or uninstall it."
            ) from error
        try:
            row = self.row_of(found, name, package)
        except PanningError as error:
            raise PluginError(f"{place} cannot be used: {error}") from error
        if row is None:
            raise PluginError(f"{place} is a {type(found).__name__}, but must be {self.allowed}.")
        return row


def origins(*used: tuple[Table[Any], Iterable[str]]) -> dict[str, str]:
    """Which packages the rows of these names come from, for manifests and records; panning's own are not listed.

    Returns:
        ``{"panning.methods: thirds": "panning-thirds 1.0"}``.
    """
    return {
        f"{table.group}: {name}": package
        for table, names in used
        for name in names
        if (package := table.origin(name)) is not None
    }


@functools.lru_cache(maxsize=8)
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Name -> entry points of the packages on ``sys.path``. Nothing is imported."""
    found: dict[str, list[EntryPoint]] = defaultdict(list)
    for entry in importlib.metadata.entry_points(group=group):
        found[entry.name].append(entry)
    return dict(found)


def _packages(entries: Iterable[EntryPoint]) -> str:
    found = [f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package" for entry in entries]
    return " and ".join(sorted(found))
