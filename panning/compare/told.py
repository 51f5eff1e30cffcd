"""Rows of the table, told as soon as the cells of all their seeds are in."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from panning.compare.grid import Group
from panning.compare.rows import Row
from panning.foundation.progress import Event, Listener
from panning.foundation.records import RecordStore
from panning.jobs.outcome import CellOutcome
from panning.jobs.work import Job


def with_rows(
    listen: Listener, rows: Iterable[tuple[Group, Sequence[Job[CellOutcome]]]], records: RecordStore
) -> Listener:
    """A listener that tells ``listen`` every event of a stage of cells, and each row once that is complete; rows that are
    complete already are told after the first event.

    Args:
        rows: with the cells of each.
        records: where the cells' records are, before their events are told.
    """
    left = {job.key: row for row in [(group, tuple(jobs)) for group, jobs in rows] for job in row[1]}
    begun = False

    def hear(event: Event) -> None:
        nonlocal begun
        listen(event)
        key = event.facts.get("key")
        asked = ([left[key]] if key in left else []) if begun else list(dict.fromkeys(left.values()))
        begun = True
        for group, jobs in asked:
            if all(job.key in records for job in jobs):
                for job in jobs:
                    left.pop(job.key, None)
                facts = _facts(group, jobs, records)
                listen(Event(event.stage, event.done, event.total, "row", facts))

    return hear


def _facts(group: Group, jobs: Sequence[Job[CellOutcome]], records: RecordStore) -> dict[str, Any]:
    """``panning.foundation.facts.RowFacts``."""
    cells = tuple(records[job.key] for job in jobs)
    row = Row(str(jobs[0].facts["item"]), group.density, cells)
    task = group.task.task
    label = next(
        (cell.metrics["data_label"] for cell in cells if "data_label" in cell.metrics), task.label or str(task.data)
    )
    facts: dict[str, Any] = {
        "item": row.method, "table": f"{task.model_name} on {label}", "density": row.density, "n_seeds": len(row.good),
        "n_failed": len(cells) - len(row.good),
    }  # fmt: skip
    for name in ("effective_density", "compute_left"):
        if values := row.of_masks(name):
            facts[name] = statistics.fmean(values)
    if row.good:
        tested = list(row.values("test_accuracy").values())
        facts |= {"accuracy": row.mean("accuracy"), "test_accuracy": statistics.fmean(tested)}
        facts |= {"test_accuracy_std": statistics.stdev(tested)} if len(tested) > 1 else {}
    return facts
