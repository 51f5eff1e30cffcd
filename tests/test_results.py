"""What docs/results shows comes out of the records beside it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import results
from PIL import Image

from panning.compare import report as grid_report
from panning.compare.cells import read_cells
from panning.foundation.records import RunRecord

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(RESULTS.glob("*.md"))
GRIDS = [page for page in PAGES if not page.stem.startswith("fidelity-")]  # the others are of fidelity
#: Page -> name of the records -> the rows of its table; none named is all.
SHOWN = {
    "README.md": {
        "fashion-lenet5": (
            "panning (agent) + all-alive",
            "panning (agent)",
            "SynFlow + all-alive",
            "SynFlow",
            "staged Panning",
            "SNIP",
            "GraSP",
            "magnitude",
            "random (ERK)",
        ),
    },
    "docs/results.md": {
        "cifar10-resnet20-short": (),
        "fashion-lenet5": (
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
        ),
    },
}


def records_of(name: str) -> list[RunRecord]:
    return read_cells([RESULTS / f"{name}.jsonl"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_the_report_of_its_records(page: Path) -> None:
    records = records_of(page.stem)
    parts = [part.markdown(records) for part in results.parts_of(page.stem)]
    assert page.read_text() == f"# {page.stem}\n\n" + "\n".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("page", GRIDS, ids=lambda page: page.stem)
def test_a_page_has_every_picture_of_its_records_and_their_numbers(page: Path) -> None:
    drawn = {f"{page.stem}-{stem}": p for p, stem in results.pictures_of(page.stem, records_of(page.stem))}
    for form in ("png", "csv"):
        assert {path.stem for path in RESULTS.glob(f"{page.stem}-*.{form}")} == drawn.keys()
    for name, picture in drawn.items():
        assert picture.csv == (RESULTS / f"{name}.csv").read_text(), name
        held, now = (RESULTS / f"{name}.png").read_bytes(), picture.image("png")
        assert len(held) < 150_000
        if _drawn_by(now) == _drawn_by(held):  # another matplotlib has other pixels
            assert now == held, name


def _drawn_by(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture)) as image:
        return str(image.info["Software"])


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, names in SHOWN.items() for name in names])
def test_a_page_shows_the_main_rows_of_the_records(page: str, name: str) -> None:
    (table,) = grid_report.tables(records_of(name))
    shown = (ROOT / page).read_text()
    assert grid_report.short_markdown(table, SHOWN[page][name]) in shown
    assert set(SHOWN[page][name]) <= {row.method for row in table.rows}
    assert table.dense.spread("test_accuracy") in shown


def test_the_docs_show_the_main_rows_of_masks_that_move() -> None:
    shown = (ROOT / "docs" / "dynamics.md").read_text()
    for table in grid_report.tables(records_of("dynamics-fashion")):
        assert grid_report.short_markdown(table, [row.method for row in table.rows if not row.is_control]) in shown
        assert table.dense.spread("test_accuracy") in shown


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/benchmark.md", "docs/dynamics.md"])
def test_every_mean_with_its_spread_stands_on_a_page_of_results(name: str) -> None:
    """As an accuracy or, as published tables have it, an error."""
    pattern = re.compile(r"(\d+\.\d\d) ± (\d+\.\d\d)")
    held = {found for page in PAGES for found in pattern.findall(page.read_text())}
    held |= {(f"{100 - float(mean):.2f}", spread) for mean, spread in held}
    shown = set(pattern.findall((ROOT / name).read_text()))
    assert shown and shown <= held, shown - held
