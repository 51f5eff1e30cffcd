"""Reports of grids: from records alone, with statistics that are known by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panning.cli import main
from panning.compare import fidelity
from panning.compare import pictures as grid_pictures
from panning.compare import report as grid_report
from panning.compare import text as row_text
from panning.compare.cells import check_cell
from panning.compare.lines import compression, is_dead, lines
from panning.compare.statistics import detectable, difference, holm, interval, ranks
from panning.episode.actions import ActionSpec
from panning.foundation.errors import PanningError
from panning.foundation.pictures import PALETTE
from panning.foundation.records import RunRecord, canonical_json, content_key
from panning.pruners import PRUNERS
from panning.tasks import TaskSpec
from panning.training import Recipe, make_dynamic

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
        "mask": content_key([method, change.get("by"), change.get("all_alive")]),
        "n_train": 100, "data": "d", "data_label": "Digits", "search_images": 0,
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
    return RunRecord(content_key({"kind": "cell", **config}), "cell", config, metrics, ENVIRONMENT)


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
    # By hand: mean 0.02, deviation 0.01, t = 0.02 / (0.01 / sqrt(3)) = 3.4641 with 2 degrees of freedom; 97.5 % of whose
    # values lie below 4.3027
    assert (found.low, found.high) == pytest.approx((0.02 - 0.024841, 0.02 + 0.024841), abs=1e-5)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert difference(first, first).p == 1.0
    assert difference({0: 0.5}, {0: 0.4}).p == 1.0 and np.isnan(difference({0: 0.5}, {0: 0.4}).low)


def test_equal_differences_are_as_sure_as_their_signs() -> None:
    """A t-test has p = 0 for them, but two seeds agree by chance where the test part has few images."""
    for gap in (0.5, 0.1):  # 0.1 is not equal to the last bit
        assert difference({0: 1.0, 1: 2.0}, {0: 1.0 - gap, 1: 2.0 - gap}).p == pytest.approx(0.5)
    assert difference(dict.fromkeys(range(6), 0.9), dict.fromkeys(range(6), 0.8)).p == pytest.approx(2 / 2**6)
    assert interval(np.array([0.9 - 0.8, 0.95 - 0.85, 0.1])) == pytest.approx((0.1, 0.1))


def test_holm_multiplies_the_smallest_p_by_all() -> None:
    raw = [
        difference({0: a, 1: a + d, 2: a}, {0: 0.0, 1: 0.0, 2: 0.0}) for a, d in ((0.1, 0.01), (0.1, 0.02), (0.1, 0.2))
    ]
    by_hand = [0.0, 0.0, 0.0]
    for times, d in zip((3, 2, 1), sorted(raw, key=lambda d: d.p), strict=True):
        by_hand[raw.index(d)] = min(max(times * d.p, *by_hand), 1.0)
    assert len({d.p for d in raw}) == 3 and [d.p for d in holm(raw)] == pytest.approx(by_hand, rel=1e-12)
    assert [d.p for d in holm([replace(raw[0], p=p) for p in (0.6, 0.01, 0.04, 0.7)])] == pytest.approx(
        [1, 0.04, 0.12, 1]
    )
    assert holm([]) == []
    one_seed = difference({0: 0.9}, {0: 0.1})
    assert holm([raw[0], one_seed]) == [raw[0], one_seed]  # what is not tested does not count


def test_an_interval_holds_the_mean_and_is_a_point_for_equal_values() -> None:
    values = np.arange(12.0)
    low, high = interval(values)
    assert 0.0 <= low < 5.5 < high <= 11.0 and interval(values) == (low, high)
    assert interval(np.array([2.0, 2.0])) == (2.0, 2.0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_an_interval_of_few_values_holds_the_mean_as_often_as_it_says(n: int) -> None:
    """A bootstrap's of three values does so in 69 of 100 cases."""
    draws = np.random.default_rng(0).standard_normal((1000, n))
    held = [low <= 0.0 <= high for low, high in map(interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_what_can_be_found_at_all_is_known_by_hand() -> None:
    # One comparison over 3 seeds: t of 2 degrees of freedom at 97.5 % is 4.3027, by the root of 3
    assert detectable(3, 1) == pytest.approx(2.4842, abs=1e-4)
    assert detectable(5, 33) > detectable(5, 11) > detectable(10, 11)


def test_ranks_are_means_over_the_blocks_that_all_have() -> None:
    values = {"a": {0: 3.0, 1: 3.0, 2: 9.0}, "b": {0: 2.0, 1: 1.0}, "c": {0: 1.0, 1: 2.0}}
    found = ranks(values)
    assert found is not None
    assert found.names == ("a", "b", "c") and found.mean_ranks == (1.0, 2.5, 2.5) and found.n_blocks == 2
    assert found.p_pairs.shape == (3, 3)
    assert ranks({"a": {0: 1.0}, "b": {0: 2.0}}) is None
    assert ranks({}) is None


def test_ranks_take_the_largest_table_without_a_hole() -> None:
    values = {name: {block: float(i) for block in range(4)} for i, name in enumerate("abc")}
    begun = ranks({**values, "d": {0: 9.0}})  # a row that was added
    assert begun is not None and begun.names == ("c", "b", "a") and begun.n_blocks == 4
    begun = ranks({**values, "a": {**values["a"], 4: 1.0}})  # a seed that was begun
    assert begun is not None and len(begun.names) == 3 and begun.n_blocks == 4


# --- the report ---


def test_the_table_says_what_a_row_needs() -> None:
    (table,) = grid_report.tables(grid())
    assert table.title == "mlp on Digits" and table.densities == [0.05, 0.01] and len(table.rows) == 8
    best = table.best(0.05)
    cells = dict(zip(row_text.COLUMNS, row_text.row_cells(table, best), strict=True))
    assert cells["effective density"] == "0.04500" and cells["dead units"] == "3" and cells["n"] == "5"
    assert cells["against the best"] == "best on validation" and cells["multiply-adds %"] == "50.0"
    assert cells["cost, dense epochs"] == "5.00"  # 2 s of scoring, 1 s a dense epoch, 3 epochs of training
    worst = next(row for row in table.at(0.05) if row.method == "random (ERK)")
    text = row_text.row_cells(table, worst)[-1]
    assert text.startswith("-10") and ", p < 0.001" in text


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
    cells = dict(zip(row_text.COLUMNS, row_text.row_cells(table, row), strict=True))
    assert cells["test %, last epoch"] == "failed" and cells["n"] == "0 of 5" and table.at(0.05)[-1] is row
    assert next(row for row in table.at(0.01) if row.method == "PHEW").good.keys() == {0, 1, 2, 3}
    text = grid_report.markdown(records)
    assert "- PHEW at 0.05, seed 3: no path" in text and "- PHEW at 0.01, seed 4: the loss is nan" in text


def test_tuned_learning_rates_are_counted_as_cost() -> None:
    other = {**RECIPE, "learning_rate": 0.3}
    tried = [cell("snip", 0.8, s, recipe=r, test=False) for s in range(5) for r in (RECIPE, other)]
    (table,) = grid_report.tables([*grid(), *tried])
    row = next(row for row in table.at(0.05) if row.method == "SNIP")
    assert table.cost(row) == pytest.approx((2 * (2.0 + 3.0), 2.0, 3.0))  # each rate scored and trained


def test_a_rate_that_failed_has_cost_a_training_and_is_named() -> None:
    other = {**RECIPE, "learning_rate": 9.0}
    tried = [cell("snip", 0.8, s, recipe=RECIPE, test=False) for s in range(5)]
    tried += [cell("snip", 0.0, s, recipe=other, test=False, error="the loss is nan") for s in range(5)]
    for record in tried[5:]:
        del record.metrics["timing"]
    (table,) = grid_report.tables([*grid(), *tried])
    row = next(row for row in table.at(0.05) if row.method == "SNIP")
    assert table.cost(row)[0] == pytest.approx(2.0 + 3.0 + 3.0)  # scoring and training, and training
    cells = dict(zip(row_text.COLUMNS, row_text.row_cells(table, row), strict=True))
    assert cells["learning rate"] == "0.1 of 0.1, 9 (failed)"


def test_a_mask_that_cannot_be_made_costs_no_training() -> None:
    unmade = [cell("phew", 0.0, seed, error="no path") for seed in range(5)]
    for record in unmade:
        record.metrics.clear()
        record.metrics["error"] = "no path"
    (table,) = grid_report.tables([*grid(), *unmade])
    assert table.cost(next(row for row in table.at(0.05) if row.method == "PHEW")) == (0.0, 0.0, 0.0)


def test_scoring_counts_by_the_dense_epochs_of_its_own_hardware() -> None:
    """Or a share that ran on a slow machine would have dear scores."""
    slow = {**ENVIRONMENT, "hardware": {"processor": "Z8", "cores": 1}}

    def slower(record: RunRecord) -> RunRecord:
        timing = {name: 10 * value for name, value in record.metrics["timing"].items()}
        return replace(record, metrics={**record.metrics, "timing": timing}, environment=slow)

    records = [
        slower(record) if record.config["seed"] > 2 and record.config["by"] in (None, {"method": "snip"}) else record
        for record in grid()
    ]
    (table,) = grid_report.tables(records)
    row = next(row for row in table.at(0.05) if row.method == "SNIP")
    assert table.cost(row) == pytest.approx((0.0, 2.0, 3.0))


def test_equals_on_validation_are_not_told_apart_by_the_test_part() -> None:
    equal = [replace(r, metrics={**r.metrics, "accuracy": 0.8}) for r in grid((0.05,))]
    (table,) = grid_report.tables(equal)
    assert table.best(0.05).method == max(row.method for row in table.rows)
    better = [
        replace(r, metrics={**r.metrics, "loss": 0.1}) if r.config["by"] == {"method": "erk"} else r for r in equal
    ]
    (table,) = grid_report.tables(better)
    assert table.best(0.05).method == "random (ERK)"


def test_a_row_that_lacks_a_seed_is_no_reference() -> None:
    lucky = [cell("phew", 0.99, seed) for seed in range(2)]
    (table,) = grid_report.tables([*grid(), *lucky])
    assert table.best(0.05).method != "PHEW"


def test_cells_of_different_data_are_no_pairs() -> None:
    records = [
        replace(r, metrics={**r.metrics, "data": "e"}) if r.config["by"] == {"method": "snip"} else r for r in grid()
    ]
    with pytest.raises(PanningError, match="2 different data sets"):
        grid_report.tables(records)


def controlled(level: float, density: float, **change: object) -> list[RunRecord]:
    """SNIP's rows with something else about them: each seed off by another hundredth of a point."""
    return [cell("snip", level + 0.0001 * seed, seed, density, **change) for seed in range(5)]


def test_planned_comparisons_are_of_a_method_and_its_parts() -> None:
    shuffled, alive = {"by": {"method": "snip", "control": "shuffle_alive"}}, {"all_alive": True}
    records = [cell(None, 0.95, seed) for seed in range(5)]
    for density, gap in ((0.05, 0.0), (0.01, 0.1)):
        records += [cell("snip", 0.8, seed, density) for seed in range(5)]
        records += controlled(0.8 - gap, density, **shuffled) + controlled(0.8 + gap, density, **alive)
    records += [cell("erk", 0.7, seed) for seed in range(5)]
    (table,) = grid_report.tables(records)
    found = {contrast.name: contrast for contrast in table.contrasts}
    assert found.keys() == {"SNIP − SNIP (shuffled, as many alive)", "SNIP + all-alive − SNIP"}
    shuffle, revival = found["SNIP − SNIP (shuffled, as many alive)"], found["SNIP + all-alive − SNIP"]
    # The seeds' differences are 10 points less 0, 1, 2, 3, 4 hundredths: mean 9.98, deviation 0.0158.
    assert shuffle.differences[0.01].mean == pytest.approx(0.0998) and shuffle.differences[0.01].is_significant
    assert revival.pooled.mean == pytest.approx(0.0502) and revival.pooled.n == 5
    assert shuffle.differences[0.05].mean == pytest.approx(-0.0002) and shuffle.drift(0.05) == 0.0
    # Two comparisons a density: the smaller p is doubled.
    raw = difference({s: 0.8 for s in range(5)}, {s: 0.8 + 0.0001 * s for s in range(5)})
    assert shuffle.differences[0.05].p == pytest.approx(2 * raw.p)
    text = grid_report.markdown(records)
    assert "| SNIP − SNIP (shuffled, as many alive) | " in text and "**+9.98 [+9.96, +10.00]**, p < 0.001" in text
    assert "where it does most" not in text
    drifted = [
        replace(r, metrics={**r.metrics, "layer_densities": [["a.weight", 0.15], ["b.weight", 0.01]]})
        if (r.config["by"] or {}).get("control") else r
        for r in records
    ]  # fmt: skip
    assert "shuffled, as many alive): 33 % at 0.05, 33 % at 0.01." in grid_report.markdown(drifted)


def test_every_method_stands_beside_random_masks_in_a_family_of_its_own() -> None:
    records = grid((0.05,)) + [cell("snip", 0.9, seed, all_alive=True) for seed in range(5)]
    records += [cell("snip", 0.6, s, by={"method": "snip", "control": "shuffle_alive"}) for s in range(5)]
    (table,) = grid_report.tables(records)
    level = {row.method: row.mean("test_accuracy") for row in table.rows}
    found = {contrast.method: contrast.differences[0.05] for contrast in table.beside_random}
    assert found.keys() == level.keys() - {"random (ERK)", "SNIP (shuffled, as many alive)"}
    assert found["SNIP + all-alive"].mean == pytest.approx(level["SNIP + all-alive"] - level["random (ERK)"])
    assert "| method minus random (ERK) | 0.05 |\n" in grid_report.markdown(records)


def test_a_fixed_rate_beside_tried_ones_is_a_table_of_its_own() -> None:
    tried = [
        cell("erk", 0.5, s, recipe={**RECIPE, "learning_rate": rate}, test=False) for s in (0, 1) for rate in (1.0, 2.0)
    ]
    at = {"recipe": {**RECIPE, "learning_rate": 2.0}}
    tuned = [cell(None, 0.9, s, **at) for s in (0, 1)] + [cell("erk", 0.8, s, **at) for s in (0, 1)]
    tables = grid_report.tables([*grid((0.05,), 2), *tuned, *tried])
    assert sorted(len(table.rows) for table in tables) == [1, 4]


def test_text_of_a_record_is_one_line_without_markup() -> None:
    failed = [cell("snip", 0.0, s, error="it\n# diverged <b>") for s in range(2)]
    text = grid_report.markdown(
        [cell(None, 0.9, s) for s in range(2)] + [cell("erk", 0.8, s) for s in range(2)] + failed
    )
    assert "seed 0: it # diverged &lt;b>" in text and "\n# diverged" not in text


def of_dynamic(name: str, level: float, seed: int, *, all_alive: bool = False, **options: Any) -> RunRecord:
    by = {"dynamic": {"name": name, "options": make_dynamic(name, options).model_dump(mode="json")}}
    return cell(name, level + 0.0001 * seed, seed, 0.05, by=by, all_alive=all_alive)


def test_methods_that_move_masks_are_compared_with_those_they_set_out_to_beat() -> None:
    records = [cell(None, 0.95, seed) for seed in range(3)]
    for seed in range(3):
        records += [of_dynamic("dpf", 0.8, seed), of_dynamic("dpf", 0.7, seed, every=1), of_dynamic("gmp", 0.6, seed)]
        records += [of_dynamic("rigl", 0.5, seed, all_alive=True), of_dynamic("dpf", 0.4, seed, all_alive=True)]
        records += [of_dynamic("imp", 0.9, seed), cell("erk", 0.3, seed, 0.05)]
    (table,) = grid_report.tables(records)
    names = {contrast.name: contrast.pooled.mean for contrast in table.contrasts}
    assert names == {
        "DPF − GMP": pytest.approx(0.2), "DPF (every 1) − GMP": pytest.approx(0.1),
        "DPF + all-alive − RigL + all-alive": pytest.approx(-0.1), "DPF + all-alive − DPF": pytest.approx(-0.4),
    }  # fmt: skip
    assert "methods that move masks minus those" in grid_report.markdown(records)
    assert "methods that move masks" not in grid_report.markdown(grid((0.05,)))


def test_work_counts_multiply_adds_where_masks_move_and_all_are_known() -> None:
    static, dense = grid((0.25,), 1)[1], grid((0.25,), 1)[0]
    known = replace(static, metrics={**static.metrics, "train_epochs": 0.5})
    for records, row_name, work in (
        ([dense, known, moving(0)], "IMP (rate rewinding)", 1.5), ([dense, static, moving(0)], "IMP (rate rewinding)", 3.0),
        ([dense, known], None, 3.0),
    ):  # fmt: skip
        (table,) = grid_report.tables(records)
        row = next(row for row in table.rows if row_name in (None, row.method))
        assert table.work(row) - sum(table.cost(row)[:2]) == pytest.approx(work)
        assert grid_pictures.cost_picture(table) is not None


def test_of_many_methods_that_move_masks_the_controls_are_grey_first() -> None:
    records = [cell(None, 0.9, 0), of_dynamic("dpf", 0.8, 0)] + [cell(name, 0.8, 0) for name in list(PRUNERS)[:9]]
    records += [cell("synflow", 0.7, 0, by={"method": "snip", "control": "shuffle_alive"})]
    (table,) = grid_report.tables(records)
    drawn = {line.method: line for line in lines(table)}
    assert not drawn["SNIP (shuffled, as many alive)"].has_colour
    coloured = [line.colour for line in drawn.values() if line.has_colour]
    assert sorted(coloured) == sorted(PALETTE) and drawn["DPF"].has_colour


def test_methods_that_found_the_same_masks_are_one_comparison() -> None:
    records = grid((0.05,))
    twin = [
        replace(r, key=content_key([r.key]), config={**r.config, "all_alive": True})
        for r in records if r.config["by"] in ({"method": "erk"}, {"method": "snip"}, {"method": "synflow"})
    ]  # fmt: skip
    (alone,), (table,) = grid_report.tables(records), grid_report.tables([*records, *twin])
    worst = (0.05, "magnitude")
    assert table.differences[worst].p == pytest.approx(alone.differences[worst].p)
    assert "the same on every seed" in grid_report.markdown([*records, *twin])


def test_a_mask_that_is_dead_as_a_whole_stays_in_the_picture() -> None:
    dead = [
        replace(r, metrics={**r.metrics, "effective_density": 0.0})
        if r.config["by"] == {"method": "erk"} and r.config["density"] == 0.01 else r
        for r in grid()
    ]  # fmt: skip
    (table,) = grid_report.tables(dead)
    lost, kept = (next(r for r in table.at(d) if r.method == "random (ERK)") for d in (0.01, 0.05))
    assert compression(lost) == 100.0 and compression(kept) == pytest.approx(1 / 0.045)
    assert is_dead(lost) and not is_dead(kept)


def test_what_failed_on_a_seed_is_never_best() -> None:
    """Or the mean over the seeds that went well would be compared with means over all."""
    lucky = [cell("phew", 0.99, 0), *(cell("phew", 0.0, seed, error="the loss is nan") for seed in range(1, 5))]
    (table,) = grid_report.tables([*grid(), *lucky])
    assert table.best(0.05).method != "PHEW" and table.at(0.05)[-1].method == "PHEW"
    assert "Not tested, with one seed in common or none: PHEW." in grid_report.findings(table)[0]
    assert "one seed: not tested" in row_text.row_cells(table, table.at(0.05)[-1])[-1]


def test_one_seed_is_not_called_a_comparison() -> None:
    (table,) = grid_report.tables(grid(n_seeds=1))
    assert not any("significant" in sentence for sentence in grid_report.findings(table))
    assert "significant" not in row_text.row_cells(table, table.rows[-1])[-1]


def test_failures_alone_do_not_differ_significantly() -> None:
    dense = [cell(None, 0.9, seed) for seed in range(2)]
    failed = [cell(method, 0.0, seed, error="no path") for method in ("erk", "snip") for seed in range(2)]
    (table,) = grid_report.tables([*dense, *failed])
    assert grid_report.findings(table) == ["At density 0.05, every method failed."]
    (table,) = grid_report.tables([*dense, *failed, *(cell("phew", 0.5, seed) for seed in range(2))])
    assert grid_report.findings(table)[0].endswith("on test. Failed on every seed: random (ERK), SNIP.")


@pytest.mark.parametrize(
    "which", ["dense alone", "all failed", "no colour", "first seed not pruned", "one of each", "seeds far apart"]
)
def test_a_grid_that_is_not_whole_has_its_report(which: str, tmp_path: Path) -> None:
    whole = grid(n_seeds=3)
    dense = [record for record in whole if record.config["by"] is None]
    records = {
        "dense alone": dense,
        "all failed": [*dense, cell("erk", 0.0, 0, error="no path")],
        "no colour": [*dense, *(cell("phew", 0.5, seed) for seed in range(3))],
        "first seed not pruned": [
            replace(r, metrics={"error": "no path"}) if r.config["seed"] == 0 and r not in dense else r for r in whole
        ],
        "one of each": grid((0.05,), 1),
        "seeds far apart": [*grid((0.05,), 1), cell("erk", 0.5, 10**12), cell("snip", 0.5, 10**12)],
    }[which]
    grid_report.write_report(records, tmp_path)
    assert (tmp_path / "accuracy.png").exists()


def test_two_recipes_are_two_tables_that_can_be_told_apart() -> None:
    slow = [{**RECIPE, "learning_rate": 0.01}, {**RECIPE, "epochs": 9}]
    more = [cell(None, 0.9, 0, recipe=recipe) for recipe in slow]
    tables = grid_report.tables([*grid(), *more])
    assert [table.title for table in tables] == [
        "mlp on Digits, 3 epochs, cosine at 0.1", "mlp on Digits, 3 epochs, cosine at 0.01",
        "mlp on Digits, 9 epochs, cosine at 0.1",
    ]  # fmt: skip
    assert tables[0].dense.good.keys() == set(range(5))


def test_a_row_has_the_learning_rate_that_is_settled_on() -> None:
    """After more seeds another rate may be best; the cells of the former stay in the file."""
    other = {**RECIPE, "learning_rate": 0.3}
    tried = [cell("snip", 0.6, s, recipe=RECIPE, test=False) for s in range(5)]
    tried += [cell("snip", 0.7, s, recipe=other, test=False) for s in range(5)]
    (table,) = grid_report.tables([*grid((0.05,)), *tried, *(cell("snip", 0.5, s, recipe=other) for s in range(5))])
    row = next(row for row in table.rows if row.method == "SNIP")
    assert len(row.cells) == len(row.good) == 5 and row.mean("test_accuracy") == pytest.approx(0.5)


def test_a_label_of_two_lines_is_a_title_of_one() -> None:
    records = [replace(r, metrics={**r.metrics, "data_label": "My\ndigits"}) for r in grid((0.05,), 1)]
    assert grid_report.tables(records)[0].title == "mlp on My digits"


def test_a_dense_network_that_failed_is_told_from_one_that_lacks() -> None:
    with pytest.raises(PanningError, match="the dense network failed .the loss is nan"):
        grid_report.tables([cell(None, 0.0, 0, error="the loss is nan"), cell("erk", 0.5, 0)])


DAMAGES: dict[str, Any] = {
    "key": lambda r: {**r, "key": "0"},
    "test": lambda r: {**r, "config": {k: v for k, v in r["config"].items() if k != "test"}},
    "method": lambda r: {**r, "config": {**r["config"], "by": {"method": "snyp"}}},
    "by": lambda r: {**r, "config": {**r["config"], "by": "x"}},
    "seed": lambda r: {**r, "config": {**r["config"], "seed": "x"}},
    "density": lambda r: {**r, "config": {**r["config"], "density": "0.1"}},
    "recipe": lambda r: {**r, "config": {**r["config"], "recipe": {"epochs": -1}}},
    "import": lambda r: {**r, "config": {**r["config"], "task": {"model": "os:system", "data": "digits"}}},
    "error": lambda r: {**r, "metrics": {k: v for k, v in r["metrics"].items() if k != "error"}},
    "accuracy": lambda r: {**r, "metrics": {**r["metrics"], "test_accuracy": "x"}},
    "missing": lambda r: {**r, "metrics": {k: v for k, v in r["metrics"].items() if k != "test_accuracy"}},
    "n_train": lambda r: {**r, "metrics": {**r["metrics"], "n_train": 0}},
    "timing": lambda r: {**r, "metrics": {**r["metrics"], "timing": {"prune_s": 0, "train_s": 0}}},
    "history": lambda r: {**r, "metrics": {**r["metrics"], "history": []}},
    "overflow": lambda r: {**r, "metrics": {**r["metrics"], "images_seen": 10**400}},
    "dead history": lambda r: {
        **r,
        "metrics": {**r["metrics"], "history": [{"epoch": 1.0, "density": 0.0, "effective_density": 0.0}]},
    },
    "layers": lambda r: {**r, "metrics": {**r["metrics"], "layer_densities": 3}},
    "another result": lambda r: {**r, "metrics": {**r["metrics"], "accuracy": 0.5}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_no_cell_is_one_clear_error(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [vars(record) for record in grid((0.05,), 2)]
    bad = DAMAGES[damage](good[4])
    if damage != "key":
        bad["key"] = content_key({"kind": "cell", **bad["config"]})
    lines = [canonical_json(record) for record in [*good, bad]]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    commands = [
        ["bench", "report", str(tmp_path)], ["bench", "fidelity", str(tmp_path)],
        ["bench", "merge", str(tmp_path), "--out", str(tmp_path / "out")], ["reproduce", str(tmp_path), "--key", "0"],
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main(command)
        said = capsys.readouterr().err
        assert end.value.code == 2 and ("is no cell of a benchmark" in said or "another result" in said), said


def test_the_report_writes_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [canonical_json(vars(record)) for record in grid()]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    main_ok("bench", "report", str(tmp_path), "--out", str(tmp_path / "r"))
    assert "mean rank" in capsys.readouterr().out
    (tmp_path / "mine.jsonl").write_text((tmp_path / "records.jsonl").read_text())
    main_ok("bench", "report", str(tmp_path / "mine.jsonl"), "--format", "svg")
    assert (tmp_path / "mine" / "report.md").read_bytes() == (tmp_path / "r" / "report.md").read_bytes()
    names = {path.name for path in (tmp_path / "r").iterdir()}
    pictures = {f"{name}.{form}" for name in ("accuracy", "ranks", "layers", "cost") for form in ("png", "csv")}
    assert names == {"report.md", "rows.csv", "rows.json"} | pictures
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {name.replace(".png", ".svg") for name in names}
    with open(tmp_path / "r" / "rows.csv") as file:
        numbers = list(csv.DictReader(file))
    assert len(numbers) == 9 and numbers[-1]["method"] == "dense" and numbers[-1]["minus_best"] == ""
    assert all(
        float(row[name]) >= 0 for row in numbers for name in ("density", "mean", "std", "n", "ci_low", "cost_epochs")
    )
    rows = json.loads((tmp_path / "r" / "rows.json").read_text())
    assert len(rows) == 9 and rows[-1]["method"] == "dense" and rows[0]["n_collapsed_layers"] == [0] * 5
    assert rows[0]["against_best"] is None or rows[1]["against_best"] is None  # one of them is the best
    assert next(row for row in rows if row["method"] == "magnitude")["against_best"]["p"] < 0.05
    (lone,) = (row for row in grid_report.as_json(grid_report.tables(grid((0.05,), 1))) if row["method"] == "magnitude")
    assert lone["against_best"]["low"] is None and lone["against_best"]["p"] is None
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


def shortly(record: RunRecord, accuracy: float, **recipe: Any) -> RunRecord:
    """The same mask trained for an epoch."""
    seed, density, by = (record.config[name] for name in ("seed", "density", "by"))
    short = cell(by["method"], accuracy, seed, density, recipe={**RECIPE, "epochs": 1, **recipe}, test=False)
    return RunRecord(short.key, "cell", short.config, {**short.metrics, "images_seen": 100}, ENVIRONMENT)


def test_a_short_training_that_orders_as_the_full_one_foresees_it() -> None:
    records = grid(densities=(0.05,), n_seeds=2)
    masks = [record for record in records if record.config["by"] is not None]
    agreeing = [shortly(record, record.metrics["test_accuracy"] / 2) for record in masks]
    opposite = [shortly(record, 1 - record.metrics["test_accuracy"]) for record in masks]
    found = {f.judge: f for f in fidelity.foresights([*records, *agreeing]) if f.training.startswith("1 epoch,")}
    whole = found["accuracy"]
    assert whole.share == pytest.approx(1 / 3, abs=1e-3) and whole.worst < 1.0 and whole.n == 2
    means = [
        np.mean([m.metrics["accuracy"] for m in masks if m.config["by"] == by])
        for by in (r.config["by"] for r in masks)
    ]
    assert whole.by_lot == pytest.approx(100 * (max(means) - np.mean(means)))
    assert [(e.value, e.low, e.high) for e in (whole.by_mask, whole.by_method)] == [pytest.approx((1.0, 1.0, 1.0))] * 2
    wrong = next(
        f for f in fidelity.foresights([*records, *opposite]) if f.judge == "accuracy" and f.training.startswith("1 ")
    )
    assert wrong.by_mask.value == pytest.approx(-1.0) and wrong.by_mask.high == pytest.approx(-1.0)
    assert wrong.regret == pytest.approx(10.0, abs=1.0)  # points: it takes ERK in place of SNIP


def test_equals_share_the_regret_and_the_order_of_records_says_nothing() -> None:
    records = grid(densities=(0.05,), n_seeds=2)
    masks = [record for record in records if record.config["by"] is not None]
    blind = [shortly(record, 0.5) for record in masks]
    found = next(
        f for f in fidelity.foresights([*records, *blind]) if f.judge == "accuracy" and "1 epoch," in f.training
    )
    assert found.regret == pytest.approx(found.by_lot) and found.by_mask.value == 0.0
    mixed = [*records, *(shortly(r, r.metrics["test_accuracy"] / 2) for r in masks)]
    backwards = [replace(record, environment={**ENVIRONMENT, "commit": str(i)}) for i, record in enumerate(mixed[::-1])]
    assert fidelity.markdown(mixed) == fidelity.markdown(backwards)
    twins = [*grid((0.05,)), *(cell("synflow_l2", 0.8, seed) for seed in range(5))]
    assert grid_report.markdown(twins) == grid_report.markdown(twins[::-1])


def test_judges_and_trainings_of_one_cost_stand_beside_each_other_paired() -> None:
    records = grid(densities=(0.05,), n_seeds=2)
    masks = [record for record in records if record.config["by"] is not None]
    short = [
        shortly(r, sign * r.metrics["test_accuracy"], schedule=schedule)
        for r in masks
        for schedule, sign in (("cosine", 1), ("constant", -1))
    ]
    lines = fidelity.difference_cells(fidelity.foresights([*records, *short]))
    of_accuracy = {line[0]: line[-1] for line in lines if line[1] == "validation accuracy"}
    assert (
        of_accuracy["1 epoch, constant at 0.1, batches of 128 − 1 epoch, cosine at 0.1, batches of 128"]
        == "**-2.00 [-2.00, -2.00]**"
    )
    of_judges = [line for line in lines if "−" not in line[0]]
    assert {line[1] for line in of_judges} == {
        "training loss − validation accuracy", "training loss − validation loss", "validation accuracy − validation loss"
    }  # fmt: skip
    fewer = [r for r in short if r.config["recipe"]["schedule"] == "cosine" or r.config["by"] != {"method": "erk"}]
    assert not any(
        "constant" in line[0] and "−" in line[0]
        for line in fidelity.difference_cells(fidelity.foresights([*records, *fewer]))
    )


def test_trials_of_learning_rates_and_lone_masks_foresee_nothing() -> None:
    records = grid(densities=(0.05,), n_seeds=2)
    tried = [
        cell(r.config["by"]["method"], 0.5, r.config["seed"], recipe={**RECIPE, "learning_rate": rate}, test=False)
        for r in records if r.config["by"] is not None for rate in (0.1, 0.2)
    ]  # fmt: skip
    lone = [cell(None, 0.9, 0), *(cell(method, 0.5, 0, 0.01) for method in ("erk", "snip"))]
    assert {f.training for f in fidelity.foresights([*records, *tried, *lone])} == {
        "the first 1 of its 3 epochs", "the first 2 of its 3 epochs"
    }  # fmt: skip
    with pytest.raises(PanningError, match="three methods"):
        fidelity.foresights(lone)


def test_short_trainings_that_differ_in_their_batches_are_two() -> None:
    records = grid(densities=(0.05,), n_seeds=2)
    masks = [record for record in records if record.config["by"] is not None]
    recipes = [{**RECIPE, "epochs": 1, "batch_size": size} for size in (16, 64)]
    short = [
        cell(r.config["by"]["method"], 0.5, r.config["seed"], recipe=recipe, test=False)
        for r in masks
        for recipe in recipes
    ]
    names = {f.training for f in fidelity.foresights([*records, *short])}
    assert {name for name in names if name.startswith("1 epoch,")} == {
        "1 epoch, cosine at 0.1, batches of 16", "1 epoch, cosine at 0.1, batches of 64"
    }  # fmt: skip


def test_two_agents_are_two_methods() -> None:
    by = {"policy": "agent", "n_rounds": 2, "action": ActionSpec().model_dump(mode="json")}
    agents = [
        cell("erk", accuracy, 0, by=by, policy=policy) for policy, accuracy in (("aaaaaaa1", 0.5), ("bbbbbbb2", 0.9))
    ]
    found = fidelity.foresights([*grid((0.05,), 1), *agents])
    assert found[0].n == 1
    (table,) = grid_report.tables([*grid((0.05,), 1), *agents])
    assert {"panning (agent) aaaaaa", "panning (agent) bbbbbb"} < {row.method for row in table.rows}


def test_epochs_of_the_full_training_are_short_trainings_too() -> None:
    found = fidelity.foresights(grid(densities=(0.05,)))
    assert {f.training for f in found} == {"the first 1 of its 3 epochs", "the first 2 of its 3 epochs"}
    assert [f.share for f in found if f.judge == "accuracy"] == [0.3333, 0.6667]
    assert "| training loss |" in fidelity.markdown(grid(densities=(0.05,)))


def moving(seed: int, all_alive: bool = False, **change: Any) -> RunRecord:
    """A cell of IMP whose masks halve every two epochs, a tenth of what they keep dead, or none with all-alive."""
    by = {"dynamic": {"name": "imp", "options": make_dynamic("imp").model_dump(mode="json")}}
    record = cell("imp", 0.8, seed, 0.25, by=by, all_alive=all_alive, **change)
    share = 1.0 if all_alive else 0.9
    history = [
        {"epoch": float(2 * i + j + 1), "train_loss": 0.1, "accuracy": 0.7 + 0.01 * i + 0.1 * j + 0.01 * seed, "loss": 1.0,
         "density": density, "effective_density": density * share, "n_grown": 0.0}
        for i, density in enumerate((1.0, 0.5, 0.25)) for j in (0, 1)
    ]  # fmt: skip
    return replace(record, metrics={**record.metrics, "history": history, "train_epochs": 1.5})


def test_the_course_of_falling_densities_is_the_end_of_each() -> None:
    records = [cell(None, 0.9, seed) for seed in range(2)] + [moving(seed) for seed in range(2)]
    records += [moving(seed, all_alive=True) for seed in range(2)]
    (table,) = grid_report.tables([check_cell(record) for record in records])
    plain = next(row for row in table.rows if row.method == "IMP (rate rewinding)")
    course = grid_pictures.course_of(plain)
    assert list(course) == [1.0, 0.5, 0.25]
    assert [value for value, _ in course[0.25]] == pytest.approx([0.1, 0.1])
    assert [value for _, value in course[0.5]] == pytest.approx([0.81, 0.82])
    drawn = {line.method: line for line in lines(table)}
    assert drawn["IMP (rate rewinding)"].colour == drawn["IMP (rate rewinding) + all-alive"].colour
    assert [line.is_alive for line in drawn.values()] == ["all-alive" in name for name in drawn]
    assert grid_pictures.course_picture(table) is not None
    (static,) = grid_report.tables(grid((0.05,), 2))
    assert grid_pictures.course_picture(static) is None


def test_the_multiply_adds_of_the_training_stand_where_they_are_known() -> None:
    (table,) = grid_report.tables([*grid((0.25,), 1)[:1], moving(0)])
    (row,) = table.rows
    assert (
        dict(zip(row_text.COLUMNS, row_text.row_cells(table, row), strict=True))["training multiply-adds, dense epochs"]
        == "1.500"
    )
    assert "training multiply-adds" in grid_report.markdown([*grid((0.25,), 1), moving(0)])
    assert "training multiply-adds, dense" not in grid_report.markdown(grid((0.25,), 1))


def test_the_short_table_may_show_some_methods_only() -> None:
    (table,) = grid_report.tables(grid())
    _, lines = grid_report.short_cells(table, ["SNIP", "random (ERK)"])
    assert sorted(line[0] for line in lines) == ["SNIP", "random (ERK)"]


def test_the_short_table_has_the_mean_costs_over_the_densities() -> None:
    (table,) = grid_report.tables(grid())
    columns, lines = grid_report.short_cells(table)
    assert columns[-1] == row_text.COST
    for line in lines:
        of_densities = [sum(table.cost(row)) for row in table.rows if row.method == line[0]]
        assert len(of_densities) > 1 and line[-1] == f"{sum(of_densities) / len(of_densities):.1f}"
    (table,) = grid_report.tables([*grid((0.25,), 1)[:1], moving(0)])
    columns, lines = grid_report.short_cells(table)
    assert columns[-2:] == [row_text.COST, row_text.TRAINING_ADDS]
    assert [line[-1] for line in lines] == ["1.50"]
