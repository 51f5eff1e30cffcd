"""Tables and pictures of a grid, from its records alone."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from panning.benchmark.cells import by_place, recipe_text
from panning.benchmark.speed_report import markdown_table
from panning.benchmark.statistics import Difference, Ranks, difference, holm, interval, ranks
from panning.errors import PanningError
from panning.pictures import figure, png
from panning.records import RunRecord, write_atomic

COLUMNS = (
    "density", "method", "effective density", "dead units", "collapsed layers", "multiply-adds %", "test %, last epoch",
    "test %, best epoch", "validation %", "learning rate", "cost, dense epochs", "training multiply-adds, dense epochs", "n",
    "against the best",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Row:
    """A method at one density: one cell a seed.

    Attributes:
        tuning_epochs: what the trial of learning rates cost, per seed.
    """

    method: str
    density: float
    cells: tuple[RunRecord, ...]
    tuning_epochs: float

    @cached_property
    def good(self) -> dict[int, dict[str, Any]]:
        """The metrics of the cells that did not fail, by seed."""
        return {cell.config["seed"]: cell.metrics for cell in self.cells if cell.metrics["error"] is None}

    def values(self, name: str) -> dict[int, float]:
        """A figure of the training by seed, where it did not fail."""
        return {seed: float(metrics[name]) for seed, metrics in self.good.items()}

    def mean(self, name: str) -> float:
        """The mean of a figure; minus infinity if the training failed on every seed."""
        values = list(self.values(name).values())
        return statistics.fmean(values) if values else -math.inf

    def of_masks(self, name: str) -> list[float]:
        """A figure of the masks, also where the training failed."""
        return [float(cell.metrics[name]) for cell in self.cells if name in cell.metrics]

    @property
    def n_collapsed_layers(self) -> list[int]:
        """Of each mask, also where the training failed."""
        return [len(cell.metrics["collapsed_layers"]) for cell in self.cells if "collapsed_layers" in cell.metrics]

    @property
    def rank(self) -> tuple[int, float]:
        """What it is chosen by, higher is better: fewer failures, then accuracy on the validation part."""
        return len(self.good) - len(self.cells), self.mean("accuracy")

    def search_epochs(self) -> float:
        """What finding the masks cost before they were scored: the training of an agent, and trying learning rates."""
        agent = [c.metrics["search_images"] / c.metrics["n_train"] for c in self.cells if "search_images" in c.metrics]
        return (statistics.fmean(agent) if agent else 0.0) + self.tuning_epochs


@dataclass(frozen=True, eq=False)
class Table:
    """All rows of one network, data set and recipe.

    Attributes:
        rows: of each density, by mean test accuracy of the last epoch, best first, those that failed on a seed last;
            densities fall.
    """

    title: str
    epochs: float
    dense: Row
    rows: tuple[Row, ...]

    @property
    def densities(self) -> list[float]:
        return sorted({row.density for row in self.rows}, reverse=True)

    def at(self, density: float) -> list[Row]:
        return [row for row in self.rows if row.density == density]

    @cached_property
    def dense_epoch_s(self) -> float:
        """Wall time of an epoch of the dense network, on one thread."""
        return statistics.fmean(
            cell.metrics["timing"]["train_s"] / (cell.metrics["images_seen"] / cell.metrics["n_train"])
            for cell in self.dense.cells
            if cell.metrics["error"] is None
        )

    def cost(self, row: Row) -> tuple[float, float, float]:
        """Dense epochs of search, scoring (by wall time, against the dense network's) and training."""
        scoring = [cell.metrics["timing"]["prune_s"] for cell in row.cells if "timing" in cell.metrics]
        training = [metrics["images_seen"] / metrics["n_train"] for metrics in row.good.values()]
        return (
            row.search_epochs(),
            statistics.fmean(scoring) / self.dense_epoch_s if scoring else 0.0,
            statistics.fmean(training) if training else 0.0,
        )

    def best(self, density: float) -> Row:
        """The row that is best on the validation part: what one would take, and what the others are compared with."""
        return max(self.at(density), key=lambda row: row.rank)

    @cached_property
    def differences(self) -> dict[tuple[float, str], Difference]:
        """(density, method) -> against the best of that density, Holm-corrected for the number of its rows.

        Over the seeds that failed for neither.
        """
        found: dict[tuple[float, str], Difference] = {}
        for density in self.densities:
            best = self.best(density)
            others = [row for row in self.at(density) if row is not best and row.good]
            raw = [difference(row.values("test_accuracy"), best.values("test_accuracy")) for row in others]
            found |= {(density, row.method): d for row, d in zip(others, holm(raw), strict=True)}
        return found

    @cached_property
    def ranks(self) -> Ranks | None:
        """Over all densities and seeds; a training that failed is last."""
        blocks: dict[str, dict[object, float]] = defaultdict(dict)
        for row in self.rows:
            for cell in row.cells:
                good = cell.metrics["error"] is None
                blocks[row.method][row.density, cell.config["seed"]] = cell.metrics["test_accuracy"] if good else -1.0
        return ranks(blocks)  # a row that was added later, and a seed that was begun, wait where they lack blocks


def tables(records: Iterable[RunRecord]) -> list[Table]:
    """All tables that the cells of ``records`` make.

    Raises:
        PanningError: if there is no cell that read the test part, or a table has no dense network.
    """
    final, trials = by_place(record for record in records if record.kind == "cell")
    if not final:
        raise PanningError("These records hold no cell of a benchmark: make some with panning bench CONFIG.")
    rows: dict[str, list[Row]] = defaultdict(list)
    for (text, name, density), some in final.items():
        images = [
            trial.metrics["images_seen"] / trial.metrics["n_train"]
            for trial in trials.get((text, name, density), ())
            if "images_seen" in trial.metrics
        ]
        ordered = tuple(sorted(some, key=lambda cell: cell.config["seed"]))
        rows[text].append(Row(name, density, ordered, sum(images) / len(some)))
    return _with_titles([(text, *_parted(text, of_text)) for text, of_text in rows.items()])


def _parted(text: str, rows: Sequence[Row]) -> tuple[Row, tuple[Row, ...]]:
    """The dense network's row, and the others in order."""
    dense = next((row for row in rows if row.method == "dense"), None)
    if dense is None or not dense.good:
        task, _ = json.loads(text)
        why = (
            "no dense network was trained; run the grid to its end, or join its shares"
            if dense is None
            else f"the dense network failed ({dense.cells[0].metrics['error']}); the recipe does not fit it"
        )
        raise PanningError(f"{task['model']} on {task['data']}: {why}.")
    n_failed = {row: len(row.cells) - len(row.good) for row in rows}
    others = [row for row in rows if row is not dense]
    return dense, tuple(sorted(others, key=lambda row: (-row.density, n_failed[row], -row.mean("test_accuracy"))))


def _with_titles(parts: Sequence[tuple[str, Row, tuple[Row, ...]]]) -> list[Table]:
    """Model and data, and what tells a table from others of the same."""
    loaded = [json.loads(text) for text, _, _ in parts]
    labels = [next(iter(dense.good.values()))["data_label"] for _, dense, _ in parts]
    titles = [" ".join(f"{task['model']} on {label}".split()) for (task, _), label in zip(loaded, labels, strict=True)]
    longer = [
        f"{title}, {recipe_text(recipe)}" if titles.count(title) > 1 else title
        for title, (_, recipe) in zip(titles, loaded, strict=True)
    ]
    final = [f"{t} ({longer[: i + 1].count(t)})" if longer.count(t) > 1 else t for i, t in enumerate(longer)]
    return [
        Table(title, recipe["epochs"], dense, rows)
        for title, (_, recipe), (_, dense, rows) in zip(final, loaded, parts, strict=True)
    ]


# --- text ---


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of accuracies, in percent."""
    if not values:
        return "failed"
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def table_cells(table: Table) -> list[list[str]]:
    """Every row as text, the dense network last."""
    return [_cells(table, row) for row in (*table.rows, table.dense)]


def _known(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns of which no line knows anything: records of another version may lack a figure."""
    kept = [i for i in range(len(columns)) if any(line[i] != "-" for line in lines)]
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines]


