"""Tables and pictures of a grid as files and text, from its records alone."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from panning.compare.pictures import PICTURES
from panning.compare.statistics import Difference, detectable
from panning.compare.tables import Contrast, Row, Table, tables
from panning.foundation.files import write_atomic
from panning.foundation.records import RunRecord
from panning.foundation.tables import csv_table, markdown_table, origin

COST, TRAINING_ADDS = "cost, dense epochs", "training multiply-adds, dense epochs"
COLUMNS = (
    "density", "method", "effective density", "dead units", "collapsed layers", "multiply-adds %", "test %, last epoch",
    "test %, best epoch", "validation %", "learning rate", COST, TRAINING_ADDS, "n", "against the best",
)  # fmt: skip


#: A relative change of a layer's density that is not worth a word.
NEGLIGIBLE_DRIFT = 0.05


def table_cells(table: Table) -> list[list[str]]:
    """Every row as text, the dense network last."""
    return [_cells(table, row) for row in (*table.rows, table.dense)]


def _known(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns of which no line knows anything: records of another version may lack a figure."""
    kept = [i for i in range(len(columns)) if any(line[i] != "-" for line in lines)]
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines]


def _cells(table: Table, row: Row) -> list[str]:
    rates = sorted({cell.config["recipe"]["learning_rate"] for cell in row.cells})
    effective, dead, compute = (row.of_masks(name) for name in ("effective_density", "n_dead_units", "compute_left"))
    collapsed, trained = row.n_collapsed_layers, row.of_masks("train_epochs")
    return [
        f"{row.density:g}",
        row.method,
        f"{statistics.fmean(effective):.5f}" if effective else "-",
        f"{statistics.fmean(dead):.0f}" if dead else "-",
        f"{max(collapsed)}" if collapsed else "-",
        f"{100 * statistics.fmean(compute):.1f}" if compute else "-",
        row.spread("test_accuracy"),
        row.spread("test_accuracy_of_best"),
        row.spread("accuracy"),
        " ".join(f"{rate:g}" for rate in rates) + _tried(row),
        f"{sum(table.cost(row)):.2f}",
        f"{statistics.fmean(trained):.3f}" if trained else "-",
        f"{len(row.good)}" + (f" of {len(row.cells)}" if len(row.good) < len(row.cells) else ""),
        _against(table, row),
    ]


def _tried(row: Row) -> str:
    """The learning rates that were tried for a row."""
    failed: dict[float, bool] = defaultdict(bool)
    for trial in row.trials:
        failed[trial.config["recipe"]["learning_rate"]] |= trial.metrics["error"] is not None
    shown = [f"{rate:g}{' (failed)' if failed[rate] else ''}" for rate in sorted(failed)]
    return f" of {', '.join(shown)}" if shown else ""


def _against(table: Table, row: Row) -> str:
    if row is table.dense:
        return ""
    if row is table.best(row.density):
        return "best on validation"
    found = table.differences.get((row.density, row.method))
    if found is None:
        return "-"
    verdict = _chance(found) if found.is_significant else "no significant difference"
    return f"{_points(found)}, {verdict}" if found.is_tested and not found.is_none else _points(found)


def _chance(found: Difference) -> str:
    """Never rounded to what is not significant."""
    return "p < 0.001" if found.p < 0.001 else f"p {found.p:.3f}" if found.p < 0.0495 else f"p {found.p:.4f}"


def _points(found: Difference) -> str:
    """A difference in points with its interval, or why there is none."""
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
    """A line a comparison, named by ``name`` in the column ``title``, a column a density, and one for the mean of several.

    What is significant is bold.
    """

    def shown(found: Difference | None) -> str:
        if found is None:
            return "-"
        return f"**{_points(found)}**, {_chance(found)}" if found.is_significant else _points(found)

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


def _contrasts(table: Table) -> list[str]:
    """Their part of a page."""
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


def _beside_random(table: Table) -> list[str]:
    """Its part of a page."""
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
    """What the tests can find, as a sentence after another."""
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
    """The short table: a line a method, a column a density, costs as means over them; by mean rank, where there is one.

    Args:
        only: these methods; none means all.
    """
    order = table.ranks.names if table.ranks is not None else ()
    names = [*order, *(name for name in dict.fromkeys(row.method for row in table.rows) if name not in order)]
    names = [name for name in names if not only or name in only]
    by_place = {(row.method, row.density): row for row in table.rows}
    costs = [COST, TRAINING_ADDS] if table.counts_adds else [COST]
    columns = [
        "method",
        *([] if not order else ["mean rank"]),
        *(f"{density:g}" for density in table.densities),
        *costs,
    ]
    lines = []
    for name in names:
        rank = [f"{table.ranks.mean_ranks[order.index(name)]:.1f}" if name in order else "-"] if table.ranks else []
        shown = [by_place.get((name, density)) for density in table.densities]
        lines.append(
            [
                name,
                *rank,
                *("-" if row is None else row.spread("test_accuracy") for row in shown),
                *_mean_costs(table, [row for row in shown if row is not None]),
            ]
        )
    return columns, lines


def _mean_costs(table: Table, rows: Sequence[Row]) -> list[str]:
    """Of one method at all densities, as the short table has them."""
    passes = statistics.fmean(sum(table.cost(row)) for row in rows)
    trained = [statistics.fmean(epochs) for row in rows if (epochs := row.of_masks("train_epochs"))]
    adds = f"{statistics.fmean(trained):.2f}" if trained else "-"  # failed everywhere
    return [f"{passes:.1f}", *([adds] if table.counts_adds else [])]


