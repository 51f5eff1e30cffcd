"""Starts as factors: recipes, grids, masks' manifests, the search's and the agent's trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from console import run

import panning
from panning.compare.cells import by_place, check_cell, recipe_text, row_name, setting_of
from panning.compare.grid import GridConfig, groups
from panning.compare.plan import grid_stages
from panning.compare.reproduce import differences, run_again
from panning.compare.run import check_grid, run_grid
from panning.compare.tables import tables
from panning.compare.text import COLUMNS, row_cells
from panning.envs.ending import Final, RewardSpec, training
from panning.foundation.errors import ConfigError
from panning.foundation.progress import silent
from panning.foundation.records import content_key
from panning.jobs.executor import SerialExecutor
from panning.jobs.spec import CellSpec
from panning.jobs.ways import Method
from panning.masks.masks import Masks
from panning.pruners import PruneResult, prune_problem
from panning.tasks import DataSource, Task, TaskSpec, load_task
from panning.training import Movement, Recipe, make_dynamic, train
from panning.training.loop import train_copy
from panning.training.moving.methods import first_mask
from panning.training.recipe import Plan, Start
from panning.training.regimes import regime_of

RECIPE = {"epochs": 1, "batch_size": 50, "learning_rate": 0.05, "augment": False}
CONFIG: dict[str, Any] = {
    "name": "starts",
    "tasks": [{"task": {"model": "mlp", "data": "digits", "n_train": 200}, "recipe": RECIPE}],
    "densities": [0.1],
    "seeds": [0, 1],
    "methods": ["erk", "snip"],
    "controls": False,
}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(TaskSpec(model="mlp", data="digits", n_train=200), 0, DataSource())


@pytest.fixture(scope="module")
def masks(task: Task) -> Masks:
    return prune_problem(task.problem, 0.05, "erk").masks


def grid(**changed: Any) -> GridConfig:
    return GridConfig.model_validate(CONFIG | changed)


def with_task(**changed: Any) -> GridConfig:
    return grid(tasks=[{**CONFIG["tasks"][0], **changed}])


# --- configs ---


def test_a_start_is_read_from_text_and_stands_in_json_only_where_there_is_one() -> None:
    plain, gained = Recipe(), Recipe(start="gain:0.7")  # type: ignore[arg-type]
    assert gained.start == Start(scheme="gain", gain=0.7) and gained.start.text == "gain:0.7"
    assert "start" not in plain.model_dump(mode="json") and Recipe(start="none") == plain  # type: ignore[arg-type]
    assert gained.model_dump(mode="json")["start"] == {"scheme": "gain", "gain": 0.7}
    assert Recipe.model_validate(gained.model_dump(mode="json")) == gained
    assert content_key(plain.model_dump(mode="json")) == "71c63255514944dcbb85"  # the key that records have
    assert [Start(scheme=name).label for name in ("gain", "supar")] == ["gain start", "SμPar start"]
    for text, says in (
        ("gian", "Did you mean 'gain'"),
        ("gain:x", "number"),
        ("gain:0", "more than 0|greater"),
        ("supar:2", "no gain"),
    ):
        with pytest.raises(ConfigError, match=says):
            Recipe(start=text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": ["erk", {"method": "erk", "start": "gian"}]}, "Did you mean 'gain'"),
        ({"tasks": [{**CONFIG["tasks"][0], "starts": ["gain", "gain:1.0"]}]}, "starts is named twice"),
        (
            {
                "tasks": [{**CONFIG["tasks"][0], "starts": ["none", "gain"]}],
                "methods": ["erk", {"method": "snip", "start": "gain"}],
            },
            "leave start out of the methods",
        ),
        (
            {
                "tasks": [{**CONFIG["tasks"][0], "learning_rates": [0.1, 0.05]}],
                "methods": ["erk", {"method": "erk", "start": "gain"}],
            },
            "differ in the start alone",
        ),
        ({"short": [{**RECIPE, "start": "gain"}]}, "the start under starts"),
    ],
)
def test_grids_whose_starts_could_not_be_told_apart_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        grid(**change)


# --- trainings ---


def test_training_begins_at_the_start_and_masks_stay(task: Task, masks: Masks) -> None:
    slow = Recipe(epochs=1, batch_size=50, learning_rate=1e-30, weight_decay=0.0, start="gain")  # type: ignore[arg-type]
    model, _ = train_copy(task, masks, slow, seed=3)
    wanted = task.network()
    panning.reinitialise(wanted, masks, "gain", seed=3)
    for name in masks:
        assert torch.equal(model.state_dict()[name], wanted.state_dict()[name]), name
    drawn = task.network()
    panning.reinitialise(drawn, masks, "fan_in", seed=3)
    model, _ = train_copy(task, masks, slow.model_copy(update={"start": Start(scheme="fan_in")}), seed=3)
    assert torch.equal(model.state_dict()[masks.layout.names[0]], drawn.state_dict()[masks.layout.names[0]])
    dense, _ = train_copy(task, None, slow, seed=3)  # a dense network has no kept weights
    assert torch.equal(dense.state_dict()[masks.layout.names[0]], task.network().state_dict()[masks.layout.names[0]])


def test_sμpars_learning_rates_are_those_of_the_optimizer(task: Task, masks: Masks) -> None:
    recipe = Recipe(epochs=20, batch_size=50, start="supar")  # type: ignore[arg-type]
    model, plan = task.network(), Plan.of(recipe, 200)
    started, _ = recipe.start.give(model, masks, 0)  # type: ignore[union-attr]
    (name,) = started.learning_rates  # the one hidden layer of the three
    few = task.data.batch(task.data.train, torch.arange(2), task.device)[0]
    regime = regime_of(model, recipe, plan, masks, None, few, started.learning_rates)
    first, second = regime.optimizer.param_groups
    assert "factor" not in first and second["factor"] == pytest.approx(1 / masks.layer_densities()[name])
    assert second["params"] == [dict(model.named_parameters())[name]] and regime.network is model

    one = Recipe(epochs=0.25, batch_size=50, schedule="constant", weight_decay=0.0, momentum=0.0, augment=False)
    begun, plain, scaled = (task.network() for _ in range(3))
    for network in (begun, plain):
        Start(scheme="supar").give(network, masks, 0)
    train(plain, task.data, one, seed=0, masks=masks)
    train(scaled, task.data, one.model_copy(update={"start": Start(scheme="supar")}), seed=0, masks=masks)
    for layer in masks:  # one step is as long as the factor says
        by, by_factor = (network.state_dict()[layer] - begun.state_dict()[layer] for network in (plain, scaled))
        assert float(by.abs().max()) > 0
        assert torch.allclose(by_factor, started.learning_rates.get(layer, 1.0) * by, rtol=1e-3, atol=1e-5)


def test_compaction_trains_the_same_network_from_a_start(task: Task, masks: Masks) -> None:
    recipe = Recipe(epochs=25, batch_size=50, learning_rate=0.01, start="gain", augment=False)  # type: ignore[arg-type]
    compacted, _ = train_copy(task, masks, recipe, seed=0)
    masked, _ = train_copy(task, masks, recipe.model_copy(update={"compact": False}), seed=0)
    for name, mask in masks.items():
        difference = (compacted.state_dict()[name] - masked.state_dict()[name])[mask].abs().max()
        assert float(difference) < 1e-4


def test_masks_that_move_start_there_too(task: Task) -> None:
    method = make_dynamic("rigl", {"every": 3})
    first = first_mask(task.problem, method, 0.1)
    slow = Recipe(epochs=2, batch_size=50, learning_rate=1e-30, weight_decay=0.0, start="gain")  # type: ignore[arg-type]
    model, wanted = task.network(), task.network()
    last = train(model, task.data, slow, seed=1, masks=first, movement=Movement(method, task.problem, 0.1, False)).masks
    panning.reinitialise(wanted, first, "gain")
    assert last is not None and not torch.equal(last.flat, first.flat)
    for name in first:
        stayed = first[name] & last[name]
        assert torch.equal(model.state_dict()[name][stayed], wanted.state_dict()[name][stayed])


# --- grids ---


def test_a_method_with_a_start_is_a_row_of_its_own_and_runs_again(tmp_path: Path) -> None:
    config = grid(
        methods=["erk", {"method": "erk", "start": "gain:0.5"}, {"method": "snip", "start": "fan_in"}], seeds=[0]
    )
    check_grid(config, tmp_path)
    records = run_grid(config, tmp_path, tmp_path / "out", SerialExecutor(), silent)
    (table,) = tables(map(check_cell, records))
    assert {row.method for row in table.rows} == {
        "random (ERK)", "random (ERK), gain 0.5 start", "SNIP, fan-in draws start"
    }  # fmt: skip
    assert "start" not in records[0].config["recipe"] and records[0].config["by"] is None
    plain, gained = (
        next(row for row in table.rows if row.method == f"random (ERK){end}") for end in ("", ", gain 0.5 start")
    )
    assert plain.cells[0].metrics["mask"] == gained.cells[0].metrics["mask"]
    assert plain.cells[0].metrics["accuracy"] != gained.cells[0].metrics["accuracy"]
    assert plain.is_random and gained.is_random and plain.identity != gained.identity
    assert [contrast.name for contrast in table.beside_random if "ERK" in contrast.method] == [
        "random (ERK), gain 0.5 start − random (ERK)"
    ]
    again = run_again(gained.cells[0], DataSource())
    assert differences(gained.cells[0], again) == []


def test_the_best_start_is_chosen_on_the_validation_part_for_each_method_and_density(tmp_path: Path) -> None:
    config = with_task(starts=["none", "gain", "gain:100"], learning_rates=[1e-6, 0.05])
    assert check_grid(config, tmp_path) == (6, 2 * (3 + 2 + 2 * 6))
    stages = {stage.name: stage.steps for stage in grid_stages(config, tmp_path)}
    assert stages == {"learning rates": 2 * (2 + 2 * 6), "cells": 6}
    records = run_grid(config, tmp_path, tmp_path / "out", SerialExecutor(), silent)
    cells = [check_cell(record) for record in records]
    final, trials = by_place(cells)
    assert {(name, len(some)) for (_, name, _), some in final.items()} == {
        ("dense", 2),
        ("random (ERK)", 2),
        ("SNIP", 2),
    }
    for (text, name, density), some in final.items():
        tried = trials[text, name, density]
        assert len({setting_of(trial) for trial in tried}) == (2 if name == "dense" else 6)
        by_setting: dict[tuple[float, str], float] = {}
        for trial in tried:
            by_setting[setting_of(trial)] = by_setting.get(setting_of(trial), 0.0) + trial.metrics["accuracy"]
        assert {setting_of(cell) for cell in some} == {max(sorted(by_setting), key=by_setting.__getitem__)}
    (table,) = tables(cells)
    shown = row_cells(table, table.rows[0])[COLUMNS.index("learning rate")]
    assert " of 1e-06 as drawn, 1e-06 gain 100 start, 1e-06 gain start, 0.05 as drawn" in shown
    assert all(row.fixed_start == "" and row.method in ("SNIP", "random (ERK)") for row in table.rows)
    assert "what was tried" in recipe_text(json.loads(next(iter(final))[0])[1])


def test_a_fixed_start_stays_in_the_name_where_rates_are_tried(tmp_path: Path) -> None:
    tasks = [{**CONFIG["tasks"][0], "learning_rates": [0.01, 0.05]}]
    config = grid(tasks=tasks, methods=[{"method": "erk", "start": "gain:0.5"}, "snip"], seeds=[0])
    (table,) = tables(map(check_cell, run_grid(config, tmp_path, tmp_path / "out", SerialExecutor(), silent)))
    assert {(row.method, len(row.trials)) for row in table.rows} == {("random (ERK), gain 0.5 start", 2), ("SNIP", 2)}
    assert {row.fixed_start for row in table.rows} == {"gain 0.5 start", ""}


def test_starts_alone_are_tried_at_the_recipes_rate_and_not_for_the_dense_network(tmp_path: Path) -> None:
    config = with_task(starts=["gain", "gain:0.01"])
    dense, erk, _ = groups(config, tmp_path)
    assert dense.tried == [] and dense.recipe.start is None
    assert [recipe.start.text for recipe in erk.tried if recipe.start] == ["gain", "gain:0.01"]
    records = run_grid(config, tmp_path, tmp_path / "out", SerialExecutor(), silent)
    (table,) = tables(map(check_cell, records))
    assert {row.method for row in table.rows} == {"random (ERK)", "SNIP"} and len(table.dense.cells) == 2


def test_old_records_keep_their_keys() -> None:
    spec = CellSpec(
        task=TaskSpec(model="mlp", data="digits"), seed=0, density=0.1, by=Method(method="snip"), recipe=Recipe()
    )  # fmt: skip
    config = spec.model_dump(mode="json")
    assert config["by"] == {"method": "snip"} and "start" not in config["recipe"]
    assert row_name(config) == "SNIP"


def test_rewards_train_from_the_start_of_their_recipe(task: Task, masks: Masks) -> None:
    spec = RewardSpec.model_validate({"training": 1.0, "recipe": {**RECIPE, "start": "gain:0.5"}})
    assert RewardSpec.model_validate(spec.model_dump(mode="json")) == spec
    result = PruneResult(masks.layout, masks.flat, torch.zeros(masks.n_prunable))
    figures = training(Final(task, masks.density, result, spec, 5))
    _, wanted = train_copy(task, masks, spec.recipe, task.problem.seed)
    _, drawn = train_copy(task, masks, spec.recipe.model_copy(update={"start": None}), task.problem.seed)
    assert figures["accuracy"] == wanted.final["accuracy"] != drawn.final["accuracy"]


# --- commands ---


@pytest.mark.usefixtures("_in_a_folder")
def test_a_mask_notes_its_start_and_training_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "mlp", "--data", "digits"]
    assert run("prune", *common, "--density", "0.05", "--method", "erk", "--start", "gain:0.7", "--out", "p") == 0
    assert panning.load_masks("p/mask.safetensors").manifest["start"] == "gain:0.7"
    train_it = ["train", *common, "--mask", "p/mask.safetensors", "--epochs", "1"]
    assert run(*train_it, "--out", "noted") == 0
    assert "the mask asks for the start gain:0.7, and gets it" in " ".join(capsys.readouterr().err.split())
    assert run(*train_it, "--start", "none", "--out", "drawn") == 0
    assert "the mask asks" not in capsys.readouterr().err
    recipes = [json.loads(Path(f"{out}/records.jsonl").read_text())["config"]["recipe"] for out in ("noted", "drawn")]
    assert recipes[0]["start"] == {"scheme": "gain", "gain": 0.7} and "start" not in recipes[1]
    assert run("train", *common, "--epochs", "1", "--start", "gain") == 2
    assert "start is that of kept weights" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert run("prune", *common, "--density", "0.05", "--start", "gian") == 2
    assert "Did you mean 'gain'" in capsys.readouterr().err


@pytest.fixture
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
