"""What levers are worth, where it is known: a forest's effects, shares and gains of records, and what observations tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import run
from test_grid_report import TASK, cell

from panning.compare.forest import effects, foreseen
from panning.compare.lever_pictures import gain_picture, share_picture
from panning.compare.lever_text import page
from panning.compare.levers import cases, studies, study
from panning.compare.probe import WHOLE, probes, ties
from panning.foundation.errors import PanningError
from panning.foundation.records import RunRecord
from panning.jobs.levers import LeverAction

MIXES, QUOTAS, STARTS = ("magnitude", "snip", "snip + synflow"), ("own", "erk"), ("none", "gain")
#: Of a combination (mix, quotas, start, all alive, by number) and a seed.
Accuracy = Callable[[int, int, int, int, int], float]


def factorial(
    accuracy: Accuracy, n_seeds: int = 2, density: float = 0.05, seen: dict[str, float] | None = None, **change: Any
) -> list[RunRecord]:
    """The cells of 3 mixes x 2 quotas x 2 starts x 2 repairs, with validation accuracies, and the dense network's."""
    records = [cell(None, 0.9, seed, **change) for seed in range(n_seeds)]
    for (m, mix), (q, quotas), (s, start), alive, seed in product(
        enumerate(MIXES), enumerate(QUOTAS), enumerate(STARTS), (0, 1), range(n_seeds)
    ):
        by = LeverAction(policy="levers", mix=mix, quotas=quotas, start=start).model_dump(mode="json")  # type: ignore[arg-type]
        value = accuracy(m, q, s, alive, seed)
        record = cell("", value, seed, density, by=by, all_alive=bool(alive), **change)
        record.metrics["accuracy"] = value
        if seen is not None:
            record.metrics["seen"] = [list(pair) for pair in seen.items()]
        records.append(record)
    return records


# --- forests ---


def test_effects_of_a_full_factorial_are_those_of_its_values() -> None:
    """f = a + b + c a: by hand, of centred levels; the variance is the sum of the effects' variances."""
    a, b, c = np.array([-2.0, 0.0, 2.0]), np.array([-1.0, 1.0]), np.array([-0.5, 0.5])
    rows = np.array(list(product(range(3), range(2), range(2))))
    values = 7.0 + a[rows[:, 0]] + b[rows[:, 1]] + c[rows[:, 2]] * a[rows[:, 0]]
    points = [a[:, None], b[:, None], np.array([[0.0, 1.0], [1.0, 0.0]])]  # one lever has two features
    found = effects(points, rows, values)
    np.testing.assert_allclose(found.mains[0], a, atol=1e-12)
    np.testing.assert_allclose(found.mains[1], b, atol=1e-12)
    np.testing.assert_allclose(found.mains[2], 0.0, atol=1e-12)
    np.testing.assert_allclose(found.pairs[0, 2], a[:, None] * c, atol=1e-12)
    whole = 8 / 3 + 1 + 8 / 12
    wanted = {(0,): 8 / 3 / whole, (1,): 1 / whole, (2,): 0, (0, 1): 0, (0, 2): 8 / 12 / whole, (1, 2): 0, (): 0}
    assert found.shares == pytest.approx(wanted, abs=1e-12) and found.variance == pytest.approx(whole)


def test_a_third_lever_that_turns_a_pair_round_is_in_the_rest() -> None:
    rows = np.array(list(product((0, 1), repeat=3)))
    found = effects([np.array([[0.0], [1.0]])] * 3, rows, np.prod(2.0 * rows - 1, axis=1))
    assert found.shares[()] == pytest.approx(1.0) and max(abs(effect).max() for effect in found.mains) < 1e-12
    assert effects([np.array([[0.0], [1.0]])] * 3, rows, np.ones(8)).shares[0,] == 0.0


