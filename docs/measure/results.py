"""Make every page and picture of docs/results anew, from the records beside them.

python docs/measure/results.py [NAME ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from panning.compare import fidelity, lever_pictures, lever_text, levers, report, variance
from panning.compare.cells import read_cells
from panning.foundation.pictures import Picture, save
from panning.foundation.records import RunRecord

RESULTS = Path(__file__).parent.parent / "results"


#: How the name of records begins -> what makes their page, part by part; the first that fits.
PARTS: dict[str, tuple[ModuleType, ...]] = {
    "levers-study": (lever_text,), "levers-": (variance, report), "fidelity-": (fidelity,), "": (report,),
}  # fmt: skip


def parts_of(name: str) -> tuple[ModuleType, ...]:
    """The modules that write the page of a file of records, by the file's name."""
    return next(parts for beginning, parts in PARTS.items() if name.startswith(beginning))


def pictures_of(name: str, records: list[RunRecord]) -> list[tuple[Picture, str]]:
    """The pictures of a page, each with the stem of its files; of fidelity there are none."""
    parts = parts_of(name)
    if lever_text in parts:
        return list(lever_pictures.pictures(levers.studies(records)))
    return list(report.pictures(report.tables(records))) if report in parts else []


def make(name: str) -> None:
    """The page of one file of records, and its pictures with their numbers."""
    records = read_cells([RESULTS / f"{name}.jsonl"])
    page = "\n".join(part.markdown(records) for part in parts_of(name))
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n{page}")
    if made := pictures_of(name, records):
        for old in [*RESULTS.glob(f"{name}-*.png"), *RESULTS.glob(f"{name}-*.csv")]:
            old.unlink()
    for picture, stem in made:
        save(picture, RESULTS / f"{name}-{stem}")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in RESULTS.glob("*.jsonl")):
        make(name)
