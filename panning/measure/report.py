"""The speed benchmark as tables, from records alone; those behind the documentation are shipped with the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from panning.foundation.files import write_atomic
from panning.foundation.pictures import save
from panning.foundation.records import RunRecord, read_records
from panning.foundation.tables import markdown_table, origin
from panning.foundation.text import in_markdown
from panning.measure.sizes import FIT_COLUMNS, OF_SIZE, fit_cells, fits, size_picture

COLUMNS = (
    "model", "samples", "threads", "item", "ms", "CPU ms", "ratio", "to one", "lowest", "highest", "authors' step", "n",
    "peak MB", "to training step", "process MB", "rounds", "total, passes",
)  # fmt: skip
PART_COLUMNS = ("model", "part", "CPU s", "an episode has", "CPU s an episode", "share")
NOTHING = "-"
#: Items that others are timed beside, and the item by whose peak memory the peak memory of others is divided.
PASS, PASS_OF_ONE, AUTHORS, STEP = "pass", "pass of one, float64", "the authors' step", "training step"
READING = (
    "Ratio: the median time of the item by that of the reference, which was timed before it in every repetition; lowest and "
    "highest are of single repetitions. It is a ratio of processor times on one thread of a processor, of wall times on "
    "several and on accelerators (records without CPU ms: wall times). A pass is one plain forward and backward pass of the "
    "same batch. *Authors' step*: how many of this item the time of one step of the Panning authors' environment has room "
    "for; that step is written anew in plain PyTorch and timed in turns with the item. An *agent's round* is a round of a "
    "shipped agent's episode to density 0.01, the mean over the episode, by the actions that the agent takes on this "
    "network. Peak MB is what the item holds at most above what was resident before anything of it was made; process MB is "
    "the highest resident size of a whole process that does nothing but the item, once. Total: the ratio of one round times "
    "the method's own number of rounds."
)
OF_PARTS = (
    "What an episode of an agent's training costs, in parts, on one thread: each part was timed by itself; the learning of "
    "PPO's two small networks, less than a hundredth, is left out. Repair, training and rounds of the references count with "
    "the share of a reference that an episode has."
)


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
                **{key: metrics.get(key) for key in ("cpu_seconds", "clock", "rival", "times_rival", "alone_bytes")},
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
            _short(row["seconds"], 1e3) if row["error"] is None else "failed", _short(row["cpu_seconds"], 1e3),
            _short(row["ratio"]), row["reference"] or NOTHING, _short(row["ratio_low"]), _short(row["ratio_high"]),
            _short(row["times_rival"]), str(row["n"] or NOTHING), _short(row["peak_bytes"], 1e-6),
            _short(row["memory_ratio"]), _short(row["alone_bytes"], 1e-6),
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


def parts_of_episodes(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """What an episode of an agent's training costs in each part, in seconds of processor time, and the part's share."""
    found = []
    for (model, _, threads), items in measured(records).items():
        parts = [
            {"model": model, "part": item, "seconds": metrics["cpu_seconds"], "times": metrics["per_episode"],
             "in_episode": metrics["cpu_seconds"] * metrics["per_episode"]}
            for item, metrics in items.items()
            if threads == 1 and metrics.get("per_episode") is not None
        ]  # fmt: skip
        whole = sum(part["in_episode"] for part in parts)
        found += [{**part, "share": part["in_episode"] / whole} for part in parts]
    return found


def part_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """The lines of the table of an episode's parts."""
    return [
        [part["model"], part["part"], _short(part["seconds"]), _short(part["times"]), _short(part["in_episode"]),
         f"{100 * part['share']:.0f} %"]
        for part in parts_of_episodes(records)
    ]  # fmt: skip


def markdown(records: Sequence[RunRecord]) -> str:
    """The page: a table for each machine and state of the code, with what a reader must know of it."""
    lines = ["# Speed", "", READING, ""]
    by_origin: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.kind == "speed":
            by_origin.setdefault(origin(record.environment) if record.environment else "", []).append(record)
    for said, some in by_origin.items():
        failed = failures(some)
        lines += [*markdown_table(COLUMNS, table_cells(some)), ""]
        lines += ["Failed:", "", *(f"- {in_markdown(line)}" for line in failed), ""] if failed else []
        if parts := part_cells(some):
            lines += [OF_PARTS, "", *markdown_table(PART_COLUMNS, parts), ""]
        if curves := fits(some):
            lines += [OF_SIZE, "", *markdown_table(FIT_COLUMNS, fit_cells(curves)), ""]
        lines += [in_markdown(said), ""] if said else []
    return "\n".join(lines)


def as_json(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything that the tables show, unrounded."""
    environment = records[-1].environment if records else {}
    return {
        "rows": list(rows(records)),
        "method_costs": method_costs(records),
        "parts_of_episodes": parts_of_episodes(records),
        "sizes": [asdict(fit) for fit in fits(records)],
        "environment": environment,
    }


def write_report(records: Sequence[RunRecord], out: Path, formats: Sequence[str] = ("png",)) -> None:
    """Write ``table.md``, and where sizes were measured the picture ``sizes``."""
    write_atomic(out / "table.md", markdown(records))
    if curves := fits(records):
        save(size_picture(curves), out / "sizes", formats)


def _short(value: float | None, scale: float = 1.0) -> str:
    """A figure with three digits, or as a whole number from a thousand on."""
    if value is None:
        return NOTHING
    scaled = value * scale
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"