def test_few_draws_of_a_large_space_tell_the_main_effects() -> None:
    """Of 5,832 combinations 96 are known, and the variance of the forest is itself of a sample."""
    rng = np.random.default_rng(3)
    sizes = [6, 6, 3, 3, 3, 3, 2]
    rows = np.array([rng.integers(sizes) for _ in range(96)])
    main = [np.linspace(-2, 2, 6), np.zeros(6), np.array([-1.0, 0, 1.0]), *([np.zeros(3)] * 3), np.zeros(2)]
    values = sum(effect[rows[:, i]] for i, effect in enumerate(main))
    points = [np.arange(size)[:, None] for size in sizes]
    found, whole = effects(points, rows, np.asarray(values)), main[0].var() + main[2].var()
    assert found.shares[0,] == pytest.approx(main[0].var() / whole, abs=0.08)
    assert found.shares[2,] == pytest.approx(main[2].var() / whole, abs=0.08)
    assert foreseen(points, rows, np.asarray(values)) > 0.8
    assert abs(foreseen(points, rows, rng.permutation(values))) < 0.5


# --- records ---


def additive(m: int, q: int, s: int, alive: int, seed: int) -> float:
    return 0.5 + 0.02 * (m - 1) + 0.01 * (1 - 2 * q) * (1 - 2 * s) + 0.003 * seed


def test_records_give_shares_gains_and_the_best_choice() -> None:
    others = [cell("snip", 0.4, seed) for seed in range(2)]
    (case,) = cases([*factorial(additive), *others])
    assert case.levels == {
        "mix": MIXES, "quotas": ("erk", "own"), "start": ("gain", "none"), "all_alive": (False, True),
    }  # fmt: skip
    assert case.accuracy.shape == (24, 2) and case.noise == pytest.approx(0, abs=1e-9) and case.n_failed == 0
    found = study(case, n_resamples=8)
    shares = {" x ".join(effect): share.value for effect, share in found.shares.items()}
    whole = 0.0004 * 2 / 3 + 0.0001
    assert shares["mix"] == pytest.approx(0.0004 * 2 / 3 / whole) and shares["all_alive"] == pytest.approx(0, abs=1e-9)
    assert shares["quotas x start"] == pytest.approx(0.0001 / whole) and sum(shares.values()) == pytest.approx(1)
    gains = {level: gain.value for level, gain in found.gains["mix"].items()}
    assert gains == pytest.approx({"magnitude": -0.02, "snip": 0, "snip + synflow": 0.02}, abs=1e-9)
    assert found.best["mix"] == "snip + synflow" and case.means.max() == pytest.approx(0.5315)
    assert case.labels[found.best_row].startswith("levers (snip + synflow)")  # own quotas as drawn, as good with both
    interval = found.shares["mix",]
    assert interval.low < interval.value < 1 and interval.low > found.chance > 0


def test_what_failed_counts_as_a_guess_and_a_seed_that_lacks_rows_is_left_out() -> None:
    records = factorial(additive, n_seeds=3)
    records = [r for r in records if not (r.config["seed"] == 2 and r.config["by"] and r.config["by"]["mix"] == "snip")]
    failed = next(r for r in records if r.config["by"] and r.config["seed"] == 0)
    failed.metrics.clear()
    failed.metrics.update({"error": "a loss is not finite"})
    for record in records:
        if record.config["by"] is None:
            record.metrics["n_outputs"] = 10
    (case,) = cases(records)
    assert case.accuracy.shape == (24, 2) and case.n_failed == 1 and case.accuracy.min() == pytest.approx(0.1)


def test_what_is_below_the_best_counts_as_the_worst_of_them() -> None:
    """The worst of the best eight has 51.15 %: what a seed has below it is raised to it."""
    (case,) = cases(factorial(additive), best=8 / 24)
    assert sorted(case.means.tolist()) == pytest.approx([0.5115] * 12 + [0.51225] * 8 + [0.5315] * 4)
    assert study(case, n_resamples=1).best["mix"] == "snip + synflow"


def test_records_without_combinations_say_what_they_are() -> None:
    with pytest.raises(PanningError, match="no combinations of levers.*levers-study"):
        cases([cell(None, 0.9, 0), cell("erk", 0.5, 0)])
    few = [r for r in factorial(additive) if not r.config["by"] or r.config["by"].get("quotas") == "erk"]
    with pytest.raises(PanningError, match="at least 8 rows"):
        cases([r for r in few if not r.config["by"] or r.config["by"]["mix"] != "snip"][:8])


# --- what observations tell ---


