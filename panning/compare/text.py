"""Rows, differences and comparisons of a table as text."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from panning.compare.cells import setting_of
from panning.compare.contrasts import Contrast
from panning.compare.rows import Row
from panning.compare.statistics import SUMMARY, Difference, summary
from panning.compare.tables import Table

COST, TRAINING_ADDS = "cost, dense epochs", "training multiply-adds, dense epochs"
COLUMNS = (
    "density", "method", "effective density", "dead units", "alive units", "paths, log10", "outputs reached",
    "collapsed layers", "multiply-adds %", "test %, last epoch",
    "test %, best epoch", "validation %", "learning rate", COST, TRAINING_ADDS, "n", "against the best",
)  # fmt: skip


#: What balances a mask beside its density; older records have none.
BALANCE = ("n_alive_units", "log10_paths", "n_reached_outputs")
#: The columns of ``row_numbers``; those of ``SUMMARY`` are of the test accuracy after the last epoch.
NUMBERED = (
    "method", "density", "effective_density", "n_dead_units", *BALANCE, "n_collapsed_layers", "compute_left", *SUMMARY,
    "mean_of_best_epoch", "validation_mean", "validation_std", "learning_rate", "cost_epochs", "train_epochs", "n_failed",
    "minus_best", "minus_best_ci_low", "minus_best_ci_high", "minus_best_p",
)  # fmt: skip


def row_numbers(table: Table, row: Row) -> list[object]:
    """A row as plain numbers, accuracies as fractions; None where there is none."""
    masks = ("effective_density", "n_dead_units", "compute_left", "train_epochs")
    effective, dead, compute, trained = (_mean(row.of_masks(name)) for name in masks)
    validation = summary(list(row.values("accuracy").values()))
    found = table.differences.get((row.density, row.method))
    against = (
        (None,) * 4 if found is None else (found.mean, found.low, found.high, found.p if found.is_tested else None)
    )
    return [
        row.label, row.density, effective, dead, *(_mean(row.of_masks(name)) for name in BALANCE),
        max(row.n_collapsed_layers, default=None), compute,
        *summary(list(row.values("test_accuracy").values())), _mean(list(row.values("test_accuracy_of_best").values())),
        *validation[:2], row.cells[0].config["recipe"]["learning_rate"], sum(table.cost(row)), trained,
        len(row.cells) - len(row.good), *against,
    ]  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def table_cells(table: Table) -> list[list[str]]:
    """Every row of a table, the dense network last."""
    return [row_cells(table, row) for row in (*table.rows, table.dense)]


def without_empty_columns(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Drop the columns that hold nothing: records of another version may lack a figure."""
    kept = [i for i in range(len(columns)) if any(line[i] != "-" for line in lines)]
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines]


def row_cells(table: Table, row: Row) -> list[str]:
    settings = sorted({setting_of(cell) for cell in row.cells})
    effective, dead, compute = (row.of_masks(name) for name in ("effective_density", "n_dead_units", "compute_left"))
    alive, paths = row.of_masks("n_alive_units"), row.of_masks("log10_paths")
    reached, outputs = row.of_masks("n_reached_outputs"), row.of_masks("n_outputs")
    collapsed, trained = row.n_collapsed_layers, row.of_masks("train_epochs")
    return [
        f"{row.density:g}",
        row.label,
        f"{statistics.fmean(effective):.5f}" if effective else "-",
        f"{statistics.fmean(dead):.0f}" if dead else "-",
        f"{statistics.fmean(alive):.0f}" if alive else "-",
        f"{statistics.fmean(paths):.1f}" if paths else "-",
        f"{statistics.fmean(reached):.3g} of {outputs[0]:g}" if reached else "-",
        f"{max(collapsed)}" if collapsed else "-",
        f"{100 * statistics.fmean(compute):.1f}" if compute else "-",
        row.spread("test_accuracy"),
        row.spread("test_accuracy_of_best"),
        row.spread("accuracy"),
        " ".join(_setting(row, setting) for setting in settings) + _tried(row),
        f"{sum(table.cost(row)):.2f}",
        f"{statistics.fmean(trained):.3f}" if trained else "-",
        f"{len(row.good)}" + (f" of {len(row.cells)}" if len(row.good) < len(row.cells) else ""),
        _against(table, row),
    ]


def _tried(row: Row) -> str:
    """The learning rates and starts that were tried for a row, after those that it has."""
    failed: dict[tuple[float, str], bool] = defaultdict(bool)
    for trial in row.trials:
        failed[setting_of(trial)] |= trial.metrics["error"] is not None
    shown = [_setting(row, setting) + (" (failed)" if failed[setting] else "") for setting in sorted(failed)]
    return f" of {', '.join(shown)}" if shown else ""


def _setting(row: Row, setting: tuple[float, str]) -> str:
    """A learning rate, with the start beside it where starts were tried."""
    rate, start = setting
    several = len({setting_of(trial)[1] for trial in row.trials}) > 1
    return f"{rate:g}" + (f" {start or 'as drawn'}" if several else "")


def _against(table: Table, row: Row) -> str:
    if row is table.dense:
        return ""
    if row is table.best(row.density):
        return "best on validation"
    found = table.differences.get((row.density, row.method))
    if found is None:
        return "-"
    verdict = chance(found) if found.is_significant else "no significant difference"
    return f"{points(found)}, {verdict}" if found.is_tested and not found.is_none else points(found)


def chance(found: Difference) -> str:
    """The p-value, never rounded from below 0.05 up to it."""
    digits = 3 if found.p < 0.0495 else 4 if found.p < 0.055 else 2
    return "p < 0.001" if found.p < 0.001 else f"p {found.p:.{digits}f}"


def judged(found: Difference) -> str:
    """A difference with its interval, its p-value and what that says."""
    if not found.is_tested or found.is_none:
        return points(found)
    return f"{points(found)}, {chance(found)}, {'significant' if found.is_significant else 'no significant difference'}"


def points(found: Difference) -> str:
    """A difference in percentage points with its interval, or why there is none."""
    if found.n == 0:
        return "no seed in common"
    if not found.is_tested:
        return f"{100 * found.mean:+.2f}, one seed: not tested"
    if found.is_none:
        return "the same on every seed"
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def contrast_cells(
    table: Table, contrasts: Sequence[Contrast], title: str, name: Callable[[Contrast], str]
) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of comparisons: a line for each, a column for each density, and one for the mean over several.

    Significant differences are bold.

    Args:
        title: the heading of the first column.
        name: the text of a comparison in the first column.
    """

    def shown(found: Difference | None) -> str:
        if found is None:
            return "-"
        return f"**{points(found)}**, {chance(found)}" if found.is_significant else points(found)

    several = len(table.densities) > 1
    pooled = ["mean over densities"] if several else []
    columns = [title, *(f"{density:g}" for density in table.densities), *pooled]
    lines = [
        [
            name(c),
            *(shown(c.differences.get(density)) for density in table.densities),
            *([shown(c.pooled)] if several else []),
        ]
        for c in contrasts
    ]
    return columns, lines
