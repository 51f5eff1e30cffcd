"""The report of a grid, from its records alone: a page, files of rows, pictures."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from panning.compare.pictures import PICTURES
from panning.compare.rows import Row, line_label
from panning.compare.statistics import Difference, detectable
from panning.compare.tables import Table, tables
from panning.compare.text import (
    BALANCE,
    COLUMNS,
    COST,
    NUMBERED,
    TRAINING_ADDS,
    contrast_cells,
    row_numbers,
    table_cells,
    without_empty_columns,
)
from panning.foundation.files import write_atomic
from panning.foundation.pictures import Picture, save
from panning.foundation.records import RunRecord
from panning.foundation.tables import csv_table, markdown_table, origin
from panning.foundation.text import in_markdown

#: A relative change of a layer's density that is not worth a word.
NEGLIGIBLE_DRIFT = 0.05
#: The line below a table that is printed without the report: whose accuracies these are, and what orders the rows.
READING = "Accuracies are those of the test part in percent; the order of the lines is that of the validation part."


def _planned_part(table: Table) -> list[str]:
    """The Markdown lines of the planned comparisons."""
    if not table.contrasts:
        return []
    drifts = [
        f"{contrast.name}: {', '.join(f'{100 * drift:.0f} % at {density:g}' for density, drift in far)}"
        for contrast in table.contrasts
        if contrast.is_shuffle
        if (far := [(d, drift) for d in contrast.differences if (drift := contrast.drift(d)) > NEGLIGIBLE_DRIFT])
    ]
    rivals = ", and methods that move masks minus those that they set out to beat" if table.has_moving else ""
    return [
        f"Planned comparisons: a method minus its control, and a method with minus without all-alive pruning{rivals}. Mean "
        "difference in points on the test part, paired by seed, with its interval of 95 % (Student's; from ten seeds on "
        "BCa's bootstrap); bold where the paired t-test, with Holm's correction over the comparisons of that column, is "
        "significant at 5 %. What is not bold is not known to differ, which is not to say that it is equal.",
        "",
        *markdown_table(*contrast_cells(table, table.contrasts, "comparison", lambda contrast: contrast.name)),
        "",
        *([] if not drifts else [
            "What a shuffle cuts off comes alive in other layers, and dead weights of the method it does not have: where "
            "the quotas of the layers differ by much, the comparison is of them, too. By how much the density of that layer "
            f"differs where it does most: {'; '.join(drifts)}.", "",
        ]),
    ]  # fmt: skip


def _random_part(table: Table) -> list[str]:
    """The Markdown lines of the comparison with random masks."""
    if not table.beside_random:
        return []
    cells = contrast_cells(table, table.beside_random, "method minus random (ERK)", lambda contrast: contrast.method)
    return [
        "Beside random masks with ERK's quotas, which read neither weights nor data: each method minus them, likewise; "
        "corrected over the rows of this table.",
        "",
        *markdown_table(*cells),
        "",
    ]


def _power(table: Table) -> str:
    """A sentence on the smallest difference that the tests can find, which follows another sentence."""
    n_seeds = max((len(row.good) for row in table.rows), default=0)
    counted = [len({row.outcome for row in table.at(density) if row.good}) - 1 for density in table.densities]
    if n_seeds < 2 or max(counted, default=0) < 1:
        return ""
    least = detectable(n_seeds, max(counted))
    return (
        f" Of {max(counted)} comparisons over {n_seeds} seeds the first that is found must have a mean of {least:.1f} "
        "standard deviations of the paired differences, those after it less: look at the planned ones, or add seeds."
    )


def short_cells(table: Table, only: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the short table: a line for each method, a column for each density, mean costs over densities.

    The lines are ordered by the validation part (``Table.methods``).

    Args:
        only: the methods to show; none means all.
    """
    ranked = {} if table.ranks is None else dict(zip(table.ranks.names, table.ranks.mean_ranks, strict=True))
    names = [name for name in table.methods if not only or name in only]
    by_place = {(row.method, row.density): row for row in table.rows}
    costs = [COST, TRAINING_ADDS] if table.counts_adds else [COST]
    columns = [
        "method",
        *(["mean rank"] if ranked else []),
        *(f"{density:g}" for density in table.densities),
        *costs,
    ]
    lines = []
    for name in names:
        shown = [by_place.get((name, density)) for density in table.densities]
        lines.append(
            [
                line_label(table.rows_of(name)),
                *([f"{ranked[name]:.1f}" if name in ranked else "-"] if ranked else []),
                *("-" if row is None else row.spread("test_accuracy") for row in shown),
                *_mean_costs(table, [row for row in shown if row is not None]),
            ]
        )
    return columns, lines