def networks(turns: Callable[[float], float]) -> list[RunRecord]:
    """Six networks with an observation from 0 to 1 and one that is drawn; ``turns`` says which way the mixes go."""
    records = []
    seen_of = zip((0.0, 0.1, 0.2, 0.8, 0.9, 1.0), (0.3, 0.1, 0.9, 0.2, 0.6, 0.5), strict=True)
    for number, (norms, drawn) in enumerate(seen_of):
        seen = {"norm_layers": norms, "classes": drawn, "network_depth": 0.5}

        def accuracy(m: int, q: int, s: int, alive: int, seed: int, way: float = turns(norms)) -> float:
            return 0.5 + 0.02 * way * (m - 1) + 0.005 * q + 0.001 * s * m

        task = {**TASK, "label": f"network {number}"}
        records += [r for r in factorial(accuracy, seen=seen, task=task)]
    for record in records:
        record.metrics["data_label"] = record.config["task"]["label"]
    return records


def test_the_probe_finds_the_level_that_an_observation_tells() -> None:
    found = studies(networks(lambda seen: 1.0 if seen > 0.5 else -1.0), n_resamples=1)
    assert len(found) == 6 and len({one.case.network for one in found}) == 6
    of = {(probe.lever, probe.left_out): probe for probe in probes(found)}
    mix, quotas, whole = of["mix", "network"], of["quotas", "case"], of[WHOLE, "case"]
    assert mix.own == pytest.approx(0.02, abs=1e-3) and mix.probed == pytest.approx(mix.own) and mix.n == 6
    assert mix.fixed < 0.01 and mix.more.value == pytest.approx(mix.probed - mix.fixed) and mix.more.low > -0.02
    assert quotas.own == quotas.fixed == quotas.probed == pytest.approx(0.0025, abs=1e-3) and quotas.more.value == 0
    assert whole.probed > whole.fixed and whole.own >= whole.probed
    tie = next(tie for tie in ties(found) if (tie.lever, tie.level) == ("mix", "snip + synflow"))
    assert tie.observation == "norm_layers" and tie.rank_correlation > 0.85 and tie.n == 6


def test_where_one_level_is_best_everywhere_observations_add_nothing() -> None:
    of = {(p.lever, p.left_out): p for p in probes(studies(networks(lambda seen: 1.0), n_resamples=1))}
    assert of["mix", "case"].fixed == of["mix", "case"].own == of["mix", "case"].probed


def test_few_cases_and_cases_without_observations_are_not_probed() -> None:
    few = studies(factorial(additive, seen={"classes": 0.3}), n_resamples=1)
    (unseen,) = studies(factorial(additive), n_resamples=1)
    assert probes(few) == [] == probes([unseen] * 6) == ties([unseen] * 6)


# --- text ---


def test_the_page_and_the_pictures_say_the_numbers() -> None:
    found = studies([*factorial(additive), *factorial(additive, density=0.01)[2:]], n_resamples=4)
    text = page(found)
    assert text.count("## ") == 2 and "| mix | " in text and "| quotas x start | 27 " in text
    assert "| masks x seeds | 24 x 2 | 24 x 2 |" in text and "is not asked of fewer than four cases" in text
    assert "| mix | snip + synflow | **+2.00" in text and "| mlp on Digits | 0.05 | **snip + synflow** |" in text
    shares = share_picture(found)
    assert [row[2] for row in shares.rows[:6]] == [
        "mix",
        "quotas",
        "start",
        "all_alive",
        "pairs of levers",
        "three or more",
    ]
    assert sum(float(str(row[3])) for row in shares.rows[:6]) == pytest.approx(1.0)
    gains = {(row[1], row[2], row[3]): row[4] for row in gain_picture(found).rows}
    assert gains[0.01, "mix", "magnitude"] == pytest.approx(-0.02)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(vars(record)) for record in factorial(additive, seen={"classes": 1 / 3})]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    assert run("bench", "levers", str(tmp_path), "--out", str(tmp_path), "--format", "svg") == 0
    assert "foreseen of masks left out" in capsys.readouterr().out
    assert "## The best choice" in (tmp_path / "levers.md").read_text()
    assert {path.name for path in tmp_path.glob("levers-*")} == {
        f"levers-{stem}.{form}" for stem in ("shares", "gains") for form in ("svg", "csv")
    }
    assert run("bench", "levers", str(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cases"][0]["best"]["mix"] == "snip + synflow" and found["probes"] == []
    assert found["cases"][0]["seen"] == {"classes": 1 / 3}
