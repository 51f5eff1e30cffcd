"""What docs/results shows comes out of the records beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from panning.benchmark import grid_report
from panning.benchmark.cells import read_cells

RESULTS = Path(__file__).parent.parent / "docs" / "results"


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_is_the_report_of_its_records(page: Path) -> None:
    records = read_cells([page.with_suffix(".jsonl")])
    assert page.read_text() == f"# {page.stem}\n\n" + grid_report.markdown(records)
