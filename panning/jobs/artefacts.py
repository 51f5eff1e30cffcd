"""The files that a run leaves, told to who listens."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from panning.foundation.files import file_digest
from panning.foundation.progress import Event, Listener, silent

#: Pattern of a file's path in a run's folder -> what it is. What no pattern names is the run's own: candidates' masks,
#: checkpoints, logs.
WHAT = {
    "mask*.safetensors": "mask", "choice-*.safetensors": "mask", "policy.safetensors": "policy",
    "agent/policy.safetensors": "policy", "model*.safetensors": "weights", "*.png": "picture", "*.pdf": "picture",
    "*.svg": "picture", "*.md": "table", "*.csv": "numbers", "result.json": "numbers", "rows.json": "numbers",
    "*.jsonl": "records", "config.yaml": "config",
}  # fmt: skip


def artefacts(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files in ``folder`` that are results, with what they are, by name."""
    for path in sorted([*folder.glob("*"), *folder.glob("agent/*")]):
        name = path.relative_to(folder).as_posix()
        what = next((what for form, what in WHAT.items() if _fits(name, form)), None)
        if what is not None and path.is_file() and not path.is_symlink():
            yield path, what


def _fits(name: str, form: str) -> bool:
    return name.count("/") == form.count("/") and fnmatchcase(name, form)


def tell_artefacts(folder: Path, listen: Listener) -> None:
    """Tell a listener of each file that a run has left (``panning.foundation.facts.ArtefactFacts``)."""
    if listen is silent:
        return
    found = list(artefacts(folder))
    for done, (path, what) in enumerate(found, start=1):
        facts = {
            "path": path.relative_to(folder).as_posix(), "what": what, "n_bytes": path.stat().st_size,
            "digest": file_digest(path),
        }  # fmt: skip
        listen(Event("results", done, len(found), "artefact", facts))
