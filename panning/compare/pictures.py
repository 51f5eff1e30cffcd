"""Pictures of a grid, from its tables."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panning.compare.cells import CHOSEN
from panning.compare.rows import Row
from panning.compare.statistics import interval
from panning.compare.tables import Table
from panning.foundation.pictures import figure, png

#: Method -> colour in a table of many methods; all others are grey, because nobody can tell so many colours apart.
COLOURS = {
    CHOSEN: "black",
    "panning (agent)": "tab:red", "panning (agent) + all-alive": "tab:pink", "staged Panning": "tab:orange",
    "SynFlow": "tab:blue", "SynFlow (shuffled, as many alive)": "tab:cyan", "SNIP": "tab:green", "GraSP": "tab:olive",
    "magnitude": "tab:brown", "random (ERK)": "tab:purple",
}  # fmt: skip
OTHERS = "other methods"
#: The colour of what a search has chosen in a table of few methods.
RED = "tab:red"
#: The colours of a table of at most as many methods.
FEW = [f"tab:{c}" for c in ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan")]
ALIVE = " + all-alive"


@dataclass(frozen=True)
class Line:
    """The rows of one method, by falling density, and how they are drawn; a line without a colour is grey."""

    name: str
    rows: list[Row]
    colour: str | None
    is_dashed: bool

    @property
    def style(self) -> dict[str, Any]:
        return {
            "color": self.colour or "0.8", "label": self.name if self.colour else OTHERS,
            "linewidth": 1.8 if self.colour else 0.8, "linestyle": "--" if self.is_dashed else "-",
        }  # fmt: skip


def _lines(table: Table) -> list[Line]:
    """The lines of a table, grey lines first, so that they lie below.

    If there are few methods, each has a colour; a method with all-alive has the colour of its method, dashed.

    If masks move and only the methods without controls are few, the controls are grey.
    """
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.good:
            by_method[row.method].append(row)
    few = dict.fromkeys(name.removesuffix(ALIVE) for name in by_method)
    if table.has_moving and len(few) > len(FEW):
        few = dict.fromkeys(name.removesuffix(ALIVE) for name, rows in by_method.items() if not rows[0].is_control)
    own = _few_colours(few) if len(few) <= len(FEW) else {}
    lines = []
    for name, rows in by_method.items():
        base = name.removesuffix(ALIVE)
        colour = own.get(base) if own else COLOURS.get(name)
        lines.append(Line(name, rows, colour, bool(own) and base != name and base in by_method))
    order = list(COLOURS)
    return sorted(
        lines, key=lambda line: (line.colour is not None, order.index(line.name) if line.name in order else -1)
    )


def _few_colours(names: Collection[str]) -> dict[str, str]:
    """A colour for each of a few methods; red is kept for the mask that a search has chosen, if it is among them."""
    if CHOSEN not in names:
        return dict(zip(names, FEW, strict=False))
    others = (name for name in names if name != CHOSEN)
    return {CHOSEN: RED, **dict(zip(others, (colour for colour in FEW if colour != RED), strict=False))}


def _legend(panels: Sequence[Any], fontsize: int) -> None:
    """Draw one legend for all panels beside the last, grey lines at its end: a method may lack points in a panel."""
    shown = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(shown, key=lambda name: name == OTHERS)
    if names:
        panels[-1].legend(
            [shown[n] for n in names], names, fontsize=fontsize, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )


def accuracy_picture(table: Table) -> bytes:
    """Accuracy against effective compression, which counts alive weights only, with bands of 95 %.

    A cross marks rows in which the whole mask of a seed is dead, at the compression that was asked for.
    """
    whole, (axes,) = figure(1, width=7.0, height=4.6)
    for line in _lines(table):
        x = [_compression(row) for row in line.rows]
        values = [100 * np.array(list(row.values("test_accuracy").values())) for row in line.rows]
        dead = [i for i, row in enumerate(line.rows) if not min(row.of_masks("effective_density"))]
        axes.plot(x, [v.mean() for v in values], marker="o", markersize=3, **line.style)
        axes.plot([x[i] for i in dead], [values[i].mean() for i in dead], "x", color=line.style["color"])
        bounds = [interval(v) for v in values]
        if line.colour and not any(math.isnan(low) for low, _ in bounds):
            axes.fill_between(x, *zip(*bounds, strict=True), color=line.colour, alpha=0.15)
    axes.axhline(100 * table.dense.mean("test_accuracy"), linestyle="--", color="black", linewidth=0.8, label="dense")
    axes.set(xscale="log", xlabel="effective compression (all weights / alive weights)", ylabel="test accuracy, %")
    axes.set_xticks([1 / density for density in table.densities], [f"{1 / density:.4g}" for density in table.densities])
    axes.minorticks_off()  # whose labels run into each other
    axes.set_title(table.title, parse_math=False)
    axes.grid(alpha=0.3)
    _legend([axes], fontsize=7)
    return png(whole)


def _compression(row: Row) -> float:
    effective = row.of_masks("effective_density")
    return 1.0 / (statistics.fmean(effective) if min(effective) > 0 else row.density)


def rank_picture(table: Table) -> bytes | None:
    """The critical-difference diagram: methods that a bar joins are not told apart (Demsar 2006; Nemenyi's test)."""
    if (found := table.ranks) is None:
        return None
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    whole, (axes,) = figure(1, width=9.0, height=1.6 + 0.2 * len(found.names))
    # Methods go by number: the bars are found in sets, and sets of names have another order in every process.
    drawn = critical_difference_diagram(
        dict(enumerate(found.mean_ranks)), pd.DataFrame(found.p_pairs), ax=axes, label_props={"fontsize": 7},
        label_fmt_left="{label:d}", label_fmt_right="{label:d}",
    )  # fmt: skip
    for text in drawn["labels"]:
        number = int(text.get_text())
        name, rank = found.names[number], f"({found.mean_ranks[number]:.2g})"
        text.set(text=f"{name} {rank}" if text.get_ha() == "right" else f"{rank} {name}", parse_math=False)
    axes.set_title(
        f"{table.title}: mean rank over {found.n_blocks} pairs of density and seed", fontsize=9, parse_math=False
    )
    return png(whole)


def _by_density(table: Table, ylabel: str, draw: Callable[[Any, list[tuple[Line, Row]]], None]) -> bytes | None:
    """One panel for each density, into which ``draw`` puts the rows that did not fail everywhere, with their lines."""
    if not (densities := table.densities):
        return None
    whole, panels = figure(len(densities), width=3.4, height=3.6)
    for axes, density in zip(panels, densities, strict=True):
        draw(axes, [(line, row) for line in _lines(table) for row in line.rows if row.density == density])
        axes.set_title(f"density {density:g}", fontsize=9)
    panels[0].set_ylabel(ylabel)
    _legend(panels, fontsize=6)
    return png(whole)


def layer_picture(table: Table) -> bytes | None:
    """Density of each layer, one panel for each density."""

    def draw(axes: Any, rows: list[tuple[Line, Row]]) -> None:
        for line, row in rows:
            if line.colour:
                layers = dict(next(iter(row.good.values()))["layer_densities"])
                shown = [max(density, 1e-6) for density in layers.values()]
                names = [name.removesuffix(".weight") for name in layers]
                axes.plot(range(len(layers)), shown, marker="o", markersize=3, **line.style)
                axes.set_xticks(range(len(layers)), names, rotation=60, fontsize=6)
        axes.set_yscale("log")

    return _by_density(table, "density of the layer", draw)


def cost_picture(table: Table) -> bytes | None:
    """Accuracy against the cost of search, scoring and training, one panel for each density."""

    def draw(axes: Any, rows: list[tuple[Line, Row]]) -> None:
        for line, row in rows:
            size, marker = 24 if line.colour else 10, "^" if line.is_dashed else "o"
            style = {"color": line.style["color"], "label": line.style["label"], "s": size, "marker": marker}
            axes.scatter([table.work(row)], [100 * row.mean("test_accuracy")], **style)
        shown = [table.work(row) for _, row in rows]
        if shown and min(shown) > 0 and max(shown) > 10 * min(shown):
            axes.set_xscale("log")  # on less than a decade its ticks run into each other
        axes.xaxis.set_minor_formatter("")  # labels of minor ticks run into each other
        axes.set_xlabel("multiply-adds, dense epochs" if table.counts_adds else "cost, dense epochs")
        axes.grid(alpha=0.3)

    return _by_density(table, "test accuracy, %", draw)


def course_picture(table: Table) -> bytes | None:
    """Dead weights and accuracy along the training, for methods whose density falls while they train."""
    courses = {line.name: (line, _course(min(line.rows, key=lambda row: row.density))) for line in _lines(table)}
    courses = {name: (line, course) for name, (line, course) in courses.items() if len(course) > 2}
    if not courses:
        return None
    whole, (dead, accuracy) = figure(2, width=4.6, height=4.0)
    for line, course in courses.values():
        compression = [1.0 / density for density in course]
        for axes, number in ((dead, 0), (accuracy, 1)):
            values = [100 * statistics.fmean(point[number] for point in points) for points in course.values()]
            axes.plot(compression, values, marker="o", markersize=3, **line.style)
    for axes, label in ((dead, "dead weights among the kept, %"), (accuracy, "validation accuracy, %")):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="compression (all weights / kept weights)", ylabel=label)
        axes.grid(alpha=0.3)
    dead.set_title(table.title, fontsize=9, parse_math=False)
    _legend([dead, accuracy], fontsize=7)
    return png(whole)


def _course(row: Row) -> dict[float, list[tuple[float, float]]]:
    """Density, falling -> (share of dead weights, validation accuracy) of each seed in the last epoch at that density."""
    found: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for metrics in row.good.values():
        last = {entry["density"]: entry for entry in metrics["history"] if "density" in entry and "accuracy" in entry}
        for density, entry in last.items():
            found[density].append((1.0 - entry["effective_density"] / density, entry["accuracy"]))
    return dict(sorted(found.items(), reverse=True))


PICTURES = {
    "accuracy": accuracy_picture, "ranks": rank_picture, "layers": layer_picture, "cost": cost_picture,
    "course": course_picture,
}  # fmt: skip
