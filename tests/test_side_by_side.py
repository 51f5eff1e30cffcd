"""Searches side by side: the course of each from its folder alone, the table at equal cost, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from console import run
from test_free_order import FREE
from test_search import config, search

from panning.foundation.errors import ConfigError
from panning.searches.report import write_report
from panning.searches.run import SearchResult
from panning.searches.side_by_side import Course, courses, picture, side_by_side

BOTH: dict[str, Any] = {**FREE, "densities": [0.1, 0.05], "n_samples": 0}


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    """A search at two densities that ended."""
    out = tmp_path_factory.mktemp("fixed")
    result = search(out, **BOTH, samplers=["fixed"])
    write_report(result, out, formats=())
    return out, result


def test_a_course_ends_where_its_search_ended(fixed: tuple[Path, SearchResult]) -> None:
    out, result = fixed
    found = courses(out)
    assert [(one.task, one.density, one.samplers) for one in found] == [
        ("mlp on digits", 0.1, "fixed"), ("mlp on digits", 0.05, "fixed"),
    ]  # fmt: skip
    assert sum(one.paid for one in found) * result.n_train == pytest.approx(result.search_images)
    assert found[0].agent * result.n_train == pytest.approx(result.agent_images)
    for one in found:
        last = [entry for entry in result.rungs if entry["density"] == one.density and entry["rung"] == 2]
        assert one.steps[-1][1] == max(entry["accuracy"] for entry in last)
        costs, bests = zip(*one.steps, strict=True)
        assert [*costs] == sorted(costs) and [*bests] == sorted(bests) and costs[0] > 0 and costs[-1] <= one.paid
        assert costs[0] >= 2 * 1.0  # one candidate through both rungs: an epoch, then one on each of two seeds


def of(samplers: str, *steps: tuple[float, float], paid: float = 10.0) -> Course:
    return Course("net on data", 0.1, samplers, steps, paid, 0.0)


def test_the_table_is_at_shares_of_what_the_cheapest_paid() -> None:
    rows = side_by_side([
        of("a", (1.0, 0.5), (4.0, 0.6), (9.0, 0.9)), of("a", (3.0, 0.7), paid=8.0), of("b", (2.0, 0.66), (7.0, 0.8)),
    ])  # fmt: skip
    assert [(row.samplers, row.common) for row in rows] == [("b", 8.0), ("a", 8.0)]  # by the best at 8, not at the end
    assert rows[1].accuracies == [[0.5], [0.6, 0.7], [0.6, 0.7]]  # at 2, 4 and 8 dense epochs
    assert rows[0].cells == ["net on data", "0.1", "b", "1", "66.00", "66.00", "80.00", "10.0", "0.0"]
    assert rows[1].cells[3:5] == ["2", "50.00"] and rows[1].cells[5].startswith("65.00 [")
    assert rows[0].numbers[2][:6] == ["net on data", 0.1, "b", 1.0, 8.0, 0.8]
    assert rows[1].courses[1].best_at(2.9) is None
    assert picture(rows).csv.splitlines()[1:3] == ["net on data,0.1,b,0,2,0.66", "net on data,0.1,b,0,7,0.8"]
    assert side_by_side([of("c"), of("c", (9.0, 0.5))])[0].cells[4:7] == ["none yet", "none yet", "50.00"]


def test_the_command_writes_table_picture_and_numbers(
    fixed: tuple[Path, SearchResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("runs", "compare", str(fixed[0]), "--out", str(tmp_path)) == 0
    assert "mlp on digits" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        "compare.md", "compare.csv", "compare-course.png", "compare-course.csv",
    }  # fmt: skip
    assert "| mlp on digits | 0.05 | fixed | 1 |" in (tmp_path / "compare.md").read_text()
    assert run("runs", "compare", str(fixed[0]), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["samplers"] == "fixed"


def test_what_is_no_search_in_free_order_that_ended_is_refused(
    fixed: tuple[Path, SearchResult], tmp_path: Path
) -> None:
    shutil.copytree(fixed[0], tmp_path / "x")
    (tmp_path / "x" / "result.json").write_text('{"cost_epochs": []}')
    with pytest.raises(ConfigError, match="result.json is no result of a search"):
        courses(tmp_path / "x")
    (tmp_path / "x" / "journal.jsonl").unlink()
    with pytest.raises(ConfigError, match="is no search in free order that has ended: it needs journal.jsonl"):
        courses(tmp_path / "x")
    assert config(**BOTH).order == "free"
