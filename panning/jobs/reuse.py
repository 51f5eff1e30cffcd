"""Other runs whose outcomes are not paid for again.

An outcome is taken over if all that it depends on is the same: the job's description, the data by their content, and what
computed it: the package's code, torch, Python, and whether an accelerator did. One that failed by what happened to its
process is none of the job. The records are those of the other folder: checked on reading, never written.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panning.foundation.errors import ConfigError, PanningWarning
from panning.foundation.files import check_no_links
from panning.foundation.machine import environment_info
from panning.foundation.making import ENTRY
from panning.foundation.records import RunRecord
from panning.jobs.begun import began_with
from panning.jobs.kept import Kept
from panning.jobs.outcome import OutcomeT
from panning.jobs.work import Job

#: What an environment says of an outcome that another run paid for: that run's folder.
REUSED = "reused_from"


class OtherRuns:
    """The outcomes of other runs' folders; the first folder that has one is asked.

    Args:
        out: the folder of the run that looks for them.

    Raises:
        ConfigError: if a folder has no records, or is ``out``.
        OutputError: if links lie in one.
        PanningError: if a record is none, with file, line and field.
    """

    def __init__(self, folders: Sequence[Path] = (), out: Path | None = None) -> None:
        for folder in folders:
            if out is not None and folder.resolve() == out.resolve():
                raise ConfigError(f"{folder} is the folder of this run itself; reuse names other runs.")
            if not (folder / "records.jsonl").is_file():
                raise ConfigError(f"{folder} is no folder of a search or benchmark: it has no records.jsonl to reuse.")
            check_no_links(folder)
        self._runs = [Kept(folder) for folder in folders]
        self._data = {run.out: began_with(run.out) for run in self._runs}
        self._said: set[tuple[Path, str]] = set()

    def get(self, job: Job[OutcomeT]) -> OutcomeT | None:
        """The outcome of a job in another run. Its environment says which."""
        for run in self._runs:
            if job.key not in run.records:
                continue
            record = run.records[job.key]
            if (differs := self._differs(run, record, job)) is not None:
                self._say(run.out, differs)
            elif record.metrics.get("failure") is None and (outcome := run.get(job)) is not None:
                return outcome.model_copy(update={"environment": {**record.environment, REUSED: str(run.out)}})
        return None

    def _differs(self, run: Kept, record: RunRecord, job: Job[Any]) -> str | None:
        """Why a record of the same description may say something else."""
        there = record.metrics["data"] if "data" in record.metrics else self._data[run.out]
        if job.data is not None and there != job.data:
            return "were made with other data" if there is not None else "do not say with which data they were made"
        here = environment_info(plugins=job.spec.plugins)
        if (then := _code(record.environment)) != (now := _code(here)):
            return f"were made by other code ({_said(then)}; here {_said(now)})"
        on_cpu = _part(record.environment, "hardware").get("accelerator") is None
        return None if on_cpu == (job.source.device == "cpu") else "were computed on another kind of device"

    def _say(self, folder: Path, differs: str) -> None:
        if (folder, differs) not in self._said:
            self._said.add((folder, differs))
            warnings.warn(
                f"Evaluations of {folder} {differs}; they are not reused.", PanningWarning, stacklevel=2
            )  # fmt: skip


def reused_sentences(records: Iterable[RunRecord]) -> tuple[str, ...]:
    """How many of a run's evaluations were taken from which runs; nothing where none was."""
    n, taken = 0, Counter[str]()
    for n, record in enumerate(records, start=1):  # noqa: B007
        if isinstance(folder := record.environment.get(REUSED), str):
            taken[folder] += 1
    if not taken:
        return ()
    parts = ", ".join(f"{count} from {folder}" for folder, count in sorted(taken.items()))
    return (f"{taken.total()} of {n} evaluations were paid for by other runs and reused: {parts}.",)


def _code(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What an outcome depends on of an environment."""
    versions = _part(environment, "versions")
    python = ".".join(str(versions.get("python")).split(".")[:2])
    parts = {"panning": environment.get("source"), "torch": versions.get("torch"), "python": python}
    return {**parts, "masks": environment.get(ENTRY), **_part(environment, "plugins")}


def _part(environment: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = environment.get(name)
    return part if isinstance(part, Mapping) else {}


def _said(code: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!s:.40}" for name, value in code.items())
