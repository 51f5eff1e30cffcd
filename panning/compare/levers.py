"""Measure how much each lever changes accuracy: functional analysis of variance over combinations of levers, case by case.

A case is one network, data set, recipe and density; its values are the accuracies on the validation part of all
combinations that every seed has, a failure counting as chance. ``forest`` gives the effects; their intervals are percentiles
of a bootstrap over combinations and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.compare.forest import Effects, effects, foreseen
from panning.compare.rows import Row
from panning.compare.statistics import whole
from panning.compare.tables import Table, tables
from panning.compare.variance import Effect, Estimate
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord
from panning.jobs.levers import LeverAction
from panning.pruners.quotas import QuotaSource

Array = NDArray[Any]
N_RESAMPLES = 60
#: Resamples have smaller forests, and so have those of combinations that are dealt out anew.
N_TREES = 16
N_SHUFFLES = 20
#: Fewer combinations tell of nothing.
LEAST = 8


def _shares(texts: Sequence[str]) -> Array:
    """Texts of shares as points: an axis a name."""
    parsed = [QuotaSource.parse(text).shares for text in texts]
    names = sorted({name for shares in parsed for name in shares})
    return np.array([[shares.get(name, 0.0) for name in names] for shares in parsed])


def _numbers(values: Sequence[float]) -> Array:
    return np.array([[float(value)] for value in values])


def _of(order: Sequence[Any]) -> Callable[[Sequence[Any]], Array]:
    return lambda values: _numbers([order.index(value) for value in values])


#: Lever -> how its levels are points that trees cut, in the order of tables.
LEVERS: dict[str, Callable[[Sequence[Any]], Array]] = {
    "mix": _shares, "quotas": _shares, "spread": _numbers, "balance": _numbers, "n_rounds": _numbers, "step": _numbers,
    "start": _of(("none", "gain")), "all_alive": _of((False, "in_layers", True)),
}  # fmt: skip
#: Level -> its name in tables, where the level itself is no word for a reader.
NAMED = {False: "no", True: "yes", "in_layers": "in layers", "none": "as drawn"}
Level = Any


@dataclass(frozen=True, eq=False)
class Case:
    """One network, data set, recipe and density.

    Attributes:
        network: what cases have in common that differ in density alone.
        levels: lever -> its levels, at least two.
        accuracy: [combinations, seeds], of the validation part.
        rows: [combinations, levers], numbers of levels.
        labels: of the combinations.
        seen: observations of the dense network, where the records have them.
        n_failed: cells that count as chance.
    """

    network: str
    density: float
    levels: Mapping[str, tuple[Level, ...]]
    accuracy: Array
    rows: Array
    labels: tuple[str, ...]
    seen: Mapping[str, float]
    n_failed: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.density:g}"

    @property
    def points(self) -> list[Array]:
        return [LEVERS[lever](levels) for lever, levels in self.levels.items()]

    @property
    def means(self) -> Array:
        """The mean accuracy of each combination, [combinations]."""
        return np.asarray(self.accuracy.mean(1))

    @property
    def spread(self) -> float:
        """The standard deviation between the combinations' means."""
        return float(self.means.std())

    @property
    def noise(self) -> float:
        """The share of the variance between combinations that seeds alone make; NaN of one seed."""
        n_rows, n_seeds = self.accuracy.shape
        if n_seeds < 2 or not self.spread:
            return np.nan
        rest = self.accuracy - self.means[:, None] - self.accuracy.mean(0) + self.accuracy.mean()
        by_seeds = float((rest**2).sum()) / ((n_rows - 1) * (n_seeds - 1)) / n_seeds
        return min(1.0, by_seeds * (n_rows - 1) / n_rows / self.spread**2)


