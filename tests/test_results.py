"""What docs/results shows comes out of the records beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from panning.benchmark import grid_pictures, grid_report
from panning.benchmark.cells import read_cells

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
#: The rows of the README's table.
IN_README = (
    "panning (agent) + all-alive",
    "panning (agent)",
    "SynFlow + all-alive",
    "SynFlow",
    "staged Panning",
    "PHEW",
    "NTK-SAP",
    "ProsPr",
    "SNIP + all-alive",
    "SNIP",
    "FORCE",
    "iterative SNIP",
    "GraSP",
    "magnitude + all-alive",
    "magnitude",
    "random (ERK) + all-alive",
    "random (ERK)",
    "SynFlow (shuffled, as many alive)",
    "SynFlow (of other weights)",
)


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_is_the_report_of_its_records(page: Path) -> None:
    records = read_cells([page.with_suffix(".jsonl")])
    assert page.read_text() == f"# {page.stem}\n\n" + grid_report.markdown(records)


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_has_every_picture_of_its_records(page: Path) -> None:
    for number, table in enumerate(tables := grid_report.tables(read_cells([page.with_suffix(".jsonl")]))):
        suffix = f"-{number + 1}" if len(tables) > 1 else ""
        drawn = {
            f"{page.stem}-{name}{suffix}.png"
            for name, draw in grid_pictures.PICTURES.items()
            if draw(table) is not None
        }
        assert drawn <= {path.name for path in RESULTS.glob("*.png")}


def test_the_readme_shows_the_main_rows_of_the_records() -> None:
    (table,) = grid_report.tables(read_cells([RESULTS / "fashion-lenet5.jsonl"]))
    shown = (ROOT / "README.md").read_text()
    assert grid_report.short_markdown(table, IN_README) in shown
    assert set(IN_README) <= {row.method for row in table.rows}
    assert table.dense.spread("test_accuracy") in shown
