"""Make every page and picture of docs/results anew, from the records beside them.

python docs/measure/results.py [NAME ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from panning.compare import fidelity, report, variance
from panning.compare.cells import read_cells
from panning.foundation.pictures import save

RESULTS = Path(__file__).parent.parent / "results"


def make(name: str) -> None:
    """The page of one file of records and, unless it is of fidelity, its pictures with their numbers.

    A page of levers begins with which part is whose.
    """
    records = read_cells([RESULTS / f"{name}.jsonl"])
    is_grid = not name.startswith("fidelity-")
    parts = [variance] if name.startswith("levers-") else []
    parts.append(report if is_grid else fidelity)
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n" + "\n".join(part.markdown(records) for part in parts))
    if is_grid:
        for old in [*RESULTS.glob(f"{name}-*.png"), *RESULTS.glob(f"{name}-*.csv")]:
            old.unlink()
        for picture, stem in report.pictures(report.tables(records)):
            save(picture, RESULTS / f"{name}-{stem}")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in RESULTS.glob("*.jsonl")):
        make(name)