def findings(table: Table) -> list[str]:
    """What the statistics say, a few sentences a density."""
    return [f"At density {density:g}, {_finding(table, density)}" for density in table.densities]


def _finding(table: Table, density: float) -> str:
    best = table.best(density)
    if not best.good:
        return "every method failed."
    said: dict[str, list[str]] = defaultdict(list)
    for row in table.at(density):
        if row is not best:
            said[_verdict(table.differences.get((density, row.method)))].append(row.method)
    verdicts = ("Significantly better on test", "No significant difference", "Significantly worse", "Not tested, with one "
                "seed in common or none", "Failed on every seed")  # fmt: skip
    test = best.spread("test_accuracy")
    return f"{best.method} is best on validation, with {test} % on test." + "".join(
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
    """Every table with what one must know to read it."""
    return _page(tables(records), records)


def _page(found: Sequence[Table], records: Sequence[RunRecord]) -> str:
    parts = [_markdown(table) for table in found]
    origins = sorted({_line(origin(record.environment)) for record in records if record.kind == "cell"})
    return "\n".join([*parts, "## Where this comes from", "", *(f"- {line}" for line in origins), ""])


def _line(text: str) -> str:
    """Of a record, which may come from elsewhere: as one line without markup."""
    return escape(" ".join(text.split()), quote=False)


def short_markdown(table: Table, only: Sequence[str] = ()) -> str:
    """The short table alone."""
    columns, lines = short_cells(table, only)
    return "\n".join(markdown_table(columns, lines)) + "\n"


def _markdown(table: Table) -> str:
    seeds = sorted({cell.config["seed"] for row in (*table.rows, table.dense) for cell in row.cells})
    rank = table.ranks
    dense = table.dense.spread("test_accuracy")
    lines = [
        f"## {table.title}",
        "",
        f"Test accuracy after the last of {table.epochs:g} epochs, mean ± standard deviation over seeds {_range(seeds)}; "
        f"the dense network has {dense} %. Same initial weights, batches and recipe for all with one seed; choices on the "
        "validation part; the test part was read once, at the end. Costs, which the last table has in full, are means over "
        "the densities.",
        "",
        short_markdown(table),
        *([] if rank is None else [
            f"Mean rank over {rank.n_blocks} pairs of density and seed; Friedman's test that all are equal: p = "
            f"{rank.p_friedman:.2g}. The densities of one seed share weights and batches: ranks sum up, what holds is "
            "said by the paired tests.", "",
        ]),
        *_contrasts(table),
        *_beside_random(table),
        *(f"- {sentence}" for sentence in findings(table)),
        "",
        "Against the best on validation: the same test, corrected over the rows of one density (of equal masks once). What "
        "is best on validation was so by luck, too, of which test shares some: this finds somewhat too much."
        f"{_power(table)} Cost: agent and tried learning rates, scoring (wall time by that of a dense epoch and its "
        "validation) and training, in passes of the dense network over the training part; multiply-adds count those of kept "
        "weights alone, and all where a method looks at masked ones.",
        "",
        *markdown_table(*_known(COLUMNS, table_cells(table))),
        "",
    ]  # fmt: skip
    failed = [(row, c) for row in (*table.rows, table.dense) for c in row.cells if c.metrics["error"] is not None]
    if failed:
        lines += ["Failed:", ""]
        lines += [
            f"- {r.method} at {r.density:g}, seed {c.config['seed']}: {_line(c.metrics['error'])}" for r, c in failed
        ]
        lines += [""]
    return "\n".join(lines)


def _range(seeds: Sequence[int]) -> str:
    whole = seeds[-1] - seeds[0] == len(seeds) - 1 > 1
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


# --- files ---


def write_report(records: Sequence[RunRecord], out: Path) -> list[Table]:
    """``report.md``, ``rows.csv``, ``rows.json``, and of each table the pictures ``accuracy``, ``ranks``, ``layers`` and
    ``cost`` (PNG); returns the tables."""
    found = tables(records)
    write_atomic(out / "report.md", _page(found, records))
    lines = [[table.title, *cells] for table in found for cells in table_cells(table)]
    write_atomic(out / "rows.csv", csv_table(["table", *COLUMNS], lines))
    write_atomic(out / "rows.json", json.dumps(as_json(found), indent=2))
    for number, table in enumerate(found):
        suffix = f"-{number + 1}" if len(found) > 1 else ""
        for name, draw in PICTURES.items():
            if (picture := draw(table)) is not None:
                write_atomic(out / f"{name}{suffix}.png", picture)
    return found


def as_json(found: Sequence[Table]) -> list[dict[str, Any]]:
    """Every row unrounded, by seed."""
    return [
        {
            "table": table.title, "method": row.method, "density": row.density,
            "effective_density": row.of_masks("effective_density"), "n_dead_units": row.of_masks("n_dead_units"),
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
    """JSON has no NaN: a bound that cannot be had is null; so is the p-value of what was not tested."""
    if found is None:
        return None
    values = {name: None if math.isnan(value) else value for name, value in asdict(found).items()}
    return values if found.is_tested else {**values, "p": None}
