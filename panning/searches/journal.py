"""The journal of a search in free order: what was started and told in which order, a line each.

A line of the kind ``ask`` has a new candidate, ``promote`` one that goes on to a rung, ``told`` a job whose outcome came,
``close`` a density at which no new candidate is asked for, with the reason, ``open`` one at which they are again. Outcomes
stand in the records. Decisions follow from the lines before them, so that a search that was interrupted goes on as it would
have gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from panning.foundation.records import RecordStore, RunRecord
from panning.jobs.ways import Way
from panning.searches.asking import Notes
from panning.searches.lanes import Why

#: The file in a run's folder.
FILE = "journal.jsonl"
#: Kind of a line -> its fields with their types.
FIELDS: dict[str, dict[str, type]] = {
    "ask": {"density": float, "sampler": str, "way": dict},
    "promote": {"density": float, "number": int, "rung": int},
    "told": {"key": str},
    "close": {"density": float, "why": str},
    "open": {"density": float},
}  # fmt: skip


def check_line(record: RunRecord) -> None:
    """Raise ValueError, naming the field, if a line is none of a journal."""
    if record.kind not in FIELDS:
        raise ValueError(f"the kind '{record.kind:.20}' is none of {', '.join(FIELDS)}")
    fields, said = FIELDS[record.kind], record.config
    if said.keys() != fields.keys() or any(type(said[name]) is not kind for name, kind in fields.items()):
        raise ValueError(f"a line '{record.kind}' has the fields {', '.join(fields)}")
    if "way" in said:
        Way.model_validate(said["way"])
    if "why" in said and said["why"] not in get_args(Why):
        raise ValueError(f"why must be one of {', '.join(get_args(Why))}")
    spent = record.metrics.get("spent_s")
    if not isinstance(spent, int | float) or spent < 0:
        raise ValueError("spent_s must be a number of seconds")


class Journal(Notes):
    """The journal in a run's folder, and how long the search has taken, over all calls.

    Args:
        began: when this call began, by ``clock``.

    Raises:
        PanningError: if a line in it is none, with file, line and field.
    """

    def __init__(self, out: Path, began: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = RecordStore(out / FILE, check_line, is_durable=False)
        self._began = began
        self._clock = clock
        self._n = 0
        self._before_s = 0.0
        for record in self._lines:
            self._n, self._before_s = self._n + 1, float(record.metrics["spent_s"])

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((record.kind, record.config) for record in self._lines)

    @property
    def spent_s(self) -> float:
        """Seconds, those of earlier calls up to their last line too."""
        return self._before_s + self._clock() - self._began

    def add(self, kind: str, **said: Any) -> None:
        self._n += 1
        while str(self._n) in self._lines:  # of a journal whose lines were not numbered here
            self._n += 1
        self._lines.append(RunRecord(str(self._n), kind, said, {"spent_s": round(self.spent_s, 3)}))
