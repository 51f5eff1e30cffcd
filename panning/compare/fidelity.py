"""How well cheap trainings foresee the full one: rank correlation, and what choosing by them loses.

Everything that searches or rewards by short trainings stands on this. Judged from the records of a grid with ``short``
recipes: masks of one network at one density, trained in full and, in other cells, shortly. The validation part judges, as it
does in a search: a short training that was chosen on the test part would carry it into every later choice.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.compare.cells import by_place, recipe_text, start_of
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord
from panning.foundation.tables import markdown_table

COLUMNS = (
    "short training", "judged by", "share of the cost", "rank correlation, masks", "rank correlation, methods",
    "regret, points", "worst regret", "regret by lot", "n",
)  # fmt: skip

DIFFERENCE_COLUMNS = ("short trainings", "judged by", "share of the cost", "difference")

#: A figure of a short training -> whether more of it is better.
JUDGES = {"train_loss": False, "accuracy": True, "loss": False}
JUDGE_NAMES = {"train_loss": "training loss", "accuracy": "validation accuracy", "loss": "validation loss"}
N_RESAMPLES = 2000

#: Method and seed: they tell the masks of one setting apart.
MethodSeed = tuple[str, int]
#: Task and recipe as text, density.
Setting = tuple[str, float]
#: Training and its share of the cost -> the last figures of every mask in it.
Predictions = dict[tuple[str, float], dict[Setting, dict[MethodSeed, dict[str, float]]]]
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Estimate:
    """A mean over densities, and its interval of 95 % over the choice of methods that are ranked."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Foresight:
    """How well one short training, judged by one figure, foresees the full one.

    Attributes:
        share: the images of the short training by those of the full one.
        by_mask: Spearman's rank correlation over all masks.
        by_method: Spearman's rank correlation over the methods' means over seeds.
        regret: the final validation accuracy, in points, that is lost by taking the method that looks best on one seed in
            place of the method that is best over all seeds; a mean over densities and seeds. Of methods that look equal, the
            mean is taken.
        worst: the largest regret of one density and seed.
        by_lot: the regret of a method drawn by lot, a mean over densities.
        n: the number of pairs of density and seed.
        ranked: methods and number of seeds at each density.
        by_mask_drawn: ``by_mask`` of each resample; the resamples are the same for all that have the same ``ranked``.
    """

    training: str
    judge: str
    share: float
    by_mask: Estimate
    by_method: Estimate
    regret: float
    worst: float
    by_lot: float
    n: int
    ranked: tuple[tuple[tuple[str, ...], int], ...]
    by_mask_drawn: Array = field(repr=False, compare=False)

    def minus(self, other: Foresight) -> Estimate | None:
        """The difference in ``by_mask``, with its interval; None if the two rank different methods or seeds."""
        if self.ranked != other.ranked:
            return None
        low, high = np.quantile(self.by_mask_drawn - other.by_mask_drawn, [0.025, 0.975])
        return Estimate(self.by_mask.value - other.by_mask.value, float(low), float(high))

    def as_json(self) -> dict[str, Any]:
        """Every figure, unrounded; one that is not defined is null."""
        estimates = {name: vars(getattr(self, name)) for name in ("by_mask", "by_method")}
        names = ("training", "judge", "share", "regret", "worst", "by_lot", "n")
        found = {name: getattr(self, name) for name in names} | estimates
        return {name: _defined(value) for name, value in found.items()}


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def foresights(records: Iterable[RunRecord]) -> list[Foresight]:
    """How well every short training in ``records``, and every epoch of the full one, foresees the full one.

    Raises:
        PanningError: if nothing was trained shortly, or if at every density fewer than three methods were.
    """
    full, short = _trainings([record for record in records if record.kind == "cell"])
    if not full:
        raise PanningError("These records hold no full training; run a grid with short recipes to its end.")
    predictions = _predictions(full, short)
    if not predictions:
        raise PanningError("Every training has one epoch and there is no short one: there is nothing to foresee from.")
    found = []
    for (name, share), entries in sorted(predictions.items(), key=lambda item: (item[0][1], item[0][0])):
        for judge in JUDGES:
            tables = (_table(entries[setting], full[setting], judge) for setting in sorted(entries))
            if ranked := [table for table in tables if table is not None]:
                found.append(_foresight(name, judge, share, ranked))
    if not found:
        raise PanningError("At no density were three methods trained both ways: there is nothing to rank.")
    return found