@dataclass(frozen=True, eq=False)
class Study:
    """The effects of the levers in one case.

    Attributes:
        shares: lever, or two -> the share of the variance over all combinations; () is of more levers at once.
        gains: lever -> level -> mean accuracy over all combinations with it, minus that over all.
        foreseen: R^2 of the forest for combinations that it has not seen.
        chance: what a lever without effect has at most as its share (95 %), when accuracies are dealt out anew.
    """

    case: Case
    shares: Mapping[Effect, Estimate]
    gains: Mapping[str, Mapping[Level, Estimate]]
    foreseen: float
    chance: float

    @property
    def best(self) -> dict[str, Level]:
        """Lever -> the level with the largest gain."""
        return {lever: max(of, key=lambda level: of[level].value) for lever, of in self.gains.items()}

    @property
    def best_row(self) -> int:
        """The combination with the best mean; it had the luck of the best, too."""
        return int(self.case.means.argmax())

    def as_json(self) -> dict[str, Any]:
        """Everything, unrounded."""
        case = self.case
        return {
            "network": case.network, "density": case.density, "n_combinations": len(case.rows),
            "n_seeds": case.accuracy.shape[1], "n_failed": case.n_failed, "spread": case.spread,
            "noise": _number(case.noise), "foreseen": _number(self.foreseen), "chance": self.chance,
            "shares": [{"levers": list(levers), **_estimate(share)} for levers, share in self.shares.items()],
            "gains": [
                {"lever": lever, "level": level, **_estimate(gain)}
                for lever, of in self.gains.items() for level, gain in of.items()
            ],
            "best": self.best,
            "best_combination": {"label": case.labels[self.best_row], "accuracy": float(case.means[self.best_row])},
            "seen": dict(case.seen),
        }  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _estimate(found: Estimate) -> dict[str, float | None]:
    return {name: _number(value) for name, value in vars(found).items()}


def cases(records: Iterable[RunRecord], best: float = 1.0) -> list[Case]:
    """The cases that records hold, by network and falling density.

    Args:
        best: look at this share of the combinations, the best by their means: accuracies below the worst of them count as
            its mean. Masks that do not train at all would make most of the variance otherwise.

    Raises:
        PanningError: if there is none.
    """
    found = [_case(table, density, best) for table in tables(records) for density in table.densities]
    if not (there := [case for case in found if case is not None]):
        raise PanningError(
            f"These records hold no combinations of levers: at one density at least {LEAST} rows of a contender levers, as "
            "{levers: {mix: [snip, synflow], quotas: [own, erk]}, drawn: 48} of a grid makes them (configs/bench/"
            "levers-study.yaml), over seeds that all of them have."
        )
    return there


def _case(table: Table, density: float, best: float) -> Case | None:
    rows = {row: levels for row in table.at(density) if (levels := _levels_of(row)) is not None}
    of_cells = {row.label: _accuracies(row, table.dense) for row in rows}
    names, seeds = whole(of_cells)
    kept = sorted((row for row in rows if row.label in set(names)), key=lambda row: row.label)
    levels = {lever: tuple(_sorted({rows[row][lever] for row in kept})) for lever in LEVERS}
    levels = {lever: of for lever, of in levels.items() if len(of) > 1}
    if len(kept) < LEAST or not levels:
        return None
    numbers = [[of.index(rows[row][lever]) for lever, of in levels.items()] for row in kept]
    accuracy = np.array([[of_cells[row.label][seed] for seed in seeds] for row in kept])
    worst = np.sort(accuracy.mean(1))[-max(1, round(best * len(kept)))]
    return Case(
        table.title, density, levels, np.maximum(accuracy, worst) if best < 1 else accuracy, np.array(numbers),
        tuple(row.label for row in kept), _seen(kept),
        sum(cell.metrics["error"] is not None for row in kept for cell in row.cells if cell.config["seed"] in seeds),
    )  # fmt: skip


def _levels_of(row: Row) -> dict[str, Level] | None:
    """The level of each lever; None of a row that other things make, too."""
    if row.by.get("policy") != "levers" or "dynamic" in row.by or "members" in row.by:
        return None
    by = LeverAction.model_validate(row.by)
    return {**{lever: getattr(by, lever) for lever in LEVERS if lever != "all_alive"}, "all_alive": row.identity[1]}


def _sorted(levels: Iterable[Level]) -> list[Level]:
    """Numbers by size, texts by letter, in the order of their points."""
    return sorted(levels, key=lambda level: (isinstance(level, str), level))


