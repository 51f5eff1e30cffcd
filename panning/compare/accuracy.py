"""The picture of test errors: curves over densities beside differences that are paired by seed, or dots."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from panning.compare.lines import (
    INTERVAL_FROM,
    NUMBERS,
    Line,
    compression,
    error_of,
    error_span,
    errors,
    is_dead,
    is_ours,
    legend_of,
    lines,
    n_seeds,
    numbers,
    said,
)
from panning.compare.rows import Row, line_label
from panning.compare.statistics import Difference, difference, summary
from panning.compare.tables import Table
from panning.foundation.pictures import BLUE, OURS, Picture, figure, in_style, log_axis
from panning.pruners.targets import words_of

#: A table of fewer densities is drawn with a line for each method in place of a curve.
CURVES_FROM = 3
#: Points of accuracy beyond which the panel of differences says only that a method is there.
FAR = 6.0
#: (method, density) -> difference to the reference, and the differences of single seeds, in points.
Gaps = dict[tuple[str, float], tuple[Difference, list[float]]]


@in_style
def accuracy_picture(table: Table) -> Picture:
    """Test errors: curves over the effective compression and differences to a reference; of one or two densities dots.

    Intervals are of 95 %, and end at errors of 0 and 100 %; of fewer than five seeds every seed is a dot. The reference is
    the best method on the validation part that is neither ours nor a control.
    """
    if len(table.densities) < CURVES_FROM:
        return _dots(table)
    found = lines(table)
    whole, (left, right) = figure(said(table, "test error"), 2, width=4.7, height=4.0)
    _curves(left, table, found)
    reference = next((line for line in found if not is_ours(line.method) and not line.rows[0].is_control), found[0])
    gaps = _gaps(found, reference)
    _draw_gaps(right, table, [line for line in found if line.has_colour and line is not reference], gaps)
    right.set_title(textwrap.fill(f"minus {line_label(reference.rows)}, paired by seed", 48))
    legend_of(whole, [left, right], found)
    rows = [
        [*numbers(row), *_bounds(gaps.get((line.method, row.density))), line_label(reference.rows)]
        for line in found for row in line.rows
    ]  # fmt: skip
    columns = (*NUMBERS, "difference", "difference_ci_low", "difference_ci_high", "reference")
    return Picture(whole, columns, [*rows, [*numbers(table.dense), None, None, None, None]])


def _bounds(gap: tuple[Difference, list[float]] | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if gap is None else (gap[0].mean, gap[0].low, gap[0].high)


def _curves(axes: Any, table: Table, found: Sequence[Line]) -> None:
    """Errors over the effective compression; a curve ends where the whole mask of a seed is dead."""
    low, high = error_span(table)
    many = n_seeds(table) >= INTERVAL_FROM
    for line in found:
        x = np.array([compression(row) for row in line.rows])
        spread = [summary(list(row.values("test_accuracy").values())) for row in line.rows]
        y = np.array([error_of(one[0], low) for one in spread])
        dead = np.array([is_dead(row) for row in line.rows])
        axes.plot(np.where(dead, np.nan, x), y, **line.style)
        axes.plot(x[dead], y[dead], "x", color=line.colour, markersize=6, zorder=4, label="_")
        if many and line.has_colour:
            ends = np.array([(error_of(best, low), error_of(worst, low)) for *_, worst, best in spread])
            axes.vlines(x[~dead], *ends[~dead].T, color=line.colour, linewidth=1, alpha=0.7)
        elif line.has_colour:
            for at, row in zip(x, line.rows, strict=True):
                axes.plot([at] * len(row.good), errors(row), ".", color=line.colour, markersize=3, alpha=0.6, zorder=2)
    if any(is_dead(row) for line in found for row in line.rows):
        axes.plot([], [], "x", color="0.3", label="whole mask dead")
    axes.axhline(error_of(table.dense.mean("test_accuracy"), low), linestyle=":", color="0.3", label="dense network")
    axes.set(xlabel="effective compression: all weights / alive weights", ylabel="test error, % (log scale)")
    log_axis(axes.yaxis, low, high, 9)
    reached = [compression(row) for line in found for row in line.rows]
    log_axis(axes.xaxis, min(reached) / 1.15, max(reached) * 1.15)
    axes.set_title("test error")


def _gaps(found: Sequence[Line], reference: Line) -> Gaps:
    """The differences of all rows to the reference at their density, without a correction."""
    by_density = {row.density: row.values("test_accuracy") for row in reference.rows}
    gaps: Gaps = {}
    for line in found:
        for row in line.rows:
            ours, theirs = row.values("test_accuracy"), by_density.get(row.density, {})
            if each := [100.0 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]:
                gaps[line.method, row.density] = difference(ours, theirs), each
    return gaps


def _draw_gaps(axes: Any, table: Table, shown: Sequence[Line], gaps: Gaps) -> None:
    """Differences at each density, side by side; what lies beyond ``FAR`` points is a small arrow at the edge."""
    methods = {line.method for line in shown}
    few = n_seeds(table) < INTERVAL_FROM
    drawn = [gap for (method, _), gap in gaps.items() if method in methods]
    values = [value for gap, each in drawn for value in (each if few else [100.0 * gap.mean])]
    low, high = max(min(values, default=0.0), -FAR) - 0.7, min(max(values, default=0.0), FAR) + 0.7
    step = 0.8 / max(len(shown), 1)
    if any(not low <= 100.0 * gap.mean <= high for gap, _ in drawn):
        axes.plot([], [], marker=7, color="0.3", linestyle="none", label="beyond the axis")
    for number, line in enumerate(shown):
        for place, density in enumerate(table.densities):
            if (line.method, density) not in gaps:
                continue
            gap, each = gaps[line.method, density]
            x, y = place + (number + 0.5) * step - 0.4, 100.0 * gap.mean
            if not low <= y <= high:
                end, caret = (low, 7) if y < low else (high, 6)  # matplotlib's carets down and up, tips at the point
                axes.plot([x], [end], marker=caret, color=line.colour, linestyle="none")
                continue
            axes.plot([x], [y], **line.points)
            if few:
                axes.plot([x] * len(each), each, ".", color=line.colour, markersize=3, alpha=0.6, zorder=2)
            elif gap.n > 1:
                ends = np.clip([100.0 * gap.low, 100.0 * gap.high], low, high)
                axes.vlines([x], *ends, color=line.colour, linewidth=1, alpha=0.7)
    axes.axhline(0.0, color="0.3", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(table.densities)), [f"{1 / density:.4g}" for density in table.densities])
    axes.set_ylim(low, high)
    axes.grid(visible=False, axis="x")
    for place in range(1, len(table.densities)):
        axes.axvline(place - 0.5, color="0.85", linewidth=0.8)
    what = (
        "weights / kept weights" if table.shares_of == "weights" else f"{words_of(table.shares_of)} / those asked for"
    )
    axes.set(xlabel=f"compression: all {what}", ylabel="difference of accuracy, points (above 0: better)")


def _dots(table: Table) -> Picture:
    """A row for each method, best on validation first, a panel for each density, all with one axis of errors."""
    found = lines(table)
    names = [textwrap.fill(line_label(line.rows), 34) for line in found]
    height = 0.7 + 0.19 * (len(found) + sum(name.count("\n") for name in names))
    n = max(len(table.densities), 1)
    whole, panels = figure(said(table, "test error"), n, width=6.6 if n == 1 else 4.7, height=height, sharey=True)
    low, high = error_span(table)
    dense = error_of(table.dense.mean("test_accuracy"), low)
    for axes, density in zip(panels, table.densities, strict=False):
        for place, line in enumerate(found):
            for row in (row for row in line.rows if row.density == density):
                _draw_dots(axes, place, row, low)
        axes.axvline(dense, linestyle=":", color="0.3")
        axes.annotate(
            "dense network", (dense, 1.0), (3, 2), fontsize=8, color="0.3", xycoords=("data", "axes fraction"),
            textcoords="offset points",
        )  # fmt: skip
        axes.set_title(f"{table.level} {density:.3g}", loc="right")
    for axes in panels:
        log_axis(axes.xaxis, low, high, 9)
        axes.set_xlabel("test error, % (log scale)")
    panels[0].set_yticks(range(len(found)), names)
    panels[0].set_ylim(max(len(found), 1) - 0.4, -0.6)
    return Picture(whole, NUMBERS, [*(numbers(row) for line in found for row in line.rows), numbers(table.dense)])


def _draw_dots(axes: Any, place: int, row: Row, low: float) -> None:
    """The mean of a row with its interval, or a bar at the mean and a dot for each seed."""
    colour = OURS if is_ours(row.method) else "0.55" if row.is_control else BLUE
    mean, _, n, worst, best = summary(list(row.values("test_accuracy").values()))
    if n >= INTERVAL_FROM:
        axes.hlines([place], error_of(best, low), error_of(worst, low), color=colour, linewidth=1.2)
        axes.plot([error_of(mean, low)], [place], "o", color=colour)
        return
    axes.plot(errors(row), [place] * n, "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
    axes.plot([error_of(mean, low)], [place], "|", color=colour, markersize=11, markeredgewidth=1.8)
