"""The speed benchmark as a table, from records alone; those behind the documentation are shipped with the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from panning.foundation.files import write_atomic
from panning.foundation.records import RunRecord, read_records
from panning.foundation.tables import markdown_table, origin

COLUMNS = (
    "model", "samples", "threads", "item", "ms", "ratio", "to one", "lowest", "highest", "n", "peak MB",
    "to training step", "rounds", "total, passes",
)  # fmt: skip
NOTHING = "-"
#: The item by whose peak memory the peak memory of others is divided.
STEP = "training step"


#: Model, samples in the batch, threads -> item -> metrics.
Measured = dict[tuple[str, int, int], dict[str, dict[str, Any]]]


def shipped_records(name: str) -> list[RunRecord]:
    """The records of ``panning bench NAME`` that are shipped: speed, compaction."""
    return read_records(Path(__file__).parent / "records" / f"{name}.jsonl")


def measured(records: Iterable[RunRecord]) -> Measured:
    """The metrics of each network and setting, in the order of the records; records of other kinds are skipped."""
    found: Measured = {}
    for record in records:
        if record.kind == "speed":
            config = record.config
            key = (config["model"], config["n_samples"], config["threads"])
            found.setdefault(key, {})[config["item"]] = record.metrics
    return found


def total_passes(metrics: dict[str, Any]) -> float | None:
    """The cost of all rounds of a method in passes of the scoring batch; None if the item is no method or failed."""
    if metrics.get("method") is None or metrics["error"] is not None:
        return None
    return float(metrics["ratio"] * metrics["n_rounds"])


def method_costs(records: Iterable[RunRecord]) -> dict[str, dict[str, float]]:
    """Method -> model -> cost of all rounds in plain forward and backward passes of the scoring batch, on one thread."""
    costs: dict[str, dict[str, float]] = {}
    for (model, _, threads), items in measured(records).items():
        for metrics in items.values() if threads == 1 else ():
            if (total := total_passes(metrics)) is not None:
                costs.setdefault(metrics["method"], {})[model] = total
    return costs


def rows(records: Iterable[RunRecord]) -> Iterator[dict[str, Any]]:
    """The rows of the table, unrounded; unknown figures are None."""
    for (model, n_samples, threads), items in measured(records).items():
        step_bytes = items.get(STEP, {}).get("peak_bytes")
        for item, metrics in items.items():
            peak = metrics.get("peak_bytes")
            yield {
                "model": model, "n_samples": n_samples, "threads": threads, "item": item,
                **{key: metrics.get(key) for key in ("seconds", "ratio", "reference", "ratio_low", "ratio_high", "n")},
                "peak_bytes": peak, "process_peak_bytes": metrics.get("process_peak_bytes"),
                "memory_ratio": None if peak is None or not step_bytes else peak / step_bytes,
                "method": metrics.get("method"), "n_rounds": metrics.get("n_rounds"),
                "total_passes": total_passes(metrics), "error": metrics["error"],
            }  # fmt: skip


def table_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """The lines of the table."""
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


def failures(records: Iterable[RunRecord]) -> list[str]:
    """A line for every item that could not be measured."""
    return [
        f"{row['model']}, {row['threads']} threads, {row['item']}: {row['error']}"
        for row in rows(records)
        if row["error"] is not None
    ]


def markdown(records: Sequence[RunRecord]) -> str:
    """The page: the table, with what a reader must know of it."""
    failed = failures(records)
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
        *(["Failed:", "", *(f"- {line}" for line in failed), ""] if failed else []),
        *_origins(records),
        "",
    ]
    return "\n".join(lines)


def as_json(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything that the table shows, unrounded."""
    environment = records[-1].environment if records else {}
    return {
        "rows": list(rows(records)),
        "method_costs": method_costs(records),
        "environment": environment,
    }


def write_report(records: Sequence[RunRecord], out: Path) -> None:
    """Write ``table.md``."""
    write_atomic(out / "table.md", markdown(records))


def _origins(records: Iterable[RunRecord]) -> list[str]:
    """A line for each commit, set of versions and machine that the numbers come from."""
    found = (origin(record.environment) for record in records if record.kind == "speed" and record.environment)
    return list(dict.fromkeys(found))


def _short(value: float | None, scale: float = 1.0) -> str:
    """A figure with three digits, or as a whole number from a thousand on."""
    if value is None:
        return NOTHING
    scaled = value * scale
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"