def _accuracies(row: Row, dense: Row) -> dict[object, float]:
    """Seed -> accuracy on the validation part; of a cell that failed, that of a guess."""
    n_outputs = max((int(metrics.get("n_outputs", 0)) for metrics in dense.good.values()), default=0)
    guess = 1.0 / n_outputs if n_outputs else 0.0
    return {
        cell.config["seed"]: float(cell.metrics["accuracy"]) if cell.metrics["error"] is None else guess
        for cell in row.cells
    }


def _seen(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each observation over the cells that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for metrics in row.good.values():
            for name, value in metrics.get("seen") or ():
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


# --- effects ---


def studies(records: Iterable[RunRecord], n_resamples: int = N_RESAMPLES, best: float = 1.0) -> list[Study]:
    """The study of every case.

    Args:
        best: as for ``cases``.
        n_resamples: of the bootstrap; accuracies are dealt out anew as often, but no more than ``N_SHUFFLES`` times.
    """
    return [study(case, n_resamples) for case in cases(records, best)]


def study(case: Case, n_resamples: int = N_RESAMPLES) -> Study:
    """The effects of the levers in one case."""
    rng, names, points = np.random.default_rng(0), list(case.levels), case.points
    n_rows, n_seeds = case.accuracy.shape
    found = effects(points, case.rows, case.means)
    draws = []
    for _ in range(n_resamples):
        rows, seeds = rng.integers(n_rows, size=n_rows), rng.integers(n_seeds, size=n_seeds)
        draws.append(effects(points, case.rows[rows], case.accuracy[rows][:, seeds].mean(1), N_TREES))
    n_shuffles = min(n_resamples, N_SHUFFLES)
    shuffled = [effects(points, case.rows, rng.permutation(case.means), N_TREES) for _ in range(n_shuffles)]
    nothing = [one.shares[i,] for one in shuffled for i in range(len(names))]
    return Study(
        case,
        {tuple(names[i] for i in effect): share for effect, share in _estimated(found, draws, lambda e: e.shares).items()},
        _gains(case, found, draws), foreseen(points, case.rows, case.means), float(np.quantile(nothing, 0.95)),
    )  # fmt: skip


def _gains(case: Case, found: Effects, draws: Sequence[Effects]) -> dict[str, dict[Level, Estimate]]:
    def flat(one: Effects) -> dict[tuple[int, int], float]:
        return {(i, j): float(gain) for i, main in enumerate(one.mains) for j, gain in enumerate(main)}

    estimates = _estimated(found, draws, flat)
    return {
        lever: {level: estimates[i, j] for j, level in enumerate(levels)}
        for i, (lever, levels) in enumerate(case.levels.items())
    }


def _estimated(
    found: Effects, draws: Sequence[Effects], told: Callable[[Effects], dict[Any, float]]
) -> dict[Any, Estimate]:
    """Each number that is told of the effects, with the percentiles of the same number of resamples."""
    values, resampled = told(found), [told(one) for one in draws]
    bounds = {
        key: np.quantile([one[key] for one in resampled], [0.025, 0.975]) if resampled else (np.nan, np.nan)
        for key in values
    }
    return {key: Estimate(value, float(bounds[key][0]), float(bounds[key][1])) for key, value in values.items()}


def level_name(level: Level) -> str:
    """The name of a level in tables."""
    if isinstance(level, float | int) and not isinstance(level, bool):
        return f"{level:g}"
    return NAMED.get(level, str(level))


def all_levels(found: Sequence[Case]) -> dict[str, list[Level]]:
    """Lever -> the levels that any case has."""
    return {
        lever: levels for lever in LEVERS
        if (levels := _sorted({level for case in found for level in case.levels.get(lever, ())}))
    }  # fmt: skip


def crossed(found: Sequence[Study]) -> Iterable[tuple[str, Level]]:
    """Each lever with each of its levels."""
    of_all = all_levels([one.case for one in found])
    return ((lever, level) for lever, levels in of_all.items() for level in levels)
