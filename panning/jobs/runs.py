"""Folders of runs: what they are called, what lies in them, and which masks of candidates nothing needs any more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict

from panning.foundation.config import Config, parse_config
from panning.foundation.errors import MaskError, OutputError
from panning.foundation.files import check_no_links, file_digest, read_regular, sole_writer, strict_json, write_atomic
from panning.foundation.records import RunRecord, canonical_json, content_key, read_records, record_line
from panning.foundation.tables import csv_table
from panning.jobs.spec import nameless
from panning.jobs.ways import Way
from panning.masks.masks import Density
from panning.tasks import RunConfig, TaskSpec

RUNS = Path("runs")
INDEX_COLUMNS = ("file", "method", "density", "effective_density", "seed", "n_kept")
#: More than any run.json of ours has.
MAX_IDENTITY_BYTES = 1 << 20
MAX_PART = 40
RunT = TypeVar("RunT", bound=RunConfig)


def run_folder(command: str, identity: Mapping[str, Any], *parts: str) -> Path:
    """Where a run goes that is given no folder: its command, what a reader knows it by, and a hash of all that it is.

    Examples:
        >>> from panning.jobs.runs import run_folder
        >>> run_folder("prune", {"seed": 0}, "lenet5", "fashion_mnist", "snip", "d0.02", "s0").name[:-8]
        'prune-lenet5-fashion_mnist-snip-d0.02-s0-'
    """
    short = [re.sub(r"[^\w.+]+", "_", part).strip("_.")[-MAX_PART:] for part in parts]
    return RUNS / "-".join([command, *filter(None, short), content_key(identity)[:8]])


def said_of(task: TaskSpec) -> dict[str, Any]:
    """What a task says beside model and data, as JSON, for an identity; what is as by default is not said."""
    return task.model_dump(mode="json", exclude={"model", "data"}, exclude_defaults=True)


def started_from(config: RunT, weights: str | None) -> tuple[RunT, dict[str, str]]:
    """A run with its network at the weights of a file, if one is given; and what its identity says of the file."""
    if weights is None:
        return config, {}
    return config.with_network(None, Path(weights)), {"weights": file_digest(weights)}


# --- what lies in a folder ---

#: Command -> the keys of its identity that no other has, and what is there when it has ended.
COMMANDS: dict[str, tuple[set[str], str]] = {
    "search": ({"rungs"}, "result.json"),
    "train-agent": ({"env", "ppo"}, "policy.safetensors"),
    "train": ({"recipe", "model"}, "table.md"),
    "prune": ({"method", "density"}, "mask.safetensors"),
    "export": ({"format"}, "report.json"),
}


@dataclass(frozen=True)
class RunFolder:
    """A folder that a command made.

    Attributes:
        command: what made it; "run" if its identity does not say.
        has_ended: None where that cannot be told, as of a grid, which may be extended.
    """

    path: Path
    command: str
    has_ended: bool | None
    identity: dict[str, Any]

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """The run in a folder.

        Raises:
            OutputError: if the folder is none of a run.
        """
        try:
            identity = strict_json(read_regular(path / "run.json", MAX_IDENTITY_BYTES))
            if not isinstance(identity, dict):
                raise ValueError("not an object")
        except (OSError, ValueError):
            raise OutputError(f"{path} is no folder of a run: it has no run.json that can be read.") from None
        known = [name for name, (keys, _) in COMMANDS.items() if keys <= identity.keys()]
        command = str(identity.get("command", known[0] if known else "run"))
        ended = (path / COMMANDS[command][1]).exists() if command in COMMANDS else None
        return cls(path, command, ended, identity)

    def files(self) -> list[Path]:
        """All files, links apart."""
        return sorted(file for file in self.path.rglob("*") if file.is_file() and not file.is_symlink())

    @property
    def n_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files())

    @property
    def changed(self) -> datetime:
        """When a file of it was last written."""
        return datetime.fromtimestamp(max((file.stat().st_mtime for file in self.files()), default=0.0))

    @property
    def records(self) -> list[RunRecord]:
        """Those that there are, as they stand in the file."""
        path = self.path / "records.jsonl"
        return read_records(path) if path.exists() else []

    def check(self) -> None:
        """Raise OutputError if links lie in it, which may lead anywhere."""
        check_no_links(self.path)

    def row(self) -> dict[str, Any]:
        """What a list tells of it."""
        ended = {None: "", True: "yes", False: "no"}[self.has_ended]
        masks = len([file for file in self.files() if file.name.endswith(".safetensors") and _is_mask(self.path, file)])
        return {
            "run": self.path.name, "command": self.command, "ended": ended, "records": len(self.records), "masks": masks,
            "megabytes": round(self.n_bytes / 2**20, 1), "changed": self.changed.isoformat(" ", "minutes"),
        }  # fmt: skip


def _is_mask(folder: Path, file: Path) -> bool:
    older = "panning-density"  # a search's choice, as an older version called it
    return file.parent.name == "masks" or file.name.startswith(("mask", "choice-", older))


def chosen_mask(folder: Path, density: float, seed: int) -> Path:
    """The file of a search's choice.

    Examples:
        >>> from pathlib import Path
        >>> from panning.jobs.runs import chosen_mask
        >>> chosen_mask(Path("runs/demo"), 0.01, 0).name
        'choice-density0.01-seed0.safetensors'
    """
    return folder / f"choice-density{density:g}-seed{seed}.safetensors"


def run_folders(root: Path = RUNS) -> list[RunFolder]:
    """The runs in a folder, the latest first; other folders are passed over.

    Raises:
        OutputError: if there is no such folder.
    """
    if not root.is_dir():
        raise OutputError(f"There is no folder {root.resolve()}: panning runs list FOLDER lists the runs of another.")
    found = [RunFolder.at(path.parent) for path in root.glob("*/run.json")]
    return sorted(found, key=lambda run: (run.changed, run.path.name), reverse=True)


# --- masks of jobs ---


class _Asked(Config):
    """Of what a ``prune`` job was asked, what its mask is listed by."""

    model_config = ConfigDict(extra="ignore", strict=True)

    by: Any
    all_alive: bool
    density: Density
    seed: int


def write_index(folder: Path, records: Iterable[RunRecord]) -> None:
    """``masks/index.csv``: a line for each mask that lies there, with what made it."""
    rows = []
    for record in records:
        file = _mask_file(folder, record)
        if file is not None and file.exists():
            asked, figures = parse_config(_Asked, record.config, f"{folder}, the record {record.key}"), record.metrics
            rows.append(
                [file.name, _label(record.config), asked.density, figures["effective_density"], asked.seed,
                 figures["n_kept"]]
            )  # fmt: skip
    rows.sort(key=lambda row: (-row[2], row[1], row[4]))
    if rows or (folder / "masks" / "index.csv").exists():
        write_atomic(folder / "masks" / "index.csv", csv_table(INDEX_COLUMNS, rows))


def _label(config: Mapping[str, Any]) -> str:
    """The row of tables that a mask belongs to; its ``by`` where a package that it names is not installed here."""
    try:
        return Way(by=config["by"], all_alive=config["all_alive"]).label
    except ValueError:
        return canonical_json(config["by"])


def _mask_file(folder: Path, record: RunRecord) -> Path | None:
    """Where the mask of a job lies; None of a record that has none, or whose key could name a file elsewhere."""
    is_mask = record.kind == "prune" and "by" in record.config and record.metrics.get("error") is None
    return folder / "masks" / f"{record.key}.safetensors" if is_mask and re.fullmatch("[0-9a-f]+", record.key) else None


#: By, whether all alive, density, seed: which mask a row of the final table has.
Named = tuple[str, bool, float, int]


def _named(record: RunRecord) -> Named:
    asked = parse_config(_Asked, record.config, f"the record {record.key}")
    return canonical_json(nameless(asked.by)), asked.all_alive, asked.density, asked.seed


def needless_masks(run: RunFolder) -> list[Path]:
    """The masks of candidates that the final table of a search does not name.

    Raises:
        MaskError: if the search has not ended: its masks are what it goes on with.
    """
    if run.command != "search":
        raise MaskError(f"{run.path} is of 'panning {run.command}': searches alone leave masks of candidates.")
    if not run.has_ended:
        raise MaskError(f"The search in {run.path} has not ended, and its masks are what it goes on with.")
    records = run.records
    final = {_named(record) for record in records if record.kind == "cell" and record.config.get("by") is not None}
    found = []
    for record in records:
        file = _mask_file(run.path, record)
        if file is not None and file.is_file() and _named(record) not in final:
            found.append(file)
    return found


def retry_failures(run: RunFolder) -> int:
    """Take the records of trials that failed unforeseen out of a run, so that they run again; the number of them.

    Raises:
        OutputError: if another process writes to the folder, or links lie in it.
    """
    with sole_writer(run.path):
        path = run.path / "records.jsonl"
        kept = run.records
        failed = [record for record in kept if record.metrics.get("failure") is not None]
        if failed:
            gone = {record.key for record in failed}
            write_atomic(path, "".join(record_line(record) for record in kept if record.key not in gone))
        for record in failed:
            if re.fullmatch("[0-9a-f]+", record.key):
                (run.path / "failed" / f"{record.key}.txt").unlink(missing_ok=True)
    return len(failed)


def delete_masks(run: RunFolder, files: list[Path], tell: Callable[[Path], None] = lambda _: None) -> None:
    """Delete masks of a run and write the index of those that stay.

    Raises:
        OutputError: if another process writes to the folder.
    """
    with sole_writer(run.path):
        for file in files:
            file.unlink(missing_ok=True)
            tell(file)
        write_index(run.path, run.records)
