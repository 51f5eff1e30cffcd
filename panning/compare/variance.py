"""Which factor of a mask makes the difference: quotas, places, starts and all-alive repair of a full factorial.

Functional analysis of variance: m being the mean accuracy of a cell over seeds, the effect of a set S of factors is

    f_S = sum over T in S of (-1)^(|S| - |T|) * (mean of m over all factors that are not in T),

and the variance of m over the cells is exactly the sum of the variances of the effects. Of each, what seeds alone would make
of it is taken off: its degrees of freedom / number of cells * s^2 / n, s^2 being the variance that is left in a cell once
the seeds' own means are taken off; shares are of what remains. Their intervals are percentiles of a bootstrap over seeds.
NOTE of few seeds a bootstrap's interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from panning.compare.rows import Row
from panning.compare.statistics import interval
from panning.compare.tables import Table, tables
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord
from panning.foundation.tables import markdown_table
from panning.foundation.text import in_markdown
from panning.jobs.ways import REPAIRS, Method
from panning.pruners import PRUNERS, Form, told_form
from panning.pruners.quotas import QUOTA_LABELS, RandomQuotas

#: The factors, in the order of tables.
FACTORS = ("quotas", "places", "start", "repair")
N_RESAMPLES = 2000
Array = NDArray[np.floating]
#: A level of each factor.
Levels = tuple[str, ...]
#: Names of factors; more than one are an interaction.
Effect = tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval of 95 %."""

    value: float
    low: float
    high: float

    def shown(self, scale: float, form: str) -> str:
        """With the interval, which one seed has none of."""
        low_to_high = f" [{scale * self.low:{form}}, {scale * self.high:{form}}]"
        return f"{scale * self.value:{form}}" + ("" if math.isnan(self.low) else low_to_high)


