"""What the methods cost, as measured: the records of ``panning bench speed`` that are shipped with the package."""

from __future__ import annotations

from pathlib import Path

from panning.benchmark import speed_report
from panning.records import RunRecord, read_records

#: Written by ``panning bench speed``; each record names its commit, versions and hardware.
RECORDS = Path(__file__).parent / "measured.jsonl"


def records() -> list[RunRecord]:
    """The shipped records."""
    return read_records(RECORDS)


def method_costs() -> dict[str, dict[str, float]]:
    """Method -> model -> all its rounds in plain forward and backward passes of its scoring batch, on one thread."""
    return speed_report.method_costs(records())