def _cells(table: Table, row: Row) -> list[str]:
    rates = {cell.config["recipe"]["learning_rate"] for cell in row.cells}
    effective, dead, compute = (row.of_masks(name) for name in ("effective_density", "n_dead_units", "compute_left"))
    collapsed, trained = row.n_collapsed_layers, row.of_masks("train_epochs")
    return [
        f"{row.density:g}",
        row.method,
        f"{statistics.fmean(effective):.5f}" if effective else "-",
        f"{statistics.fmean(dead):.0f}" if dead else "-",
        f"{max(collapsed)}" if collapsed else "-",
        f"{100 * statistics.fmean(compute):.1f}" if compute else "-",
        spread(list(row.values("test_accuracy").values())),
        spread(list(row.values("test_accuracy_of_best").values())),
        spread(list(row.values("accuracy").values())),
        " ".join(f"{rate:g}" for rate in sorted(rates)),
        f"{sum(table.cost(row)):.2f}",
        f"{statistics.fmean(trained):.3f}" if trained else "-",
        f"{len(row.good)}" + (f" of {len(row.cells)}" if len(row.good) < len(row.cells) else ""),
        _against(table, row),
    ]


def _against(table: Table, row: Row) -> str:
    if row is table.dense:
        return ""
    if row is table.best(row.density):
        return "best on validation"
    found = table.differences.get((row.density, row.method))
    if found is None:
        return "-"
    bounds = "" if math.isnan(found.low) else f" [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    verdict = f"p {found.p:.3f}" if found.is_significant else "no significant difference"
    return f"{100 * found.mean:+.2f}{bounds}, {verdict}" if found.is_tested else _untested(found)