@dataclass(frozen=True)
class Analysis:
    """One network, data set, recipe and density.

    Attributes:
        shares: effect -> its share of the variance between cells, what seeds alone make taken off; they sum to 1.
        levels: (factor, level) -> mean accuracy over all cells of this level minus that over all cells.
        spread: the standard deviation between the cells' means.
        noise: the share of the cells' variance that seeds alone make.
        left_out: the rows that are no cells of the factorial.
    """

    title: str
    density: float
    n_cells: int
    n_seeds: int
    shares: Mapping[Effect, Estimate]
    levels: Mapping[tuple[str, str], Estimate]
    spread: float
    noise: float
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Everything, unrounded."""
        return {
            **{name: getattr(self, name) for name in ("title", "density", "n_cells", "n_seeds", "spread", "noise")},
            "shares": [{"factors": list(effect), **vars(share)} for effect, share in self.shares.items()],
            "levels": [{"factor": f, "level": level, **vars(gain)} for (f, level), gain in self.levels.items()],
            "left_out": list(self.left_out),
        }


def analyses(records: Iterable[RunRecord]) -> list[Analysis]:
    """The analysis of each table of a grid at each density that holds a factorial of at least two factors.

    Raises:
        PanningError: if there is none.
    """
    found = [_analysis(table, density) for table in tables(records) for density in table.densities]
    if not (there := [one for one in found if one is not None]):
        raise PanningError(
            "These records hold no full factorial: at one density, methods whose quotas, places, starts or all-alive repair "
            "are crossed, each level of one with each of another, over seeds that failed in none (configs/bench/"
            "levers-lenet5.yaml)."
        )
    return there


def _analysis(table: Table, density: float) -> Analysis | None:
    rows: dict[Levels, Row] = {}
    for row in table.at(density):
        if (levels := levels_of(row)) is not None:
            rows.setdefault(levels, row)
    whole = complete(rows)
    names = [name for i, name in enumerate(FACTORS) if len({levels[i] for levels in whole}) > 1]
    seeds = sorted(set.intersection(*(set(row.good) for row in whole.values()))) if whole else []
    if len(names) < 2 or not seeds:
        return None
    crossed = [sorted({levels[FACTORS.index(name)] for levels in whole}) for name in names]
    by_cell = {tuple(levels[FACTORS.index(name)] for name in names): row for levels, row in whole.items()}
    values = np.array([[by_cell[cell].values("test_accuracy")[s] for s in seeds] for cell in product(*crossed)])
    values = values.reshape(*map(len, crossed), len(seeds))
    shares, noise = variance_shares(values)
    gains = {
        (name, level): _estimate(values.take(i, axis).reshape(-1, len(seeds)).mean(0) - _over_cells(values))
        for axis, (name, some) in enumerate(zip(names, crossed, strict=True))
        for i, level in enumerate(some)
    }
    left = tuple(row.label for row in table.at(density) if row not in whole.values())
    return Analysis(
        table.title, density, len(whole), len(seeds),
        {tuple(names[axis] for axis in effect): share for effect, share in shares.items()}, gains,
        float(values.mean(-1).std()), noise, left,
    )  # fmt: skip


def levels_of(row: Row) -> Levels | None:
    """The level of each factor of ``FACTORS``; None for a row that another thing makes, too."""
    if not row.by or any(name in row.by for name in ("policy", "control", "dynamic", "members", "released")):
        return None
    method, form = row.by.get("method"), Method.model_validate(row.by).form
    if form.shape is not None or form.has_bounds:
        return None
    pruner = None if method is None else PRUNERS[method].pruner
    if isinstance(pruner, RandomQuotas):
        own = (QUOTA_LABELS[pruner.quotas], "lot")
    else:
        own = ("", "") if method is None else (PRUNERS[method].label, f"{PRUNERS[method].label}'s own")
    quotas, place = (told_form(Form(quotas=form.quotas)), told_form(Form(place=form.place)))
    return (
        quotas[0].removeprefix("quotas of ") if quotas else own[0],
        place[0].replace("places by ", "") if place else own[1],
        row.fixed_start or "as drawn",
        REPAIRS[row.cells[0].config["all_alive"]].removeprefix(" + ") or "none",
    )


def complete(cells: Mapping[Levels, Row]) -> dict[Levels, Row]:
    """The cells of a full factorial: levels go, the one that is crossed with the fewest others first, until none lacks."""
    left = dict(cells)
    while left:
        levels = [sorted({cell[i] for cell in left}) for i in range(len(FACTORS))]
        n = math.prod(map(len, levels))
        if len(left) == n:
            return left
        filled = {
            (i, level): sum(cell[i] == level for cell in left) * len(some) / n
            for i, some in enumerate(levels)
            if len(some) > 1
            for level in some
        }
        axis, level = min(filled, key=lambda which: (filled[which], which))
        left = {cell: row for cell, row in left.items() if cell[axis] != level}
    return left


def variance_shares(values: Array) -> tuple[dict[tuple[int, ...], Estimate], float]:
    """Shares of the variance between the cells of a full factorial, and the share of it that seeds alone make.

    Args:
        values: [levels of each factor ..., seeds]; values of one seed are paired.

    Returns:
        axes of an effect -> its share.

    Examples:
        >>> import numpy as np
        >>> from panning.compare.variance import variance_shares
        >>> first, second = np.array([-2.0, 2.0]), np.array([-1.0, 1.0])
        >>> shares, noise = variance_shares(np.repeat((first[:, None] + second)[..., None], 3, axis=-1))
        >>> {effect: round(share.value, 3) for effect, share in shares.items()}, noise
        ({(0,): 0.8, (1,): 0.2, (0, 1): 0.0}, 0.0)
    """
    *sizes, n = values.shape
    n_cells = math.prod(sizes)
    effects = [some for count in range(1, len(sizes) + 1) for some in combinations(range(len(sizes)), count)]
    freedom = np.array([math.prod(sizes[axis] - 1 for axis in effect) for effect in effects], dtype=float)
    rest = values - values.mean(-1, keepdims=True) - _over_cells(values) + values.mean()
    by_seeds = float((rest**2).sum()) / ((n_cells - 1) * (n - 1)) / n if n > 1 else 0.0
    found = _parts(values.mean(-1)[..., None], effects, freedom / n_cells * by_seeds)[:, 0]
    low = high = np.full(len(effects), math.nan)
    if n > 1:
        drawn = np.random.default_rng(0).integers(n, size=(N_RESAMPLES, n))
        means = values[..., drawn].mean(-1)
        # A resample's mean varies about the seeds' own, which varies itself: nearly twice the variance is taken off.
        low, high = np.quantile(
            _parts(means, effects, freedom / n_cells * by_seeds * (2 - 1 / n)), [0.025, 0.975], axis=1
        )
    total = float(values.mean(-1).var())
    estimates = (Estimate(*map(float, each)) for each in zip(found, low, high, strict=True))
    noise = (n_cells - 1) / n_cells * by_seeds / total if total > 0 else 0.0
    return dict(zip(effects, estimates, strict=True)), min(1.0, noise)


def _parts(means: Array, effects: Sequence[tuple[int, ...]], noise: Array) -> Array:
    """Shares [effects, draws] of means [levels of each factor ..., draws], less the variance that is noise."""
    axes = set(range(means.ndim - 1))
    made: dict[tuple[int, ...], Array] = {(): means.mean(tuple(axes), keepdims=True)}
    for effect in effects:  # smaller effects come first
        inner = [made[some] for count in range(len(effect)) for some in combinations(effect, count)]
        made[effect] = means.mean(tuple(axes - set(effect)), keepdims=True) - sum(inner)
    squares = np.array([(made[effect] ** 2).mean(tuple(axes)) for effect in effects])
    parts = np.maximum(squares - noise[:, None], 0.0)
    total = parts.sum(0)
    return np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)


def _over_cells(values: Array) -> Array:
    return values.mean(tuple(range(values.ndim - 1)))


def _estimate(by_seed: Array) -> Estimate:
    return Estimate(float(by_seed.mean()), *interval(by_seed))


# --- text ---


def by_title(found: Sequence[Analysis]) -> dict[str, list[Analysis]]:
    """The analyses of each table, by falling density."""
    return {title: [one for one in found if one.title == title] for title in dict.fromkeys(one.title for one in found)}


def share_cells(found: Sequence[Analysis]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the shares of one table: a line for each effect, a column for each density."""
    effects = dict.fromkeys(effect for one in found for effect in one.shares)
    columns = ["share of the variance between masks, %", *(f"{one.density:g}" for one in found)]
    lines = [
        [" x ".join(effect), *(one.shares[effect].shown(100, ".0f") if effect in one.shares else "-" for one in found)]
        for effect in effects
    ]
    return columns, [
        *lines,
        ["standard deviation between masks, points", *(f"{100 * one.spread:.2f}" for one in found)],
        ["of its variance by seeds alone, %", *(f"{100 * one.noise:.0f}" for one in found)],
        ["masks x seeds", *(f"{one.n_cells} x {one.n_seeds}" for one in found)],
    ]