def _mean_costs(table: Table, rows: Sequence[Row]) -> list[str]:
    """The costs of one method's rows, means over densities."""
    passes = statistics.fmean(sum(table.cost(row)) for row in rows)
    trained = [statistics.fmean(epochs) for row in rows if (epochs := row.of_masks("train_epochs"))]
    adds = f"{statistics.fmean(trained):.2f}" if trained else "-"  # failed everywhere
    return [f"{passes:.1f}", *([adds] if table.counts_adds else [])]


def marks(table: Table) -> list[str]:
    """What a reader must know of the table before any finding: that it has no controls."""
    missing = table.missing_controls
    return [] if not missing else [
        f"Not controlled: there are no {', no '.join(missing)}. Whether a method's choice of weights is worth more than its "
        "layer quotas alone is therefore not known."
    ]  # fmt: skip


def findings(table: Table) -> list[str]:
    """One text for each density: which method is best, and which methods differ from it significantly."""
    return [f"At {table.level} {density:g}, {_finding(table, density)}" for density in table.densities]


def _finding(table: Table, density: float) -> str:
    best = table.best(density)
    if not best.good:
        return "every method failed."
    said: dict[str, list[str]] = defaultdict(list)
    for row in table.at(density):
        if row is not best:
            said[_verdict(table.differences.get((density, row.method)))].append(row.label)
    verdicts = ("Significantly better on test", "No significant difference", "Significantly worse", "Not tested, with one "
                "seed in common or none", "Failed on every seed")  # fmt: skip
    test = best.spread("test_accuracy")
    return f"{best.label} is best on validation, with {test} % on test." + "".join(
        f" {verdict}: {', '.join(said[verdict])}." for verdict in verdicts if said[verdict]
    )


def _verdict(found: Difference | None) -> str:
    if found is None:
        return "Failed on every seed"
    if not found.is_tested:
        return "Not tested, with one seed in common or none"
    if not found.is_significant:
        return "No significant difference"
    return "Significantly better on test" if found.mean > 0 else "Significantly worse"


def markdown(records: Sequence[RunRecord]) -> str:
    """The page: every table, with what a reader must know of it.

    Raises:
        PanningError: as ``tables`` does.
    """
    return _page(tables(records), records)


def _page(found: Sequence[Table], records: Sequence[RunRecord]) -> str:
    parts = [_markdown(table) for table in found]
    origins = sorted({in_markdown(origin(record.environment)) for record in records if record.kind == "cell"})
    return "\n".join([*parts, "## Where this comes from", "", *(f"- {line}" for line in origins), ""])


def short_markdown(table: Table, only: Sequence[str] = ()) -> str:
    """The short table alone."""
    columns, lines = short_cells(table, only)
    return "\n".join(markdown_table(columns, lines)) + "\n"


