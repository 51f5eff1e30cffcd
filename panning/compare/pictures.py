"""Pictures of a grid, from its tables, each with its numbers."""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from panning.compare.accuracy import accuracy_picture
from panning.compare.lines import Line, error_of, error_span, is_ours, legend_of, lines, n_seeds, numbers
from panning.compare.rows import Row, line_label
from panning.compare.statistics import SUMMARY, summary
from panning.compare.tables import Table
from panning.foundation.pictures import OURS, Picture, draw_layers, figure, in_style, layer_axes, log_axis


@in_style
def rank_picture(table: Table) -> Picture | None:
    """The critical-difference diagram: methods that a bar joins are not told apart (Demsar 2006; Nemenyi's test)."""
    if (found := table.ranks) is None:
        return None
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    what = f"{table.title}: mean rank on test, {found.n_blocks} pairs of density and seed"
    title = f"{what}\nbars join methods that Nemenyi's test does not tell apart"
    whole, (axes,) = figure(title, width=8.6, height=1.1 + 0.17 * len(found.names))
    colours = {i: OURS if is_ours(name) else "0.35" for i, name in enumerate(found.names)}
    # Methods go by number: the bars are found in sets, and sets of names have another order in every process.
    drawn = critical_difference_diagram(
        dict(enumerate(found.mean_ranks)), pd.DataFrame(found.p_pairs), ax=axes, label_props={"fontsize": 8},
        label_fmt_left="{label:d}", label_fmt_right="{label:d}", color_palette=colours,
        crossbar_props={"color": "0.2", "linewidth": 2.5},
    )  # fmt: skip
    axes.grid(visible=False)
    for text in drawn["labels"]:
        number = int(text.get_text())
        name, rank = (
            textwrap.fill(line_label(table.rows_of(found.names[number])), 42),
            f"{found.mean_ranks[number]:.1f}",
        )
        text.set(text=f"{name}  {rank} " if text.get_ha() == "right" else f" {rank}  {name}", color=colours[number])
        text.set_fontweight("bold" if colours[number] == OURS else "normal")
    rows = [
        [line_label(table.rows_of(n)), r, found.n_blocks] for n, r in zip(found.names, found.mean_ranks, strict=True)
    ]
    return Picture(whole, ("method", "mean_rank", "n_blocks"), rows)


def _panels(table: Table, title: str, width: float, ylabel: str, xlabel: str = "") -> tuple[Any, list[Any]]:
    """A panel for each density, all with the same axes."""
    n = len(table.densities)
    columns = min(n, 2 if n == 4 else 3)
    width = max(width, 6.4 / columns)  # the legend needs room, too
    whole, panels = figure(title, n, width=width, height=2.5, columns=columns, sharex=True, sharey=True)
    for axes, density in zip(panels, table.densities, strict=True):
        axes.set_title(f"{table.level} {density:.3g}")
        axes.set_ylabel(ylabel if axes in panels[::columns] else "")
        axes.set_xlabel(xlabel if axes in panels[-columns:] else "")
        axes.tick_params(labelbottom=axes in panels[-columns:])
    return whole, panels


def _in_panels(table: Table, panels: Sequence[Any]) -> Iterator[tuple[Any, Line, Row]]:
    """Every row that did not fail everywhere, with its line and the panel of its density."""
    of_density = dict(zip(table.densities, panels, strict=True))
    return ((of_density[row.density], line, row) for line in lines(table) for row in line.rows)


@in_style
def layer_picture(table: Table) -> Picture | None:
    """Density of each layer, a mean over seeds; one panel for each density. A layer without a weight stands at "none"."""
    of_lines = {
        (line.method, row.density): _layers(row) for line in lines(table) if line.has_colour for row in line.rows
    }
    if not of_lines:
        return None
    names = list(next(iter(of_lines.values())))
    n = n_seeds(table)
    title = f"{table.title}: density of each layer, mean over {n} seed{'s' if n > 1 else ''}"
    whole, panels = _panels(table, title, max(2.7, 0.17 * len(names)), "density of the layer")
    none = layer_axes(panels, names, (mean for found in of_lines.values() for mean, *_ in found.values()))
    for axes, line, row in _in_panels(table, panels):
        if line.has_colour:
            draw_layers(axes, [mean for mean, *_ in of_lines[line.method, row.density].values()], none, line.style)
    rows = [
        [row.label, row.density, name, *found]
        for _, line, row in _in_panels(table, panels) if line.has_colour
        for name, found in of_lines[line.method, row.density].items()
    ]  # fmt: skip
    legend_of(whole, panels, lines(table))
    return Picture(whole, ("method", "density", "layer", *SUMMARY), rows)