def level_cells(found: Sequence[Analysis]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the levels of one table: a line for each level, a column for each density."""
    levels = dict.fromkeys(level for one in found for level in one.levels)
    columns = ["factor", "level", *(f"{one.density:g}" for one in found)]
    return columns, [
        [*level, *(one.levels[level].shown(100, "+.2f") if level in one.levels else "-" for one in found)]
        for level in levels
    ]


def markdown(records: Iterable[RunRecord]) -> str:
    """The page: both tables of each table of the grid, with what a reader must know of them."""
    lines = [
        "Shares of the variance of test accuracy (last epoch) between the masks of a full factorial, for each factor and "
        "each interaction; what seeds alone would make of each is taken off, and the rest sums to 100 %. Intervals of 95 % "
        "are of a bootstrap over seeds, and of few seeds too narrow.",
        "",
    ]
    for title, some in by_title(analyses(records)).items():
        left = dict.fromkeys(label for one in some for label in one.left_out)
        lines += [
            f"## {in_markdown(title)}", "", *markdown_table(*share_cells(some)), "",
            "Mean accuracy of all masks of a level minus that of all masks, in points, with Student's interval of 95 % over "
            "seeds:", "", *markdown_table(*level_cells(some)), "",
            *([in_markdown(f"No cells of the factorial: {', '.join(left)}."), ""] if left else []),
        ]  # fmt: skip
    return "\n".join(lines)