def _trainings(
    cells: Sequence[RunRecord],
) -> tuple[dict[Setting, dict[MethodSeed, RunRecord]], dict[str, list[RunRecord]]]:
    """The full training of every mask, and the short trainings by the text that identifies the mask."""
    final, trials = by_place(cells)
    full: dict[Setting, dict[MethodSeed, RunRecord]] = defaultdict(dict)
    for (text, name, density), some in final.items():
        good = [cell for cell in some if cell.config["by"] is not None and cell.metrics["error"] is None]
        if good:
            full[text, density] |= {(name, cell.config["seed"]): cell for cell in good}
    tried = {trial.key for some in trials.values() for trial in some}  # with other learning rates: full trainings
    short: dict[str, list[RunRecord]] = defaultdict(list)
    for record in cells:
        if not record.config["test"] and record.metrics["error"] is None and record.key not in tried:
            short[_mask_text(record)].append(record)
    return full, short


def _predictions(
    full: Mapping[Setting, Mapping[MethodSeed, RunRecord]], short: Mapping[str, Sequence[RunRecord]]
) -> Predictions:
    found: Predictions = defaultdict(lambda: defaultdict(dict))
    for setting, masks in full.items():
        for mask, whole in masks.items():
            history = whole.metrics["history"]
            for n, entry in enumerate(history[:-1], start=1):
                name = f"the first {n} of its {len(history)} epochs"
                found[name, round(n / len(history), 4)][setting][mask] = entry
            for record in short.get(_mask_text(whole), ()):
                share = record.metrics["images_seen"] / whole.metrics["images_seen"]
                name = f"{recipe_text(record.config['recipe'])}, batches of {record.config['recipe']['batch_size']}"
                found[name, round(share, 4)][setting][mask] = record.metrics["history"][-1]
    return found


def _mask_text(record: RunRecord) -> str:
    """The config without the training: equal for all trainings of one mask from one start."""
    config = {k: v for k, v in record.config.items() if k not in ("recipe", "test")}
    return json.dumps([config, start_of(record)], sort_keys=True)


@dataclass(frozen=True)
class _Table:
    """Scores at one density [..., method, seed], higher is better: predicted by the short training, and final."""

    short: Array
    full: Array
    methods: tuple[str, ...]

    def resampled(self, rng: np.random.Generator) -> _Table:
        """``N_RESAMPLES`` tables, each of as many methods, drawn from these with replacement."""
        n_methods = len(self.full)
        drawn = rng.integers(n_methods, size=(N_RESAMPLES, n_methods))
        return _Table(self.short[drawn], self.full[drawn], ())

    def by_mask(self) -> Array:
        short, full = (np.reshape(side, (*side.shape[:-2], -1)) for side in (self.short, self.full))
        return _rank_correlation(short, full)

    def by_method(self) -> Array:
        return _rank_correlation(self.short.mean(-1), self.full.mean(-1))

    def regrets(self) -> Array:
        """The regret on each seed, in points."""
        means = self.full.mean(-1)
        chosen = self.short == self.short.max(-2, keepdims=True)
        return 100 * (means.max() - (means[:, None] * chosen).sum(-2) / chosen.sum(-2))

    def by_lot(self) -> float:
        means = self.full.mean(-1)
        return float(100 * (means.max() - means.mean()))


def _table(
    entries: Mapping[MethodSeed, Mapping[str, float]], full: Mapping[MethodSeed, RunRecord], judge: str
) -> _Table | None:
    """The scores of the methods that have every seed that any method has; None for fewer than three methods."""
    sign = 1.0 if JUDGES[judge] else -1.0
    there = {mask for mask, entry in entries.items() if judge in entry}
    seeds = sorted({seed for _, seed in there})
    methods = [name for name in sorted({name for name, _ in full}) if all((name, seed) in there for seed in seeds)]
    if len(methods) < 3:
        return None
    short = [[sign * entries[name, seed][judge] for seed in seeds] for name in methods]
    accuracy = [[full[name, seed].metrics["accuracy"] for seed in seeds] for name in methods]
    return _Table(np.array(short), np.array(accuracy), tuple(methods))


