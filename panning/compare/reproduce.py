"""Run one row of a benchmark again, from its record alone, and compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panning.compare.cells import without_timing
from panning.foundation.errors import PanningError
from panning.foundation.making import ENTRY, made_by
from panning.foundation.records import RunRecord
from panning.jobs.spec import CellSpec, digest
from panning.jobs.work import Job, execute
from panning.tasks import DataSource


def find_record(records: Sequence[RunRecord], key: str | None) -> RunRecord:
    """The cell whose key begins with ``key``; None will do where there is one only.

    Raises:
        PanningError: if there is none or more than one.
    """
    found = [record for record in records if record.kind == "cell" and record.key.startswith(key or "")]
    if not any(record.kind == "cell" for record in records):
        raise PanningError("These records hold no cell of a benchmark: make some with panning bench CONFIG.")
    if len(found) != 1:
        some = ", ".join(record.key[:10] for record in (found or records)[:5])
        begun = f" have a key that begins with '{key}'" if key else " are here"
        raise PanningError(f"{len(found)} cells{begun}; name one with --key, as {some}.")
    return found[0]


def version_of(record: RunRecord) -> int:
    """The version by which a record's mask was made (``panning.foundation.making``)."""
    return int(record.environment.get(ENTRY, 1))


def run_again(record: RunRecord, source: DataSource, policy: Path | None = None) -> RunRecord:
    """Run the cell of a record again, on this machine. Its mask is made by the version that made the recorded one.

    Args:
        policy: the agent's file, for a row of the agent.

    Raises:
        PanningError: if the row needs another policy file than this, or a version that is not known here.
    """
    data = policy.read_bytes() if policy is not None else None
    if record.config["policy"] != digest(data):
        wanted = (
            "the policy file that it was made with, beside its grid's config"
            if record.config["policy"]
            else "no policy file"
        )
        raise PanningError(f"The cell {record.key} needs {wanted} (--policy).")
    with made_by(version_of(record)):
        outcome = execute(Job(CellSpec.model_validate(record.config), source, data))
    return RunRecord(record.key, record.kind, record.config, outcome.metrics, {})


def row_spread(records: Sequence[RunRecord], record: RunRecord) -> float | None:
    """The standard deviation of test accuracy over the seeds of the record's row, where there are two."""
    row = {**record.config, "seed": None}
    same = [r for r in records if {**r.config, "seed": None} == row and "test_accuracy" in r.metrics]
    return statistics.stdev(r.metrics["test_accuracy"] for r in same) if len(same) > 1 else None


def differences(recorded: RunRecord, again: RunRecord) -> list[tuple[str, Any, Any]]:
    """(figure, recorded, now) of everything recorded that is not the same; timing apart."""
    before, now = without_timing(recorded), without_timing(again)
    return [(name, before[name], now.get(name)) for name in sorted(before) if before[name] != now.get(name)]
