"""Variance shares of a full factorial, where they are known by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from console import run
from test_grid_report import RECIPE, cell

from panning.compare.tables import tables
from panning.compare.variance import analyses, levels_of, markdown, variance_shares
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord
from panning.training import Recipe

QUOTAS, PLACES, STARTS = ("erk", "synflow", "erk + snip"), ("lot", "snip"), (None, "gain")


def factorial(
    accuracy: Callable[[int, int, int, int], float], n_seeds: int = 3, density: float = 0.05
) -> list[RunRecord]:
    """The cells of 3 quotas x 2 places x 2 starts, all alive, and the dense network's."""
    records = [cell(None, 0.9, seed) for seed in range(n_seeds)]
    for (q, quotas), (p, place), (s, start), seed in product(
        *(list(enumerate(some)) for some in (QUOTAS, PLACES, STARTS)), range(n_seeds)
    ):
        recipe = RECIPE if start is None else Recipe(epochs=3, start=start).model_dump(mode="json")  # type: ignore[arg-type]
        by = {"quotas": quotas, "place": place}
        records.append(
            cell("", accuracy(q, p, s, seed), seed, density, by=by, all_alive=True, recipe=recipe)
        )  # fmt: skip
    return records


def test_shares_of_effects_that_are_known_without_noise() -> None:
    """Variances: quotas (2, 0, -2) 8/3, places 1, quotas x start 1 (+-1 at the first and last quotas: 2/3)."""
    values = np.zeros((3, 2, 2, 4))
    for q, p, s in product(range(3), range(2), range(2)):
        values[q, p, s] = 2 * (1 - q) + (1 - 2 * p) + (1 - q) * (1 - 2 * s)
    values += np.array([0.0, 5.0, -3.0, 1.0])  # what a seed does to all masks alike is nobody's
    shares, noise = variance_shares(values)
    total = 8 / 3 + 1 + 2 / 3
    wanted = {(0,): 8 / 3 / total, (1,): 1 / total, (2,): 0, (0, 1): 0, (0, 2): 2 / 3 / total, (1, 2): 0, (0, 1, 2): 0}
    assert {effect: share.value for effect, share in shares.items()} == pytest.approx(wanted, abs=1e-12)
    assert all(share.low == pytest.approx(share.value) == share.high for share in shares.values()) and noise < 1e-12


def test_what_seeds_make_is_taken_off() -> None:
    rng = np.random.default_rng(1)
    main = np.array([-1.0, 1.0])
    found, raw, covered = [], [], 0
    for _ in range(200):
        values = main[:, None, None, None] + rng.normal(size=(2, 4, 2, 5)) * 2.0
        shares, noise = variance_shares(values)
        found.append(shares[0,].value)
        raw.append(noise)
        covered += shares[0,].low <= 1.0 and shares[0,].high >= 0.75
    # The variance of the effect is 1, that of a mean of five seeds 4/5, with 15 of 16 degrees of freedom.
    assert np.mean(raw) == pytest.approx(0.75 / 1.75, abs=0.06)
    assert np.mean(found) > 0.8 and covered > 150  # uncorrected it would be (1 + 0.05) / 1.75 = 0.6


def test_records_give_shares_and_levels_and_name_what_is_no_cell() -> None:
    def accuracy(q: int, p: int, s: int, seed: int) -> float:
        return 0.5 + 0.02 * (1 - q) + 0.01 * (1 - 2 * p) + 0.001 * seed

    others = [cell("px", 0.4, seed, all_alive=True) for seed in range(3)]
    others += [cell("snip", 0.4, seed, by={"method": "snip", "control": "shuffle"}) for seed in range(3)]
    (found,) = analyses([*factorial(accuracy), *others])
    assert (found.n_cells, found.n_seeds, found.density) == (12, 3, 0.05)
    values = {" x ".join(effect): share.value for effect, share in found.shares.items()}
    assert values["quotas"] == pytest.approx(8 / 11) and values["places"] == pytest.approx(3 / 11)
    assert len(values) == 7 and sum(values.values()) == pytest.approx(1)
    gains = {level: gain.value for level, gain in found.levels.items()}
    assert gains["quotas", "ERK"] == pytest.approx(0.02) and gains["quotas", "ERK + SNIP"] == pytest.approx(-0.02)
    assert gains["places", "lot"] == pytest.approx(0.01) and gains["start", "gain start"] == pytest.approx(0, abs=1e-12)
    assert set(found.left_out) == {"PX + all-alive", "SNIP (shuffled)"}
    page = markdown([*factorial(accuracy), *others])
    assert "| quotas | 73 [73, 73] |" in page and "| places | lot | +1.00 [+1.00, +1.00] |" in page
    assert "No cells of the factorial: " in page


def test_a_seed_that_failed_somewhere_is_left_out() -> None:
    records = factorial(lambda q, p, s, seed: 0.5 + 0.02 * q + 0.3 * (seed == 2))
    records[-1] = cell("", 0.0, 2, error="diverged", **{
        name: records[-1].config[name] for name in ("by", "all_alive", "recipe")
    })  # fmt: skip
    (found,) = analyses(records)
    assert found.n_seeds == 2


def test_methods_are_levels_by_what_they_are() -> None:
    records = [cell(None, 0.9, 0), cell("erk", 0.5, 0), cell("synflow", 0.5, 0)]
    records += [
        cell("", 0.5, 0, by=by)
        for by in ({"method": "synflow", "quotas": "erk"}, {"method": "synflow", "place": "lot"})
    ]
    (table,) = tables(records)
    assert {levels_of(row) for row in table.rows} == {
        ("ERK", "lot", "as drawn", "none"), ("SynFlow", "SynFlow's own", "as drawn", "none"),
        ("ERK", "SynFlow's own", "as drawn", "none"), ("SynFlow", "lot", "as drawn", "none"),
    }  # fmt: skip
    (found,) = analyses(records)
    assert set(found.shares) == {("quotas",), ("places",), ("quotas", "places")} and found.n_seeds == 1


def test_records_without_a_factorial_say_what_one_is() -> None:
    with pytest.raises(PanningError, match="no full factorial"):
        analyses([cell(None, 0.9, 0), cell("erk", 0.5, 0), cell("snip", 0.6, 0)])


def test_the_command_prints_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(vars(record)) for record in factorial(lambda q, p, s, seed: 0.5 + 0.02 * q + 0.01 * s)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    assert run("bench", "variance", str(tmp_path), "--out", str(tmp_path)) == 0
    assert "quotas x places" in capsys.readouterr().out and "start" in (tmp_path / "variance.md").read_text()
    assert run("bench", "variance", str(tmp_path), "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["n_cells"] == 12 and found["shares"][0]["factors"] == ["quotas"]
