"""What was measured for the documents: records that are shipped with the package.

Written by ``panning bench``; each record names its commit, versions and hardware.
"""

from __future__ import annotations

from pathlib import Path

from panning.foundation.records import RunRecord, read_records
from panning.measure import report as speed_report


def records(name: str) -> list[RunRecord]:
    """Those of ``panning bench NAME``: speed, compaction, training."""
    return read_records(Path(__file__).parent / "records" / f"{name}.jsonl")


def method_costs() -> dict[str, dict[str, float]]:
    """Method -> model -> all its rounds in plain forward and backward passes of its scoring batch, on one thread."""
    return speed_report.method_costs(records("speed"))
