"""What a search leaves for people: a table (Markdown, CSV, JSON) and pictures (PNG)."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from panning.agents.pictures import reward_picture
from panning.foundation.files import write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.pictures import figure, png
from panning.foundation.tables import csv_table, markdown_table, origin, percent
from panning.search.run import Row, SearchResult

#: Red is panning's.
OTHER_COLOURS = [
    f"tab:{name}" for name in ("blue", "orange", "green", "purple", "brown", "pink", "gray", "olive", "cyan")
]
COLUMNS = (
    "density",
    "method",
    "effective density",
    "dead units",
    "collapsed layers",
    "multiply-adds %",
    "test accuracy %",
    "validation accuracy %",
    "n",
)


def table_cells(result: SearchResult) -> list[list[str]]:
    """The table's rows as text: each density's methods by mean test accuracy, dense last."""
    ordered = sorted(result.rows, key=lambda row: (row.method == "dense", -row.density, *_rank(row)))
    return [
        [
            f"{row.density:g}",
            f"{row.method} ({row.detail})" if row.detail else row.method,
            f"{statistics.fmean(row.effective_density):.5f}" if row.effective_density else "-",
            f"{statistics.fmean(row.dead_units):.0f}" if row.dead_units else "-",
            f"{max(row.collapsed_layers)}" if row.collapsed_layers else "-",
            f"{100 * statistics.fmean(row.compute_left):.1f}" if row.compute_left else "-",
            percent(_good(row.test)),
            percent(_good(row.validation)),
            f"{len(_good(row.test))}",
        ]
        for row in ordered
    ]


def write_report(result: SearchResult, out: Path) -> None:
    """``table.md``, ``table.csv``, ``result.json``, ``accuracy.png``, ``layers.png`` and, if an agent was trained,
    ``reward.png``."""
    write_atomic(out / "table.md", markdown(result))
    write_atomic(out / "table.csv", csv_table(COLUMNS, table_cells(result)))
    write_atomic(out / "result.json", as_json_text(result))
    write_atomic(out / "accuracy.png", _accuracy_picture(result))
    write_atomic(out / "layers.png", _layer_picture(result))
    if (out / "agent" / "rollouts.jsonl").exists():
        write_atomic(out / "reward.png", reward_picture(out / "agent" / "rollouts.jsonl"))


def markdown(result: SearchResult) -> str:
    """The table with what one must know to read it; nothing in it depends on when or how fast it was made."""
    config = result.config
    lines = [
        f"# {config.name}",
        "",
        f"{config.task.model} on {result.data_label}; mean ± standard deviation over {len(config.seeds)} seeds; last "
        f"epoch of {config.recipe.epochs:g}; the test part was read once, at the end. Multiply-adds are those of "
        "the compact network, in percent of the dense one's.",
        "",
        *markdown_table(COLUMNS, table_cells(result)),
        "",
        *findings(result),
        "",
        f"Cost in dense epochs (passes over the training part): agent {result.agent_epochs:.1f}, search "
        f"{result.search_epochs:.1f}, final trainings of all rows {result.final_epochs:.1f}.",
        "",
        origin(environment_info()),
        "",
    ]  # fmt: skip
    errors = [f"- {row.method} at {row.density:g}: {e}" for row in result.rows for e in row.errors]
    return "\n".join(lines + (["Failed:", "", *errors, ""] if errors else []))


def findings(result: SearchResult) -> list[str]:
    """One sentence a density: where panning stands among the methods, first or not."""
    sentences = []
    for density in result.config.densities:
        rows = sorted((r for r in result.rows if r.density == density), key=_rank)
        ours = next(row for row in rows if row.method == "panning")
        others = [row for row in rows if row is not ours]
        if not _good(ours.test):
            sentences.append(f"At density {density:g} panning failed.")
        elif not others:
            sentences.append(f"At density {density:g} panning stands alone.")
        else:
            other = others[0]
            gap = 100 * (_mean(ours.test) - _mean(other.test))
            place = 1 + sum(_rank(row) < _rank(ours) for row in others)
            shared = ", with others" if _rank(other) == _rank(ours) else ""
            word = f"number {place} of {len(rows)}" if place > 1 else f"first{shared}"
            sentences.append(f"At density {density:g} panning is {word}: {gap:+.2f} points against {other.method}.")
    return sentences


def as_json(result: SearchResult) -> dict[str, Any]:
    """Everything the table shows, unrounded."""
    return {
        "name": result.config.name,
        "data": result.data_label,
        "winners": {
            f"{d:g}": {"name": c.name, "by": c.by, "all_alive": c.all_alive} for d, c in result.winners.items()
        },
        "rows": [vars(row) for row in result.rows],
        "rungs": result.rungs,
        "cost_epochs": {
            "agent": result.agent_epochs, "search": result.search_epochs, "final": result.final_epochs,
        },
        "environment": environment_info(),
    }  # fmt: skip


def as_json_text(result: SearchResult) -> str:
    """``as_json`` as text."""
    return json.dumps(as_json(result), indent=2)


def _good(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: list[float | None]) -> float:
    good = _good(values)
    return statistics.fmean(good) if good else -1.0


def _rank(row: Row) -> tuple[int, float]:
    """Best first; a method that failed on a seed comes after those that did not."""
    return len(row.test) - len(_good(row.test)), -_mean(row.test)


# --- pictures ---


def _accuracy_picture(result: SearchResult) -> bytes:
    """Test accuracy of every method, one panel a density: a dot a seed, a bar at the mean, the dense network dashed."""
    whole, panels = figure(len(result.config.densities), width=4.6, height=4.0)
    dense = _mean(next(row for row in result.rows if row.method == "dense").test)
    for axes, density in zip(panels, result.config.densities, strict=True):
        rows = sorted((r for r in result.rows if r.density == density), key=lambda row: _mean(row.test))
        for place, row in enumerate(rows):
            colour = "tab:red" if row.method == "panning" else "tab:blue"
            values = [100 * value for value in _good(row.test)]
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, markersize=5)
            if values:
                axes.plot([statistics.fmean(values)], [place], "|", color=colour, markersize=16)
        axes.set_yticks(range(len(rows)), [row.method for row in rows])
        if dense >= 0:
            axes.axvline(100 * dense, linestyle="--", color="grey", linewidth=1)
        axes.set_xlabel("test accuracy, %")
        axes.set_title(f"density {density:g}")
    return png(whole)


def _layer_picture(result: SearchResult) -> bytes:
    """Density of each layer by method, log scale, one panel a density."""
    whole, panels = figure(len(result.config.densities), width=4.6, height=4.0)
    for axes, density in zip(panels, result.config.densities, strict=True):
        axes.set_prop_cycle(color=OTHER_COLOURS)
        for row in (r for r in result.rows if r.density == density and r.layer_densities):
            ours = row.method == "panning"
            values = [max(value, 1e-6) for value in row.layer_densities.values()]
            axes.plot(range(len(values)), values, "o-", label=row.method, linewidth=2.5 if ours else 1.0,
                      markersize=3, **({"color": "tab:red"} if ours else {}))  # fmt: skip
        names = next((list(r.layer_densities) for r in result.rows if r.layer_densities), [])
        axes.set_xticks(range(len(names)), [n.removesuffix(".weight") for n in names], rotation=60, fontsize=7)
        axes.set_yscale("log")
        axes.set_ylabel("density of the layer")
        axes.set_title(f"density {density:g}")
    panels[-1].legend(fontsize=6)
    return png(whole)
