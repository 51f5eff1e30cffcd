"""Combinations of levers as rows of a grid: which are drawn, what their records say, and which masks they make."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from panning.compare.contenders import Contender
from panning.compare.drawn import SEQUENCES, Draws, LeverLevels
from panning.compare.grid import GridConfig, groups
from panning.compare.run import run_grid
from panning.episode.episode import initial
from panning.episode.observations import OF_NETWORKS, STANDARD, observe
from panning.foundation.config import dump_config, parse_config
from panning.foundation.errors import ConfigError
from panning.foundation.progress import silent
from panning.jobs.executor import SerialExecutor
from panning.jobs.levers import LeverAction
from panning.jobs.ways import Way
from panning.pruners import Form, prune_problem
from panning.tasks import TaskSpec, load_task
from panning.testing.networks import residual_problem

LEVELS: dict[str, Any] = {
    "mix": ["magnitude", "snip + synflow"], "quotas": ["own", "erk", "synflow + own"], "spread": [0, 0.5, 1],
    "n_rounds": [1, 3], "start": ["none", "gain"], "all_alive": [False, True],
}  # fmt: skip
GRID: dict[str, Any] = {
    "name": "drawn", "densities": [0.05], "seeds": [0], "controls": False,
    "tasks": [{"task": {"model": "mlp", "data": "digits", "n_train": 200}, "recipe": {"epochs": 1, "batch_size": 50}}],
    "methods": [{"drawn": {"n": 2, "seed": 3}, "levers": LEVELS}],
}  # fmt: skip


def made(by: dict[str, Any], density: float = 0.1) -> torch.Tensor:
    way = Way.model_validate({"by": {"policy": "levers", **by}})
    return way.prune(residual_problem(), density)[0].mask


# --- one action ---


def test_levers_make_the_masks_that_they_name() -> None:
    problem = residual_problem()
    for by, form in [
        ({"mix": "snip"}, {"quotas": "snip", "place": "snip"}),
        ({"mix": "snip", "quotas": "erk"}, {"quotas": "erk", "place": "snip"}),
        (
            {"mix": "magnitude", "quotas": "0.25 own + 0.75 erk"},
            {"quotas": "0.75 erk + 0.25 magnitude", "place": "magnitude"},
        ),
        ({"mix": "snip", "quotas": "synflow", "spread": 1, "n_rounds": 3}, {"quotas": "synflow", "place": "lot"}),
        ({"mix": "magnitude", "balance": 1}, {"quotas": "magnitude", "place": "balanced:magnitude"}),
    ]:
        assert torch.equal(made(by), prune_problem(problem, 0.1, None, form=Form(**form)).mask), by
    assert torch.equal(made({"mix": "0.2 snip + 0.8 synflow"}), made({"mix": "0.8 synflow + 0.2 snip"}))
    assert not torch.equal(made({"mix": "snip + synflow"}), made({"mix": "0.2 snip + 0.8 synflow"}))
    two = made({"mix": "synflow", "n_rounds": 2}), made({"mix": "synflow", "n_rounds": 2, "step": 1})
    assert not torch.equal(*two) and torch.equal(two[1], made({"mix": "synflow"}))  # at once


def test_what_levers_are_not_is_said() -> None:
    for by, said in [
        ({"mix": "snip + grasp_signed"}, "negative scores"),
        ({"mix": "own"}, "Unknown index 'own'"),
        ({"quotas": "erk + synflo"}, "Did you mean 'synflow'"),
        ({"quotas": "0.02 erk + 0.98 own"}, "share of 0.02, and an action takes shares below 0.05 for 0"),
        ({"mix": "snip +"}, "The shares 'snip [+]' name no source"),
        ({"spread": 0.02}, "0.02 is taken for 0 in an action"),
        ({"balance": 1.5}, "balance: must be at most 1"),
    ]:
        with pytest.raises(ConfigError, match=said):
            LeverAction(policy="levers", **by)


# --- combinations ---


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_more_draws_begin_with_the_fewer_and_none_stands_twice(sequence: str) -> None:
    sizes = [2, 3, 1, 4, 2]
    found = {n: Draws(n=n, seed=5, sequence=sequence).of(sizes) for n in (1, 7, 20, 48, 99)}
    assert found[48] == list(dict.fromkeys(found[48])) and set(found[48]) == set(product(*map(range, sizes)))
    assert found[99][:20] == found[20] and found[20][:7] == found[7] and found[7][:1] == found[1]
    assert len(found[99]) == 48 and found[20] != Draws(n=20, seed=6, sequence=sequence).of(sizes)


def test_few_draws_cover_every_lever() -> None:
    """Of 16 points of Sobol's sequence each half, quarter and pair of halves has its share exactly."""
    rows = np.array(Draws(n=16).of([2, 4, 2, 4]))
    for axis, size in enumerate([2, 4, 2, 4]):
        assert np.bincount(rows[:, axis]).tolist() == [16 // size] * size
    assert len({(row[0], row[2]) for row in rows.tolist()}) == 4


def test_levels_are_crossed_where_none_are_drawn() -> None:
    levels = LeverLevels(mix=["snip", "synflow"], start=["none", "gain"], all_alive=True)
    assert [way.label for way in levels.ways(None)] == [
        f"levers ({mix}{start}) + all-alive" for mix in ("snip", "synflow") for start in ("", "; gain start")
    ]
    assert LeverLevels(**LEVELS).n_combinations == 144 == len(LeverLevels(**LEVELS).ways(None))


def test_what_is_no_level_or_no_place_for_one_is_said() -> None:
    for contender, said in [
        ({"levers": {"mix": ["snip", "snpi"]}}, "Did you mean 'snip'"),
        ({"levers": {"mix": ["snip + synflow", "synflow + snip"]}}, "are the same"),
        ({"levers": {"quotas": ["erk", "1.0 erk"]}}, "are the same"),
        ({"levers": {"spread": []}}, "at least 1 item"),
        ({"levers": {"rounds": [1]}}, "unknown key. Did you mean 'n_rounds'"),
        ({"drawn": 3}, "say levers:"),
        ({"drawn": {"n": 3, "sequence": "sobo"}, "levers": {}}, "Did you mean 'sobol'"),
        ({"levers": {}, "method": "snip"}, "name one of a method, a policy file and levers"),
        ({"levers": {}, "all_alive": True}, "say them under levers"),
        ({"levers": {}, "quotas": "erk", "place": "lot"}, "not with a policy file or levers"),
    ]:
        with pytest.raises(ConfigError, match=said):
            parse_config(Contender, contender, "test")


# --- in a grid ---


def test_every_task_density_and_seed_has_the_same_draws(tmp_path: Path) -> None:
    other = {**GRID["tasks"][0], "recipe": {"epochs": 2}, "densities": [0.2]}  # in place of the grid's
    change = {"densities": [0.1, 0.05], "methods": [*GRID["methods"], "erk"], "tasks": [*GRID["tasks"], other]}
    config = parse_config(GridConfig, {**GRID, **change}, "test")
    made = groups(config, tmp_path)
    assert [group.density for group in made] == [1.0, 0.1, 0.05, 0.1, 0.05, 0.1, 0.05, 1.0, 0.2, 0.2, 0.2]
    at = {density: [group.way for group in made if group.density == density] for density in (0.1, 0.05, 0.2)}
    assert at[0.1] == at[0.05] == at[0.2] and all(group.recipe.start is None for group in made)
    again = parse_config(GridConfig, yaml.safe_load(dump_config(config)), "dumped")
    assert again == config


def test_a_cell_says_its_levers_and_what_it_saw_of_the_network(tmp_path: Path) -> None:
    config = parse_config(GridConfig, GRID, "test")
    records = run_grid(config, tmp_path, tmp_path / "run", SerialExecutor(), silent)
    drawn = [record for record in records if record.config["by"]]
    assert len(drawn) == 2 and all(record.config["by"]["policy"] == "levers" for record in drawn)
    problem = load_task(TaskSpec.model_validate(GRID["tasks"][0]["task"]), 0).problem
    seen = dict(zip(OF_NETWORKS, observe(initial(problem, 0.05, 1), OF_NETWORKS).tolist(), strict=True))
    for record in drawn:
        assert dict(map(tuple, record.metrics["seen"])) == pytest.approx(seen, abs=1e-5)
        assert record.metrics["start"] == record.config["by"].get("start", "none")
    assert "seen" not in next(record for record in records if not record.config["by"]).metrics
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    more = parse_config(GridConfig, {**GRID, "methods": [{"drawn": {"n": 3, "seed": 3}, "levers": LEVELS}]}, "test")
    assert len(run_grid(more, tmp_path, tmp_path / "run", SerialExecutor(), silent)) == 4
    assert (tmp_path / "run" / "records.jsonl").read_bytes().startswith(before)


# --- what tells networks apart ---


def seen(model: str, density: float = 0.01, data: str = "digits") -> dict[str, float]:
    state = initial(load_task(TaskSpec(model=model, data=data), 0).problem, density, 1)
    return dict(zip(OF_NETWORKS, observe(state, OF_NETWORKS).tolist(), strict=True))


@pytest.mark.parametrize(
    ("model", "share"), [("mlp", 0.0), ("mlp:8-8,norm=batch", 1.0), ("resnet20", 1.0), ("mlp:8,norm=batch", 1.0)]
)
def test_networks_with_norms_are_alike_whatever_their_depth(model: str, share: float) -> None:
    state = initial(load_task(TaskSpec(model=model, data="digits"), 0).problem, 0.1, 1)
    assert observe(state, ["normalised"]) == [share]


def test_observations_of_networks_are_what_they_say() -> None:
    """The MLP has layers of 64 x 256, 256 x 128 and 128 x 10; ResNet-20 has 22 layers, of which a path needs four."""
    mlp, resnet = seen("mlp"), seen("resnet20")
    wanted = {
        "norm_layers": 0, "skipped_layers": 0, "linear_share": 1, "classes": 1 / 3, "input_size": np.log10(64) / 6,
        "network_width": np.log10(128) / 4, "kept_fan_in": np.log10(0.64 * 2.56 * 1.28) / 9,
        "least_kept_fan_in": np.log10(0.64) / 3, "target_density": np.log(0.01) / np.log(1e-5),
    }  # fmt: skip
    assert {name: mlp[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert resnet["norm_layers"] == pytest.approx(21 / 22) and resnet["skipped_layers"] == pytest.approx(18 / 22)
    assert resnet["least_kept_fan_in"] == pytest.approx(np.log10(0.09) / 3, abs=1e-6)  # the first convolution
    assert not {*OF_NETWORKS} & {*STANDARD} - {"target_density", "network_size", "network_depth", "linear_share"}
