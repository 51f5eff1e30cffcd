"""The speed benchmark for people: a table of what was measured, a table of goals, both from records alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panning.foundation.files import write_atomic
from panning.foundation.records import RunRecord
from panning.foundation.tables import markdown_table, origin
from panning.measure.goals import GOALS, STEP, Figures, quotient

COLUMNS = (
    "model", "samples", "threads", "item", "ms", "ratio", "to one", "lowest", "highest", "n", "peak MB",
    "to training step", "rounds", "total, passes",
)  # fmt: skip
GOAL_COLUMNS = ("model", "goal", "at most", "measured", "verdict")
NOTHING = "-"


@dataclass(frozen=True)
class Measured:
    """The records of one model with one number of samples and threads, as they are read from a file."""

    model: str
    n_samples: int
    threads: int
    figures: Figures


def measured(records: Iterable[RunRecord]) -> list[Measured]:
    """By model, samples and threads, in the order of the records; records of other kinds are passed over."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for record in records:
        if record.kind == "speed":
            config = record.config
            key = (config["model"], config["n_samples"], config["threads"])
            found.setdefault(key, {})[config["item"]] = record.metrics
    return [Measured(*key, Figures(metrics)) for key, metrics in found.items()]


def total_passes(metrics: dict[str, Any]) -> float | None:
    """What a method costs in all its rounds, in passes of the scoring batch; None for what is no method, or failed."""
    if metrics.get("method") is None or metrics["error"] is not None:
        return None
    return float(metrics["ratio"] * metrics["n_rounds"])


def method_costs(records: Iterable[RunRecord]) -> dict[str, dict[str, float]]:
    """Method -> model -> all its rounds in plain forward and backward passes of its scoring batch, on one thread."""
    costs: dict[str, dict[str, float]] = {}
    for case in measured(records):
        for metrics in case.figures.metrics.values() if case.threads == 1 else ():
            if (total := total_passes(dict(metrics))) is not None:
                costs.setdefault(metrics["method"], {})[case.model] = total
    return costs


def rows(records: Iterable[RunRecord]) -> Iterator[dict[str, Any]]:
    """The table's rows, unrounded; what is not known is None."""
    for case in measured(records):
        for item, metrics in case.figures.metrics.items():
            peak = case.figures.value(item, "peak_bytes")
            yield {
                "model": case.model, "n_samples": case.n_samples, "threads": case.threads, "item": item,
                **{key: metrics.get(key) for key in ("seconds", "ratio", "reference", "ratio_low", "ratio_high", "n")},
                "peak_bytes": peak, "process_peak_bytes": metrics.get("process_peak_bytes"),
                "memory_ratio": quotient(peak, case.figures.value(STEP, "peak_bytes")),
                "method": metrics.get("method"), "n_rounds": metrics.get("n_rounds"),
                "total_passes": total_passes(dict(metrics)), "error": metrics["error"],
            }  # fmt: skip


def table_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """The table as text."""
    return [
        [
            row["model"], str(row["n_samples"]), str(row["threads"]), row["item"],
            _short(row["seconds"], 1e3) if row["error"] is None else "failed",
            _short(row["ratio"]), row["reference"] or NOTHING, _short(row["ratio_low"]), _short(row["ratio_high"]),
            str(row["n"] or NOTHING), _short(row["peak_bytes"], 1e-6), _short(row["memory_ratio"]),
            str(row["n_rounds"]) if row["method"] else NOTHING, _short(row["total_passes"]),
        ]
        for row in rows(records)
    ]  # fmt: skip


def goal_rows(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """Every goal that applies to a measured model and could be measured; ``missed_by`` is 0 where it is met."""
    found = []
    for case in measured(records):
        for goal in GOALS if case.threads == 1 else ():
            bound, value = goal.bound_for(case.model, case.n_samples), goal.measure(case.figures)
            if bound is not None and value is not None:
                missed_by = max(0.0, value - bound)
                found.append({
                    "model": case.model, "goal": goal.name, "bound": bound, "measured": value, "missed_by": missed_by,
                })  # fmt: skip
    return found


def goal_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """The table of goals as text."""
    return [
        [
            row["model"], row["goal"], _short(row["bound"]), _short(row["measured"]),
            f"missed by {_short(row['missed_by'])}" if row["missed_by"] else "met",
        ]
        for row in goal_rows(records)
    ]  # fmt: skip


def failures(records: Iterable[RunRecord]) -> list[str]:
    """A line for every item that could not be measured."""
    return [
        f"{row['model']}, {row['threads']} threads, {row['item']}: {row['error']}"
        for row in rows(records)
        if row["error"] is not None
    ]


def markdown(records: Sequence[RunRecord]) -> str:
    """``table.md``: both tables with what one must know to read them."""
    goals, failed = goal_cells(records), failures(records)
    lines = [
        "# Speed",
        "",
        "Ratio: the median time of the item by that of the reference, which was timed before it in every repetition; lowest "
        "and highest are of single repetitions. A pass is one plain forward and backward pass of the same batch. Peak MB is "
        "what the item holds at most above what was resident before anything of it was made. Total: the ratio of one round "
        "times the method's own number of rounds.",
        "",
        *markdown_table(COLUMNS, table_cells(records)),
        "",
        *(["Goals, on one thread:", "", *markdown_table(GOAL_COLUMNS, goals), ""] if goals else []),
        *(["Failed:", "", *(f"- {line}" for line in failed), ""] if failed else []),
        *_origins(records),
        "",
    ]
    return "\n".join(lines)


def as_json(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything the tables show, unrounded."""
    environment = records[-1].environment if records else {}
    return {
        "rows": list(rows(records)),
        "goals": goal_rows(records),
        "method_costs": method_costs(records),
        "environment": environment,
    }


def write_report(records: Sequence[RunRecord], out: Path) -> None:
    """``table.md``."""
    write_atomic(out / "table.md", markdown(records))


def _origins(records: Iterable[RunRecord]) -> list[str]:
    """Where the numbers come from: a line for each commit, versions and machine among the records."""
    found = (origin(record.environment) for record in records if record.kind == "speed" and record.environment)
    return list(dict.fromkeys(found))


def _short(value: float | None, scale: float = 1.0) -> str:
    """Three digits; a thousand and more as whole numbers."""
    if value is None:
        return NOTHING
    scaled = value * scale
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"
