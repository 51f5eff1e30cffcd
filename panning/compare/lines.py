"""The lines of a picture: which methods of a table it shows, in which colours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from panning.compare.cells import CHOSEN
from panning.compare.rows import Row, line_label
from panning.compare.statistics import SUMMARY, summary
from panning.compare.tables import Table
from panning.foundation import pictures as look

ALIVE = " + all-alive"
OTHERS = "other methods"
#: Said once for all methods that have both forms.
WITH_ALIVE = "with all-alive"
#: Method, or row of ``DYNAMICS`` -> its colour in every picture that has room for it.
FIXED = {
    "imp": look.BLUE, "dpf": look.GREEN, "gmp": look.ORANGE, "granet": look.SKY, "set": look.PURPLE, "rigl": look.BLACK,
    "SynFlow": look.BLUE, "staged Panning": look.GREEN, "SNIP": look.ORANGE, "GraSP": look.SKY, "magnitude": look.PURPLE,
    "random (ERK)": look.BLACK,
}  # fmt: skip
MARKERS = {
    look.OURS: "D", look.BLUE: "o", look.GREEN: "s", look.ORANGE: "^", look.SKY: "v", look.PURPLE: "P", look.BLACK: "X",
}  # fmt: skip
#: So many methods without a colour have markers and names of their own; more are ``OTHERS``.
GREY_MARKERS = ("o", "s", "^", "X")


@dataclass(frozen=True)
class Line:
    """The rows of one method that did not fail everywhere, by falling density, and how they are drawn.

    Attributes:
        base: the method without `` + all-alive``: both forms share its colour and its name in legends.
        is_alive: whether it is the all-alive form beside the other: dashed and hollow.
        is_named: whether a legend names it.
    """

    method: str
    base: str
    label: str
    rows: list[Row]
    colour: str
    marker: str
    is_alive: bool
    is_named: bool

    @property
    def has_colour(self) -> bool:
        return self.colour != look.GREY

    @property
    def style(self) -> dict[str, Any]:
        """For matplotlib's ``plot``."""
        face = "white" if self.is_alive else self.colour
        return {
            "color": self.colour, "marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.colour,
            "linestyle": "--" if self.is_alive else "-", "linewidth": 1.5 if self.has_colour else 0.8,
            "markersize": 5 if self.has_colour else 3,
            "zorder": 3 if is_ours(self.method) else 2.5 if self.has_colour else 2,
            "label": "_" if self.is_alive else self.label if self.is_named else OTHERS,
        }  # fmt: skip

    @property
    def points(self) -> dict[str, Any]:
        """For points that no line joins and no legend names."""
        return {**self.style, "linestyle": "none", "label": "_"}


def is_ours(method: str) -> bool:
    """Whether a method is the agent, or what a search has chosen."""
    return method == CHOSEN or method.startswith("panning (agent")


def lines(table: Table) -> list[Line]:
    """The lines of a table in its order."""
    rows = {method: [row for row in table.rows_of(method) if row.good] for method in table.methods}
    rows = {method: some for method, some in rows.items() if some}
    bases = {method: method.removesuffix(ALIVE) for method in rows}
    colours = colours_of({bases[method]: some[0] for method, some in rows.items()}, table.has_moving)
    greys = [base for base in dict.fromkeys(bases.values()) if colours[base] == look.GREY]
    named_greys = dict(zip(greys, GREY_MARKERS, strict=False)) if len(greys) <= len(GREY_MARKERS) else {}
    found = []
    for method, some in rows.items():
        base, colour = bases[method], colours[bases[method]]
        marker = "*" if method == CHOSEN else MARKERS.get(colour, named_greys.get(base, "."))
        is_alive = base != method and base in rows
        label = line_label(some) if base == method else base if is_alive else method
        found.append(
            Line(method, base, label, some, colour, marker, is_alive, colour != look.GREY or base in named_greys)
        )
    return found


def colours_of(methods: dict[str, Row], has_moving: bool) -> dict[str, str]:
    """Method -> colour: ours in one; others in theirs, or in what is left of the palette by their order; the rest grey.

    Where masks move, those methods come first, and controls come last.

    Args:
        methods: in a table's order, each with a row of it.
    """
    colours = {name: look.OURS for name in methods if is_ours(name)}

    def turn(name: str) -> tuple[bool, bool]:
        return methods[name].is_control, has_moving and methods[name].dynamic is None

    free = list(look.PALETTE)
    others = sorted((name for name in methods if name not in colours), key=turn)
    for (is_control, _), group in groupby(others, turn):
        names = list(group)
        for name in names:
            if (wanted := FIXED.get(methods[name].dynamic or name)) in free:
                colours[name] = free.pop(free.index(wanted))
        if not (is_control and len(methods) > len(look.PALETTE)):
            left = [name for name in names if name not in colours]
            colours |= dict(zip(left, free, strict=False))
            del free[: len(left)]
    return {name: colours.get(name, look.GREY) for name in methods}


def compression(row: Row) -> float:
    """All weights over alive weights; of a mask that is dead as a whole, over those that it was to keep."""
    effective = row.of_masks("effective_density")
    return 1.0 / (statistics.fmean(effective) if min(effective) > 0 else row.density)


def is_dead(row: Row) -> bool:
    """Whether the whole mask of a seed is dead."""
    return not min(row.of_masks("effective_density"))


# --- what several pictures share ---

#: Fewer seeds are drawn as dots: of so few an interval says more of Student's distribution than of the method.
INTERVAL_FROM = 5
#: The columns of ``numbers``.
NUMBERS = ("method", "density", "effective_density", *SUMMARY)


def n_seeds(table: Table) -> int:
    """The most seeds that a row has."""
    return max((len(row.good) for row in table.rows), default=0)


def said(table: Table, what: str) -> str:
    """A title: what is shown, of which model and data, and what marks mean."""
    n = n_seeds(table)
    marks = f"mean and {n} seeds (small dots)" if 1 < n < INTERVAL_FROM else f"mean and interval of 95 %, {n} seeds"
    return f"{table.title}: {what}\n{marks if n > 1 else 'one seed'}"


def legend_of(whole: Any, panels: Sequence[Any], found: Sequence[Line]) -> None:
    """One legend, ours first; both forms of a method have one name there."""
    if any(line.is_alive for line in found):
        panels[0].plot([], [], "--o", color="0.3", markerfacecolor="white", label=WITH_ALIVE)
    named = sorted((line for line in found if line.is_named), key=lambda line: not is_ours(line.method))
    look.legend(whole, panels, [*(line.label for line in named), WITH_ALIVE, OTHERS])


def errors(row: Row) -> list[float]:
    """Test errors in percent, one a seed."""
    return [100.0 * (1.0 - value) for value in row.values("test_accuracy").values()]


def error_span(table: Table) -> tuple[float, float]:
    """The ends of an axis of errors for all seeds of a table and the dense network."""
    found = [error for row in (*table.rows, table.dense) for error in errors(row) if error > 0]
    low, high = min(found, default=1.0), max(found, default=100.0)
    room = max((high / low) ** 0.06, 1.01)
    return low / room, min(high * room, 104.0)


def error_of(accuracy: float, low: float) -> float:
    """An accuracy as error in percent; what lies below the axis stands at its end."""
    return max(100.0 * (1.0 - accuracy), low)


def numbers(row: Row) -> list[object]:
    """A row's name, densities and test accuracy."""
    effective = statistics.fmean(row.of_masks("effective_density"))
    return [row.label, row.density, effective, *summary(list(row.values("test_accuracy").values()))]
