"""Cost against size: time and memory of the benchmark's decoders, and the exponents of power laws through them.

The decoders are of one form and are given the same number of tokens, so that nothing but the number of weights grows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from panning.foundation.pictures import OURS, PALETTE, Picture, figure, in_style, legend
from panning.foundation.records import RunRecord
from panning.measure.networks import DECODERS

#: The items that are drawn, in the order of the legend.
DRAWN = (
    "pass", "SNIP", "SNIP + GraSP + loss + gradient norm", "SynFlow round", "allocation", "alive test", "agent's round",
)  # fmt: skip
FIT_COLUMNS = (
    "item",
    "sizes",
    "time grows as weights to the",
    "ns a weight",
    "memory grows as weights to the",
    "bytes a weight",
)
OF_SIZE = (
    "Cost against size, on decoders of one form with 512 tokens: exponents of power laws fitted by least squares to the "
    "logarithms; ns and bytes a weight are those of the largest."
)


@dataclass(frozen=True)
class Fit:
    """One item over the decoders.

    Attributes:
        n_weights: prunable, ascending.
        seconds: of processor time.
        peak_bytes: above what was resident before.
        of_time, of_memory: exponents; None with fewer than two sizes.
    """

    item: str
    n_weights: tuple[int, ...]
    seconds: tuple[float, ...]
    peak_bytes: tuple[int | None, ...]
    of_time: float | None
    of_memory: float | None


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The slope of a line through the logarithms; None where there are fewer than two sizes or a cost is 0.

    Examples:
        >>> from panning.measure.sizes import exponent
        >>> exponent([1.0, 10.0, 100.0], [2.0, 200.0, 20000.0])
        2.0
    """
    if len(set(sizes)) < 2 or min(costs, default=0.0) <= 0:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return round(statistics.linear_regression(x, y).slope, 9)


def fits(records: Iterable[RunRecord]) -> list[Fit]:
    """The items that were timed on two sizes of decoders at least, on one thread."""
    points: dict[str, dict[int, tuple[float, int | None]]] = {item: {} for item in DRAWN}
    for record in records:
        config, metrics = record.config, record.metrics
        if record.kind != "speed" or config["threads"] != 1 or config["model"] not in DECODERS:
            continue
        if metrics["error"] is None and config["item"] in points:
            points[config["item"]][metrics["n_weights"]] = metrics["cpu_seconds"], metrics.get("peak_bytes")
    return [_fit(item, sorted(found.items())) for item, found in points.items() if len(found) > 1]


def _fit(item: str, found: list[tuple[int, tuple[float, int | None]]]) -> Fit:
    sizes, seconds, peaks = (
        tuple(n for n, _ in found), tuple(time for _, (time, _) in found), tuple(peak for _, (_, peak) in found)
    )  # fmt: skip
    of_memory = exponent(sizes, [float(peak or 0) for peak in peaks])
    return Fit(item, sizes, seconds, peaks, exponent(sizes, seconds), of_memory)


def fit_cells(found: Sequence[Fit]) -> list[list[str]]:
    """The lines of the table."""
    cells = []
    for fit in found:
        largest, peak = fit.n_weights[-1], fit.peak_bytes[-1]
        sizes = ", ".join(f"{n / 1e6:.3g} M" for n in fit.n_weights)
        powers = ["-" if power is None else f"{power:.2f}" for power in (fit.of_time, fit.of_memory)]
        of_weight = "-" if peak is None else f"{peak / largest:.3g}"
        cells.append([fit.item, sizes, powers[0], f"{1e9 * fit.seconds[-1] / largest:.3g}", powers[1], of_weight])
    return cells


@in_style
def size_picture(found: Sequence[Fit]) -> Picture:
    """Time and memory of one of each item, over the number of prunable weights; both axes are logarithmic."""
    whole, (of_time, of_memory) = figure("Decoders, 512 tokens: cost against size", 2, width=4.2, height=3.2)
    for number, fit in enumerate(found):
        colour = OURS if fit.item == "agent's round" else PALETTE[number % len(PALETTE)]
        power = "" if fit.of_time is None else f", weights^{fit.of_time:.2f}"
        of_time.loglog(fit.n_weights, fit.seconds, "o-", color=colour, label=f"{fit.item}{power}")
        known = [(n, peak / 1e6) for n, peak in zip(fit.n_weights, fit.peak_bytes, strict=True) if peak]
        of_memory.loglog([n for n, _ in known], [peak for _, peak in known], "o-", color=colour)
    of_time.set(xlabel="prunable weights", title="seconds of processor time")
    of_memory.set(xlabel="prunable weights", title="peak memory above the network's, MB")
    for axes in (of_time, of_memory):  # plain numbers: formulas are not drawn
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(lambda value, _: "")
    legend(whole, [of_time])
    columns = ["item", "n_weights", "cpu_seconds", "peak_bytes"]
    rows = [
        [fit.item, *point] for fit in found for point in zip(fit.n_weights, fit.seconds, fit.peak_bytes, strict=True)
    ]
    return Picture(whole, columns, rows)