def _untested(found: Difference) -> str:
    return "no seed in common" if found.n == 0 else f"{100 * found.mean:+.2f}, one seed: not tested"


def short_cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """The short table: a line a method, a column a density; by mean rank, where there is one."""
    order = table.ranks.names if table.ranks is not None else ()
    names = [*order, *(name for name in dict.fromkeys(row.method for row in table.rows) if name not in order)]
    by_place = {(row.method, row.density): row for row in table.rows}
    columns = ["method", *([] if not order else ["mean rank"]), *(f"{density:g}" for density in table.densities)]
    lines = []
    for name in names:
        rank = [f"{table.ranks.mean_ranks[order.index(name)]:.1f}" if name in order else "-"] if table.ranks else []
        shown = [by_place.get((name, density)) for density in table.densities]
        lines.append(
            [
                name,
                *rank,
                *("-" if row is None else spread(list(row.values("test_accuracy").values())) for row in shown),
            ]
        )
    return columns, lines


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
    test = spread(list(best.values("test_accuracy").values()))
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
    origins = dict.fromkeys(_origin(record) for record in records if record.kind == "cell")
    return "\n".join([*parts, "## Where this comes from", "", *(f"- {origin}" for origin in origins), ""])


def short_markdown(table: Table) -> str:
    """The short table alone."""
    columns, lines = short_cells(table)
    return "\n".join(markdown_table(columns, lines)) + "\n"