def _foresight(name: str, judge: str, share: float, tables: Sequence[_Table]) -> Foresight:
    rng = np.random.default_rng(0)
    drawn = [table.resampled(rng) for table in tables]
    by_mask = _mean(drawn, _Table.by_mask)
    regrets = np.concatenate([table.regrets() for table in tables])
    return Foresight(
        name, judge, share, _estimate(tables, by_mask, _Table.by_mask),
        _estimate(tables, _mean(drawn, _Table.by_method), _Table.by_method),
        float(np.mean([table.regrets().mean() for table in tables])), float(regrets.max()),
        float(np.mean([table.by_lot() for table in tables])), len(regrets),
        tuple((table.methods, table.full.shape[-1]) for table in tables), by_mask,
    )  # fmt: skip


def _mean(tables: Sequence[_Table], statistic: Callable[[_Table], Array]) -> Array:
    """The mean of a statistic over densities."""
    return np.mean([statistic(table) for table in tables], axis=0)


def _estimate(tables: Sequence[_Table], drawn: Array, statistic: Callable[[_Table], Array]) -> Estimate:
    """The mean over densities, with its percentile bootstrap over methods: ``drawn``, the statistic of the resamples.

    Masks of one method, or of one seed, are not independent, and the question is how other methods would be ranked.
    """
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(_mean(tables, statistic)), float(low), float(high))


def _rank_correlation(first: Array, second: Array) -> Array:
    """Spearman's rank correlation along the last axis; 0 where all values of one side are equal."""
    from scipy.stats import rankdata

    ranks = [rankdata(side, axis=-1) for side in (first, second)]
    a, b = (side - side.mean(-1, keepdims=True) for side in ranks)
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)


def table_cells(found: Sequence[Foresight]) -> list[list[str]]:
    """The lines of the table, one for each training and judge."""
    return [
        [
            f.training, JUDGE_NAMES[f.judge], f"{f.share:.3f}", str(f.by_mask), str(f.by_method), f"{f.regret:.2f}",
            f"{f.worst:.2f}", f"{f.by_lot:.2f}", str(f.n),
        ]
        for f in found
    ]  # fmt: skip


def difference_cells(found: Sequence[Foresight]) -> list[list[str]]:
    """The lines of differences: between judges of one training, and between trainings of one cost by one judge."""
    lines = []
    for one, other in combinations(found, 2):
        is_pair = one.share == other.share and (one.training == other.training) != (one.judge == other.judge)
        if is_pair and (gap := one.minus(other)) is not None:
            trainings, judges = dict.fromkeys((one.training, other.training)), dict.fromkeys((one.judge, other.judge))
            lines.append(
                [
                    " − ".join(trainings), " − ".join(JUDGE_NAMES[judge] for judge in judges), f"{one.share:.3f}",
                    f"**{gap}**" if gap.low > 0 or gap.high < 0 else str(gap),
                ]
            )  # fmt: skip
    return lines


def markdown(records: Sequence[RunRecord]) -> str:
    """The page: both tables, with what a reader must know of them."""
    found = foresights(records)
    return "\n".join(
        [
            "Rank correlation is Spearman's with the full training's validation accuracy, its mean over densities. Regret "
            "is the validation accuracy, in points, that is lost by taking the method that looks best on one seed in place "
            "of the one that is best over all; its mean over densities and seeds; beside it what a method drawn by lot "
            "loses. Intervals of 95 % are of a bootstrap over methods, for the seeds that there are: how it might be for "
            "others.",
            "",
            *markdown_table(COLUMNS, table_cells(found)),
            "",
            "Differences in the rank correlation over masks, paired by the resamples: of two judges of one training, and of "
            "two trainings of the same cost by one judge. Bold where the interval of 95 % holds no 0, with no correction "
            "for how many there are.",
            "",
            *markdown_table(DIFFERENCE_COLUMNS, difference_cells(found)),
            "",
        ]
    )