def _markdown(table: Table) -> str:
    seeds = sorted({cell.config["seed"] for row in (*table.rows, table.dense) for cell in row.cells})
    rank = table.ranks
    dense = table.dense.spread("test_accuracy")
    lines = [
        f"## {in_markdown(table.title)}",
        "",
        f"Test accuracy after the last of {table.epochs:g} epochs, mean ± standard deviation over seeds {_range(seeds)}; "
        f"the dense network has {dense} %. Same initial weights, batches and recipe for all with one seed; choices on the "
        "validation part, whose mean ranks order the lines; the test part was read once, at the end. Costs, which the last "
        "table has in full, are means over the densities.",
        "",
        short_markdown(table),
        *([] if rank is None else [
            f"Mean rank on test over {rank.n_blocks} pairs of density and seed; Friedman's test that all are equal: p = "
            f"{rank.p_friedman:.2g}. The densities of one seed share weights and batches: ranks sum up, what holds is "
            "said by the paired tests.", "",
        ]),
        *_planned_part(table),
        *_random_part(table),
        *(f"- {in_markdown(sentence)}" for sentence in (*marks(table), *findings(table))),
        "",
        "Against the best on validation: the same test, corrected over the rows of one density (of equal masks once). What "
        "is best on validation was so by luck, too, of which test shares some: this finds somewhat too much."
        f"{_power(table)} Cost: agent and tried learning rates, scoring (wall time by that of a dense epoch and its "
        "validation) and training, in passes of the dense network over the training part; multiply-adds count those of kept "
        "weights alone, and all where a method looks at masked ones.",
        "",
        *markdown_table(*without_empty_columns([table.level, *COLUMNS[1:]], table_cells(table))),
        "",
    ]  # fmt: skip
    failed = [(row, c) for row in (*table.rows, table.dense) for c in row.cells if c.metrics["error"] is not None]
    if failed:
        lines += ["Failed:", ""]
        said = (f"{r.label} at {r.density:g}, seed {c.config['seed']}: {c.metrics['error']}" for r, c in failed)
        lines += [f"- {in_markdown(sentence)}" for sentence in said]
        lines += [""]
    return "\n".join(lines)


def _range(seeds: Sequence[int]) -> str:
    whole = seeds[-1] - seeds[0] == len(seeds) - 1 > 1
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


# --- files ---


def write_report(records: Sequence[RunRecord], out: Path, formats: Sequence[str] = ("png",)) -> list[Table]:
    """Write ``report.md``, ``rows.csv``, ``rows.json`` and the pictures of each table with their numbers; gives tables.

    Args:
        formats: of the pictures (``FORMATS`` of panning.foundation.pictures).

    Raises:
        PanningError: as ``tables`` does.
    """
    found = tables(records)
    write_atomic(out / "report.md", _page(found, records))
    numbers = [[table.title, *row_numbers(table, row)] for table in found for row in (*table.rows, table.dense)]
    write_atomic(out / "rows.csv", csv_table(["table", *NUMBERED], numbers))
    write_atomic(out / "rows.json", json.dumps(as_json(found), indent=2))
    for picture, stem in pictures(found):
        save(picture, out / stem, formats)
    return found


def pictures(found: Sequence[Table]) -> Iterator[tuple[Picture, str]]:
    """Every picture of every table, with the stem of its files."""
    for number, table in enumerate(found):
        suffix = f"-{number + 1}" if len(found) > 1 else ""
        for name, draw in PICTURES.items():
            if (picture := draw(table)) is not None:
                yield picture, f"{name}{suffix}"


def as_json(found: Sequence[Table]) -> list[dict[str, Any]]:
    """Every row, unrounded and by seed, as JSON."""
    return [
        {
            "table": table.title, "method": row.label, "density": row.density,
            "effective_density": row.of_masks("effective_density"), "n_dead_units": row.of_masks("n_dead_units"),
            **{name: row.of_masks(name) for name in BALANCE},
            "n_collapsed_layers": row.n_collapsed_layers,
            "compute_left": row.of_masks("compute_left"),
            "against_best": _difference_as_json(table.differences.get((row.density, row.method))),
            **{name: row.values(name) for name in ("test_accuracy", "test_accuracy_of_best", "accuracy")},
            "cost_epochs": dict(zip(("search", "scoring", "training"), table.cost(row), strict=True)),
            "errors": [cell.metrics["error"] for cell in row.cells if cell.metrics["error"] is not None],
        }
        for table in found
        for row in (*table.rows, table.dense)
    ]  # fmt: skip


def _difference_as_json(found: Difference | None) -> dict[str, float | int | None] | None:
    """A difference as JSON, which has no NaN: bounds and p-values that do not exist are null."""
    if found is None:
        return None
    values = {name: None if math.isnan(value) else value for name, value in asdict(found).items()}
    return values if found.is_tested else {**values, "p": None}
