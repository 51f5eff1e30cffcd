"""Reports of grids: from records alone, with statistics that are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panning.benchmark import fidelity, grid_report
from panning.benchmark.statistics import difference, holm, interval, ranks
from panning.cli import main
from panning.errors import PanningError
from panning.records import RunRecord, canonical_json, content_key
from panning.tasks import TaskSpec
from panning.training import Recipe

TASK = TaskSpec(model="mlp", data="digits").model_dump(mode="json")
RECIPE = Recipe(epochs=3).model_dump(mode="json")
ENVIRONMENT = {"commit": "abc", "versions": {"torch": "9"}, "hardware": {"processor": "Z80", "cores": 1}}


def cell(
    method: str | None, accuracy: float, seed: int, density: float = 0.05, error: str | None = None, **change: Any
) -> RunRecord:
    """A record of a cell, with test accuracy ``accuracy`` and a validation accuracy that is one point higher."""
    config = {
        "task": TASK, "seed": seed, "density": 1.0 if method is None else density,
        "by": None if method is None else {"method": method}, "all_alive": False, "policy": None, "recipe": RECIPE,
        "test": True, **change,
    }  # fmt: skip
    metrics: dict[str, Any] = {
        "n_kept": 10, "density": config["density"], "effective_density": config["density"] * 0.9, "n_dead_units": 3,
        "collapsed_layers": [], "compute_left": 0.5, "layer_densities": [["a.weight", 0.1], ["b.weight", 0.01]],
        "mask": "m", "n_train": 100, "data": "d", "data_label": "Digits", "search_images": 0,
        "timing": {"prune_s": 2.0, "train_s": 3.0}, "error": error,
    }  # fmt: skip
    if error is None:
        metrics |= {
            "accuracy": accuracy + 0.01, "loss": 0.5, "best_epoch": 2.0, "best_accuracy": accuracy + 0.02,
            "images_seen": 300, "test_loss": 0.6,
            "history": [
                {"epoch": epoch, "train_loss": 1 - accuracy, "accuracy": accuracy, "loss": 1.0} for epoch in (1.0, 2.0, 3.0)
            ],
        }  # fmt: skip
        if config["test"]:
            metrics |= {"test_accuracy": accuracy, "test_accuracy_of_best": accuracy + 0.005}
    return RunRecord(content_key(config), "cell", config, metrics, ENVIRONMENT)


def grid(densities: tuple[float, ...] = (0.05, 0.01), n_seeds: int = 5) -> list[RunRecord]:
    """SNIP is 10 points better than ERK, and SynFlow as good as SNIP, up to noise."""
    rng = np.random.default_rng(0)
    records = [cell(None, 0.95, seed) for seed in range(n_seeds)]
    for density in densities:
        for method, level in (("erk", 0.7), ("snip", 0.8), ("synflow", 0.799), ("magnitude", 0.75)):
            records += [cell(method, level + 0.004 * rng.standard_normal(), seed, density) for seed in range(n_seeds)]
    return records


# --- statistics ---


def test_a_difference_is_paired_by_seed() -> None:
    first = {0: 0.50, 1: 0.70, 2: 0.90, 7: 0.1}
    second = {0: 0.49, 1: 0.68, 2: 0.87, 8: 0.9}
    found = difference(first, second)
    assert found.n == 3 and found.mean == pytest.approx(0.02)
    assert 0.0099 < found.low < 0.02 < found.high < 0.0301
    # By hand: mean 0.02, deviation 0.01, t = 0.02 / (0.01 / sqrt(3)) = 3.4641 with 2 degrees of freedom
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert difference(first, first).p == 1.0
    assert difference({0: 0.5}, {0: 0.4}).p == 1.0 and np.isnan(difference({0: 0.5}, {0: 0.4}).low)
    assert difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5}).p == 0.0  # equal differences that are not zero


def test_holm_multiplies_the_smallest_p_by_all() -> None:
    raw = [
        difference({0: a, 1: a + d, 2: a}, {0: 0.0, 1: 0.0, 2: 0.0}) for a, d in ((0.1, 0.01), (0.1, 0.02), (0.1, 0.2))
    ]
    corrected = holm(raw)
    ordered = sorted(d.p for d in raw)
    assert min(d.p for d in corrected) == pytest.approx(3 * ordered[0])
    assert all(after.p >= before.p for before, after in zip(raw, corrected, strict=True))
    assert holm([]) == []


def test_an_interval_holds_the_mean_and_is_a_point_for_equal_values() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    low, high = interval(values)
    assert 1.0 <= low < 2.5 < high <= 4.0 and interval(values) == (low, high)
    assert interval(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_ranks_are_means_over_the_blocks_that_all_have() -> None:
    values = {"a": {0: 3.0, 1: 3.0, 2: 9.0}, "b": {0: 2.0, 1: 1.0}, "c": {0: 1.0, 1: 2.0}}
    found = ranks(values)
    assert found is not None
    assert found.names == ("a", "b", "c") and found.mean_ranks == (1.0, 2.5, 2.5) and found.n_blocks == 2
    assert found.p_pairs.shape == (3, 3)
    assert ranks({"a": {0: 1.0}, "b": {0: 2.0}}) is None


# --- the report ---


def test_the_table_says_what_a_row_needs() -> None:
    (table,) = grid_report.tables(grid())
    assert table.title == "mlp on Digits" and table.densities == [0.05, 0.01] and len(table.rows) == 8
    best = table.best(0.05)
    cells = dict(zip(grid_report.COLUMNS, grid_report._cells(table, best), strict=True))
    assert cells["effective density"] == "0.04500" and cells["dead units"] == "3" and cells["n"] == "5"
    assert cells["against the best"] == "best on validation" and cells["multiply-adds %"] == "50.0"
    assert cells["cost, dense epochs"] == "5.00"  # 2 s of scoring, 1 s a dense epoch, 3 epochs of training
    worst = next(row for row in table.at(0.05) if row.method == "random (ERK)")
    text = grid_report._cells(table, worst)[-1]
    assert text.startswith("-10") and ", p 0.000" in text


def test_what_does_not_differ_is_said_not_to() -> None:
    (table,) = grid_report.tables(grid())
    sentence = grid_report.findings(table)[0]
    assert "SNIP is best on validation" in sentence or "SynFlow is best on validation" in sentence
    assert "No significant difference: S" in sentence
    assert "Significantly worse: magnitude, random (ERK)" in sentence
    assert "No significant difference: magnitude" not in sentence


def test_what_failed_is_a_row_that_says_so_and_ranks_last() -> None:
    records = [*grid(), *(cell("phew", 0.0, seed, error="no path") for seed in range(5))]
    records += [cell("phew", 0.9, seed, 0.01) for seed in range(4)] + [
        cell("phew", 0, 4, 0.01, error="the loss is nan")
    ]
    (table,) = grid_report.tables(records)
    row = next(row for row in table.at(0.05) if row.method == "PHEW")
    cells = dict(zip(grid_report.COLUMNS, grid_report._cells(table, row), strict=True))
    assert cells["test %, last epoch"] == "failed" and cells["n"] == "0 of 5" and table.at(0.05)[-1] is row
    assert next(row for row in table.at(0.01) if row.method == "PHEW").good.keys() == {0, 1, 2, 3}
    text = grid_report.markdown(records)
    assert "- PHEW at 0.05, seed 3: no path" in text and "- PHEW at 0.01, seed 4: the loss is nan" in text


def test_tuned_learning_rates_are_counted_as_cost() -> None:
    other = {**RECIPE, "learning_rate": 0.3}
    tried = [cell("snip", 0.8, s, recipe=r, test=False) for s in range(5) for r in (RECIPE, other)]
    (table,) = grid_report.tables([*grid(), *tried])
    row = next(row for row in table.at(0.05) if row.method == "SNIP")
    assert table.cost(row) == pytest.approx((6.0, 2.0, 3.0))


def test_the_report_writes_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [canonical_json(vars(record)) for record in grid()]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    main_ok("bench", "report", str(tmp_path), "--out", str(tmp_path / "r"))
    assert "mean rank" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"report.md", "rows.csv", "rows.json", "accuracy.png", "ranks.png", "layers.png", "cost.png"}
    rows = json.loads((tmp_path / "r" / "rows.json").read_text())
    assert len(rows) == 9 and rows[-1]["method"] == "dense"
    assert "Commit abc; torch 9; Z80, 1 cores." in (tmp_path / "r" / "report.md").read_text()


def main_ok(*arguments: str) -> None:
    try:
        main(list(arguments))
    except SystemExit as end:
        assert not end.code


def test_records_without_a_grid_are_refused() -> None:
    with pytest.raises(PanningError, match="no cell of a benchmark"):
        grid_report.tables([])
    with pytest.raises(PanningError, match="no dense network"):
        grid_report.tables([record for record in grid() if record.config["by"] is not None])


# --- fidelity ---


def shortly(record: RunRecord, accuracy: float) -> RunRecord:
    """The same mask trained for an epoch."""
    by = record.config["by"]
    short = cell(by["method"], accuracy, record.config["seed"], record.config["density"], recipe={**RECIPE, "epochs": 1},
                 test=False)  # fmt: skip
    return RunRecord(short.key, "cell", short.config, {**short.metrics, "images_seen": 100}, ENVIRONMENT)


def test_a_short_training_that_orders_as_the_full_one_foresees_it() -> None:
    records = grid(densities=(0.05,), n_seeds=2)
    masks = [record for record in records if record.config["by"] is not None]
    agreeing = [shortly(record, record.metrics["test_accuracy"] / 2) for record in masks]
    opposite = [shortly(record, 1 - record.metrics["test_accuracy"]) for record in masks]
    found = {f.judge: f for f in fidelity.foresights([*records, *agreeing]) if f.training.startswith("1 epochs")}
    assert found["accuracy"].by_mask == [pytest.approx(1.0)] and found["accuracy"].share == pytest.approx(
        1 / 3, abs=1e-3
    )
    assert found["accuracy"].by_method == [pytest.approx(1.0)] and max(found["accuracy"].regret) < 0.01
    wrong = next(
        f for f in fidelity.foresights([*records, *opposite]) if f.judge == "accuracy" and f.training.startswith("1 ")
    )
    assert wrong.by_mask == [pytest.approx(-1.0)]
    assert wrong.regret == [pytest.approx(0.1, abs=0.01)] * 2  # it takes ERK in place of SNIP


def test_epochs_of_the_full_training_are_short_trainings_too() -> None:
    found = fidelity.foresights(grid(densities=(0.05,)))
    assert {f.training for f in found} == {"the first 1 epochs of it", "the first 2 epochs of it"}
    assert [f.share for f in found if f.judge == "accuracy"] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert "| training loss |" in fidelity.markdown(grid(densities=(0.05,)))
