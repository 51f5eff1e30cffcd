"""How well cheap trainings foresee the full one: rank correlation, and what choosing by them loses.

Everything that searches or rewards by short trainings stands on this. Judged from the records of a grid with ``short``
recipes: masks of one network at one density, trained in full and, in other cells, shortly. The validation part judges, as it
does in a search: a short training that was chosen on the test part would carry it into every later choice.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panning.benchmark.cells import by_place, recipe_text
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


#: Task and recipe, density, method and seed.
Identity = tuple[str, float, str, int]


@dataclass(frozen=True)
class Foresight:
    """How well one short training, judged by one figure, foresees the full one.

    Attributes:
        share: of the full training's images.
        by_mask: Spearman's rank correlation over all masks, one value a density.
        by_method: over the methods' means over seeds.
        regret: final validation accuracy lost by taking the method that looks best on one seed, against the one that is
            best; one value for each density and seed.
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
        PanningError: if nothing was trained shortly, or fewer than three masks of every density were.
    """
    cells = [record for record in records if record.kind == "cell"]
    final, trials = by_place(cells)
    full = {
        (text, density, name, cell.config["seed"]): cell
        for (text, name, density), some in final.items()
        for cell in some
        if cell.config["by"] is not None and cell.metrics["error"] is None
    }
    if not full:
        raise PanningError("These records hold no full training; run a grid with short recipes to its end.")
    predictions: dict[tuple[str, float], dict[Identity, dict[str, float]]] = defaultdict(dict)
    for identity, record in full.items():
        n_epochs = len(record.metrics["history"])
        for entry in record.metrics["history"][:-1]:
            predictions[f"the first {entry['epoch']:g} epochs of it", entry["epoch"] / n_epochs][identity] = entry
    tried = {trial.key for some in trials.values() for trial in some}  # of learning rates: full trainings
    short: dict[str, list[RunRecord]] = defaultdict(list)
    for record in cells:
        if not record.config["test"] and record.metrics["error"] is None and record.key not in tried:
            short[_mask(record)].append(record)
    for identity, whole in full.items():
        for record in short[_mask(whole)]:
            share = record.metrics["images_seen"] / whole.metrics["images_seen"]
            name = recipe_text(record.config["recipe"])
            predictions[name, round(share, 4)][identity] = record.metrics["history"][-1]
    if not predictions:
        raise PanningError("Every training has one epoch and there is no short one: there is nothing to foresee from.")
    found = []
    for (name, share), entries in sorted(predictions.items(), key=lambda item: (item[0][1], item[0][0])):
        for judge, more_is_better in JUDGES.items():
            scores = {i: (1 if more_is_better else -1) * e[judge] for i, e in entries.items() if judge in e}
            foresight = _foresight(name, judge, share, scores, full)
            found += [foresight] if foresight.by_mask else []
    if not found:
        raise PanningError("At no density were three masks trained both ways: there is nothing to rank.")
    return found


def _mask(record: RunRecord) -> str:
    """What is equal for all trainings of one mask: the config but for the training."""
    return json.dumps({k: v for k, v in record.config.items() if k not in ("recipe", "test")}, sort_keys=True)


def _foresight(
    name: str, judge: str, share: float, scores: Mapping[Any, float], full: Mapping[Any, RunRecord]
) -> Foresight:
    by_mask, by_method, regret = [], [], []
    for place in sorted({identity[:2] for identity in scores}):
        here = {i: score for i, score in scores.items() if i[:2] == place}
        final = {i: float(full[i].metrics["accuracy"]) for i in here}
        if len(here) < 3:  # a grid that was stopped
            continue
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
            "Rank correlation is Spearman's with the full training's validation accuracy, its mean over densities with the "
            "95 % bootstrap interval. Regret is the validation accuracy, in points, that is lost by taking the method that "
            "looks best "
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