def _layers(row: Row) -> dict[str, tuple[float, float, int, float, float]]:
    """Layer -> its density over the seeds."""
    of_seeds = [dict(metrics["layer_densities"]) for metrics in row.good.values()]
    return {name: summary([layers[name] for layers in of_seeds]) for name in of_seeds[0]}


@in_style
def cost_picture(table: Table) -> Picture | None:
    """Error against the cost of search, scoring and training, one panel for each density, all with the same axes."""
    works = [table.work(row) for row in table.rows if row.good]
    if not works:
        return None
    title = f"{table.title}: test error against cost (search, scoring, training)"
    title += f"\nmean over {n_seeds(table)} seeds; dotted: dense network"
    xlabel = "multiply-adds, dense epochs" if table.counts_adds else "cost, dense epochs"
    whole, panels = _panels(table, title, 2.7, "test error, % (log scale)", xlabel)
    low, high = error_span(table)
    for axes, line, row in _in_panels(table, panels):
        style = {**line.points, "label": line.style["label"]}
        axes.plot([table.work(row)], [error_of(row.mean("test_accuracy"), low)], **style)
    for axes in panels:
        axes.axhline(error_of(table.dense.mean("test_accuracy"), low), linestyle=":", color="0.3")
        log_axis(axes.yaxis, low, high)
        if min(works) > 0:
            log_axis(axes.xaxis, min(works) / 1.2, max(works) * 1.2)
    legend_of(whole, panels, lines(table))
    rows = [[row.label, row.density, table.work(row), *numbers(row)[3:]] for _, _, row in _in_panels(table, panels)]
    return Picture(whole, ("method", "density", "cost_epochs", *SUMMARY), rows)


@in_style
def course_picture(table: Table) -> Picture | None:
    """Dead weights and accuracy along the training, for methods whose density falls while they train."""
    courses = [(line, course_of(min(line.rows, key=lambda row: row.density))) for line in lines(table)]
    courses = [(line, course) for line, course in courses if len(course) > 2]
    if not courses:
        return None
    target = min(row.density for line, _ in courses for row in line.rows)
    title = f"{table.title}: the training down to density {target:.4g}, mean over {n_seeds(table)} seeds"
    whole, (dead, accuracy) = figure(title, 2, width=4.3, height=3.6, sharex=True)
    rows: list[list[object]] = []
    for line, course in courses:
        x = [1.0 / density for density in course]
        parts = [[list(part) for part in zip(*points, strict=True)] for points in course.values()]
        for axes, number in ((dead, 0), (accuracy, 1)):
            axes.plot(x, [100 * statistics.fmean(part[number]) for part in parts], **line.style)
        rows += [
            [line_label(line.rows), density, statistics.fmean(shares), *summary(values)]
            for density, (shares, values) in zip(course, parts, strict=True)
        ]
    dead.set(ylabel="dead weights, % of the kept", title="dead weights")
    accuracy.set(ylabel="validation accuracy, %", title="validation accuracy")
    ends = [1.0 / density for _, course in courses for density in course]
    for axes in (dead, accuracy):
        log_axis(axes.xaxis, min(ends) / 1.1, max(ends) * 1.1, 10)
        axes.set_xlabel("compression: all weights / kept weights")
    legend_of(whole, [dead], [line for line, _ in courses])
    return Picture(whole, ("method", "density", "dead_share", *SUMMARY), rows)


def course_of(row: Row) -> dict[float, list[tuple[float, float]]]:
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
