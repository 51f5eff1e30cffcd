"""How well cheap trainings foresee the full one: rank correlation, and what choosing by them loses.

Everything that searches or rewards by short trainings stands on this. Judged from the records of a grid with ``short``
recipes: masks of one network at one density, trained in full and, in other cells, shortly.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panning.benchmark.grid import row_name
from panning.benchmark.speed_report import markdown_table
from panning.benchmark.statistics import interval
from panning.errors import PanningError
from panning.records import RunRecord

COLUMNS = (
    "short training", "judged by", "share of the cost", "rank correlation, masks", "rank correlation, methods",
    "regret, points", "worst regret", "n",
)  # fmt: skip

#: A figure of a short training -> whether more of it is better.
JUDGES = {"train_loss": False, "accuracy": True, "loss": False}
JUDGE_NAMES = {"train_loss": "training loss", "accuracy": "validation accuracy", "loss": "validation loss"}


@dataclass(frozen=True)
class Foresight:
    """How well one short training, judged by one figure, foresees the full one.

    Attributes:
        share: of the full training's images.
        by_mask: Spearman's rank correlation over all masks, one value a density.
        by_method: over the methods' means over seeds.
        regret: final test accuracy lost by taking the method that looks best on one seed, against the one that is best;
            one value for each density and seed.
    """

    training: str
    judge: str
    share: float
    by_mask: list[float]
    by_method: list[float]
    regret: list[float]


def foresights(records: Iterable[RunRecord]) -> list[Foresight]:
    """Of every short training in ``records``, and of every epoch of the full one.

    Raises:
        PanningError: if nothing was trained shortly, or fewer than three masks of a density were.
    """
    cells = [r for r in records if r.kind == "cell" and r.metrics["error"] is None and r.config["by"] is not None]
    full = {_identity(r): r for r in cells if r.config["test"]}
    if not full:
        raise PanningError("These records hold no full training; run a grid with short recipes to its end.")
    predictions: dict[tuple[str, float], dict[Any, dict[str, float]]] = defaultdict(dict)
    for identity, record in full.items():
        n_epochs = len(record.metrics["history"])
        for entry in record.metrics["history"][:-1]:
            predictions[f"the first {entry['epoch']:g} epochs of it", entry["epoch"] / n_epochs][identity] = entry
    for record in cells:
        if not record.config["test"] and (identity := _identity(record)) in full:
            share = record.metrics["images_seen"] / full[identity].metrics["images_seen"]
            predictions[_name(record.config["recipe"]), round(share, 4)][identity] = record.metrics["history"][-1]
    found = []
    for (name, share), entries in sorted(predictions.items(), key=lambda item: (item[0][1], item[0][0])):
        for judge, more_is_better in JUDGES.items():
            scores = {i: (1 if more_is_better else -1) * e[judge] for i, e in entries.items() if judge in e}
            found.append(_foresight(name, judge, share, scores, full))
    if not found:
        raise PanningError("Every training has one epoch and there is no short one: there is nothing to foresee from.")
    return found


def _identity(record: RunRecord) -> tuple[str, float, str, int]:
    """Task, density, method and seed."""
    config = record.config
    return json.dumps(config["task"], sort_keys=True), config["density"], row_name(config), config["seed"]


def _name(recipe: Mapping[str, Any]) -> str:
    images = f", {recipe['n_images']:,} images an epoch" if recipe["n_images"] else ""
    return f"{recipe['epochs']:g} epochs, {recipe['schedule']} at {recipe['learning_rate']:g}{images}"


def _foresight(
    name: str, judge: str, share: float, scores: Mapping[Any, float], full: Mapping[Any, RunRecord]
) -> Foresight:
    by_mask, by_method, regret = [], [], []
    for place in sorted({identity[:2] for identity in scores}):
        here = {i: score for i, score in scores.items() if i[:2] == place}
        final = {i: float(full[i].metrics["test_accuracy"]) for i in here}
        if len(here) < 3:
            raise PanningError(f"Only {len(here)} masks at density {place[1]:g} were trained both ways; 3 are needed.")
        by_mask.append(_rank_correlation(list(here.values()), [final[i] for i in here]))
        means = _means(final)
        foreseen = _means(here)
        if len(means) > 2:
            by_method.append(_rank_correlation([foreseen[m] for m in means], list(means.values())))
        for seed in sorted({i[3] for i in here}):
            chosen = max((i for i in here if i[3] == seed), key=lambda i: here[i])
            regret.append(max(means.values()) - means[chosen[2]])
    return Foresight(name, judge, share, by_mask, by_method, regret)


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; 0 where one of them does not tell anything apart."""
    from scipy.stats import spearmanr

    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(spearmanr(first, second).statistic)


def _means(values: Mapping[Any, float]) -> dict[str, float]:
    """Of each method over its seeds."""
    by_method: dict[str, list[float]] = defaultdict(list)
    for identity, value in values.items():
        by_method[identity[2]].append(value)
    return {name: statistics.fmean(some) for name, some in by_method.items()}


def table_cells(found: Sequence[Foresight]) -> list[list[str]]:
    """The table's rows as text."""
    return [
        [
            f.training, JUDGE_NAMES[f.judge], f"{f.share:.3f}", _with_interval(f.by_mask), _with_interval(f.by_method),
            _with_interval([100 * value for value in f.regret]), f"{100 * max(f.regret):.2f}", str(len(f.regret)),
        ]
        for f in found
    ]  # fmt: skip


def markdown(records: Sequence[RunRecord]) -> str:
    """The table with what one must know to read it."""
    return "\n".join(
        [
            "Rank correlation is Spearman's with the full training's test accuracy, its mean over densities with the 95 % "
            "bootstrap interval. Regret is the test accuracy, in points, that is lost by taking the method that looks best "
            "on one seed in place of the one that is best over all; its mean over densities and seeds.",
            "",
            *markdown_table(COLUMNS, table_cells(foresights(records))),
            "",
        ]
    )


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = interval(np.array(values))
    bounds = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{statistics.fmean(values):.2f}{bounds}"