def _markdown(table: Table) -> str:
    seeds = sorted({cell.config["seed"] for row in (*table.rows, table.dense) for cell in row.cells})
    rank = table.ranks
    dense = spread(list(table.dense.values("test_accuracy").values()))
    lines = [
        f"## {table.title}",
        "",
        f"Test accuracy after the last of {table.epochs:g} epochs, mean ± standard deviation over seeds {_range(seeds)}; "
        f"the dense network has {dense} %. Same initial weights, batches and recipe for all with one seed; choices on the "
        "validation part; the test part was read once, at the end.",
        "",
        short_markdown(table),
        *([] if rank is None else [
            f"Mean rank over {rank.n_blocks} pairs of density and seed; Friedman's test that all are equal: p = "
            f"{rank.p_friedman:.2g}. The densities of one seed share weights and batches: ranks sum up, what holds is "
            "said by the paired tests.", "",
        ]),
        *(f"- {sentence}" for sentence in findings(table)),
        "",
        "Against the best on validation: mean difference in points on the test part, paired by seed, 95 % bootstrap "
        "interval, paired t-test with Holm's correction over the rows of one density, at 5 %. Cost: agent and tried "
        "learning rates, scoring (wall time by that of a dense epoch) and training, in passes of the dense network over the "
        "training part; multiply-adds count those of kept weights alone, and all where a method looks at masked ones.",
        "",
        *markdown_table(*_known(COLUMNS, table_cells(table))),
        "",
    ]  # fmt: skip
    failed = [(row, c) for row in (*table.rows, table.dense) for c in row.cells if c.metrics["error"] is not None]
    if failed:
        lines += ["Failed:", ""]
        lines += [f"- {r.method} at {r.density:g}, seed {c.config['seed']}: {c.metrics['error']}" for r, c in failed]
        lines += [""]
    return "\n".join(lines)


def _range(seeds: Sequence[int]) -> str:
    whole = seeds[-1] - seeds[0] == len(seeds) - 1 > 1
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _origin(record: RunRecord) -> str:
    about = record.environment
    versions, hardware = (about[name] if isinstance(about.get(name), dict) else {} for name in ("versions", "hardware"))
    return (
        f"Commit {about.get('commit')}; {', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{hardware.get('processor')}, {hardware.get('cores')} cores."
    )


# --- files ---


def write_report(records: Sequence[RunRecord], out: Path) -> list[Table]:
    """``report.md``, ``rows.csv``, ``rows.json``, and of each table the pictures ``accuracy``, ``ranks``, ``layers`` and
    ``cost`` (PNG); returns the tables."""
    found = tables(records)
    write_atomic(out / "report.md", _page(found, records))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", *COLUMNS])
    for table in found:
        writer.writerows([table.title, *cells] for cells in table_cells(table))
    write_atomic(out / "rows.csv", text.getvalue())
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


# --- pictures ---


#: Colours of the rows that one looks for; the others are grey, or there would be no telling them apart.
COLOURS = {
    "panning (agent)": "tab:red", "panning (agent) + all-alive": "tab:pink", "staged Panning": "tab:orange",
    "SynFlow": "tab:blue", "SynFlow (shuffled, as many alive)": "tab:cyan", "SNIP": "tab:green", "GraSP": "tab:olive",
    "magnitude": "tab:brown", "random (ERK)": "tab:purple",
}  # fmt: skip


OTHERS = "other methods"


def _lines(table: Table) -> list[tuple[str, list[Row], str | None]]:
    """Method, its rows by density, and its colour; grey ones first, so that they lie below."""
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.good:
            by_method[row.method].append(row)
    lines = [(name, rows, COLOURS.get(name)) for name, rows in by_method.items()]
    return sorted(lines, key=lambda line: (line[2] is not None, list(COLOURS).index(line[0]) if line[2] else 0))


def _legend(panels: Sequence[Any], fontsize: int) -> None:
    """Beside the last panel, each name once, the greys' last: a method may have no point in some panel."""
    shown = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(shown, key=lambda name: name == OTHERS)
    if names:
        panels[-1].legend(
            [shown[n] for n in names], names, fontsize=fontsize, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )


def accuracy_picture(table: Table) -> bytes:
    """Accuracy against effective compression, with 95 % bands: a mask with dead weights is as sparse as its live ones."""
    whole, (axes,) = figure(1, width=7.0, height=4.6)
    for name, rows, colour in _lines(table):
        alive = [row for row in rows if min(row.of_masks("effective_density")) > 0]
        if not alive:
            continue
        x = [1.0 / statistics.fmean(row.of_masks("effective_density")) for row in alive]
        values = [100 * np.array(list(row.values("test_accuracy").values())) for row in alive]
        style = {"color": colour or "0.8", "label": name if colour else OTHERS, "linewidth": 1.8 if colour else 0.8}
        axes.plot(x, [v.mean() for v in values], "o-", markersize=3, **style)
        bounds = [interval(v) for v in values]
        if colour and not any(math.isnan(low) for low, _ in bounds):
            axes.fill_between(x, [low for low, _ in bounds], [high for _, high in bounds], color=colour, alpha=0.15)
    axes.axhline(100 * table.dense.mean("test_accuracy"), linestyle="--", color="black", linewidth=0.8, label="dense")
    axes.set_xscale("log")
    axes.set_xlabel("effective compression (all weights / alive weights)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(table.title)
    axes.grid(alpha=0.3)
    _legend([axes], fontsize=7)
    return png(whole)


def rank_picture(table: Table) -> bytes | None:
    """The critical-difference diagram: methods that a bar joins are not told apart (Demsar 2006; Nemenyi's test)."""
    if (found := table.ranks) is None:
        return None
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    whole, (axes,) = figure(1, width=9.0, height=1.6 + 0.2 * len(found.names))
    critical_difference_diagram(
        dict(zip(found.names, found.mean_ranks, strict=True)),
        pd.DataFrame(found.p_pairs, index=list(found.names), columns=list(found.names)), ax=axes,
        label_props={"fontsize": 7},
    )  # fmt: skip
    axes.set_title(f"{table.title}: mean rank over {found.n_blocks} pairs of density and seed", fontsize=9)
    return png(whole)


def layer_picture(table: Table) -> bytes | None:
    """Density of each layer, one panel a density."""
    if not (densities := table.densities):
        return None
    whole, panels = figure(len(densities), width=3.4, height=3.6)
    for axes, density in zip(panels, densities, strict=True):
        for name, rows, colour in _lines(table):
            for row in (r for r in rows if r.density == density and colour):
                layers = dict(next(iter(row.good.values()))["layer_densities"])
                axes.plot(range(len(layers)), [max(d, 1e-6) for d in layers.values()], "o-", markersize=3, color=colour,
                          label=name)  # fmt: skip
                axes.set_xticks(
                    range(len(layers)), [n.removesuffix(".weight") for n in layers], rotation=60, fontsize=6
                )
        axes.set_yscale("log")
        axes.set_title(f"density {density:g}", fontsize=9)
    panels[0].set_ylabel("density of the layer")
    _legend(panels, fontsize=6)
    return png(whole)


def cost_picture(table: Table) -> bytes | None:
    """Accuracy against what it cost to come by, search and scoring included, one panel a density."""
    if not (densities := table.densities):
        return None
    whole, panels = figure(len(densities), width=3.4, height=3.6)
    for axes, density in zip(panels, densities, strict=True):
        for name, rows, colour in _lines(table):
            for row in (r for r in rows if r.density == density):
                style = (
                    {"color": colour, "label": name, "s": 24} if colour else {"color": "0.8", "label": OTHERS, "s": 10}
                )
                axes.scatter([sum(table.cost(row))], [100 * row.mean("test_accuracy")], **style)
        shown = [sum(table.cost(row)) for row in table.at(density) if row.good]
        if shown and min(shown) > 0 and max(shown) > 10 * min(shown):
            axes.set_xscale("log")  # on less than a decade its ticks run into each other
        axes.set_xlabel("dense epochs")
        axes.set_title(f"density {density:g}", fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    _legend(panels, fontsize=6)
    return png(whole)


PICTURES = {"accuracy": accuracy_picture, "ranks": rank_picture, "layers": layer_picture, "cost": cost_picture}
