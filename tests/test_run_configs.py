"""One mask and one training by a config: the same from options, files, changes and Python."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from console import run

import panning
from panning.agents import AgentConfig
from panning.compare.grid import GridConfig
from panning.foundation.config import Config, parse_config, replaced
from panning.foundation.errors import ConfigError
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.jobs.train import TrainConfig, check_train, expanded
from panning.searches.config import SearchConfig
from panning.searches.kinds import PRUNE, TRAIN, named_config
from panning.training.presets import load_dynamic_preset

TASK = {"model": "mlp", "data": "digits", "n_train": 60}
SHORT = {"epochs": 1, "batch_size": 20, "learning_rate": 0.05}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANNING_DATA", raising=False)


def write(name: str, **values: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(yaml.safe_dump(values))
    return name


def identity(folder: str) -> dict[str, Any]:
    found = json.loads(Path(folder, "run.json").read_text())
    assert isinstance(found, dict)
    return found


AGENT: dict[str, Any] = {"env": {"tasks": [TASK], "densities": [0.1]}}
SEARCH: dict[str, Any] = {"name": "s", "task": TASK, "densities": [0.1], "recipe": SHORT, "samplers": ["random"]}
BENCH: dict[str, Any] = {
    "name": "b", "tasks": [{"task": TASK, "recipe": SHORT}], "densities": [0.1], "methods": ["snip"], "seeds": [0],
}  # fmt: skip
CONFIGS: dict[str, tuple[type[Config], dict[str, Any]]] = {
    "prune": (PruneConfig, {"task": TASK, "density": 0.1}), "train": (TrainConfig, {"task": TASK}),
    "train-agent": (AgentConfig, AGENT), "search": (SearchConfig, SEARCH), "bench": (GridConfig, BENCH),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("prune", "seed"), ("train", "seed"), ("train-agent", "seed"), ("train-agent", "env.seeds"), ("search", "seeds"),
        ("search", "agent.seeds"), ("search", "agent.seed"), ("search", "samplers.0.seed"), ("bench", "seeds"),
    ],
)  # fmt: skip
def test_a_seed_that_no_record_holds_is_refused_before_anything_runs(kind: str, place: str) -> None:
    model, values = CONFIGS[kind]
    if place.startswith("samplers"):
        values = {**values, "samplers": [{"name": "random", "n": 1}], "order": "free"}
    for seed in (2**63, -(2**63) - 1):
        seeds = [seed] if place.endswith("s") else seed
        with pytest.raises(ConfigError, match=rf"seeds?(\.0)?: must be (less than|at least) [^\n]*\(given: {seed}\)"):
            parse_config(model, replaced(values, {place: seeds}), "it")


@pytest.mark.parametrize("kind", CONFIGS)
def test_half_a_letter_is_refused_before_anything_runs(kind: str) -> None:
    model, values = CONFIGS[kind]
    for name, value in (("x", "npz:\udcff.npz"), ("\ud800", 1), ("x", [{"y": ("a", "\udfff")}])):
        with pytest.raises(ConfigError, match="holds half a letter"):
            parse_config(model, {**values, name: value}, "it")


def test_a_file_whose_name_is_no_utf_8_is_refused_before_the_mask_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"\xff.npz")
    part = {"images": np.zeros((20, 4, 4), np.uint8), "labels": np.arange(20) % 2}
    with open(name, "wb") as file:
        np.savez(file, **{f"{of}_{what}": values for of in ("train", "test") for what, values in part.items()})
    assert run("prune", "--model", "mlp", "--data", f"npz:{name}", "--density", "0.1", "--out", "out") == 2
    said = capsys.readouterr().err
    assert "holds half a letter" in said and "pruning" not in said and not Path("out").exists()


# --- one mask ---


def test_a_mask_is_the_same_by_options_a_file_and_python() -> None:
    options = ["--model", "mlp", "--data", "digits", "--density", "0.05", "--method", "snip", "--min-density", "c*=0.2"]
    assert run("prune", *options, "--out", "a") == 0
    values = {"task": {"model": "mlp", "data": "digits"}, "density": 0.05, "method": "snip", "min_density": {"c*": 0.2}}
    assert run("prune", write("one.yaml", kind="prune", **values), "--out", "b") == 0
    report = run_prune(check_prune(PruneConfig.model_validate(values)), "c")
    assert report.path == Path("c/mask.safetensors") and report.figures["n_kept"] == report.made.masks.n_kept
    files = [Path(folder, "mask.safetensors").read_bytes() for folder in "abc"]
    assert files[0] == files[1] == files[2] and identity("a") == identity("b") == identity("c")
    configs = [Path(folder, "config.yaml").read_text() for folder in "abc"]
    assert configs[0] == configs[1] == configs[2]
    assert run("prune", "c/config.yaml", "--out", "c") == 0  # the folder's own config is the same run


def test_changes_go_over_a_file_and_options_over_both(capsys: pytest.CaptureFixture[str]) -> None:
    write("one.yaml", kind="prune", task=TASK, density=0.5, method="magnitude", all_alive=True, seed=4)
    assert run("prune", "one.yaml", "density=0.25", "seed=5", "--seed", "6", "--out", "a") == 0
    manifest = panning.load_masks("a/mask.safetensors").manifest
    assert (manifest["method"], manifest["seed"], manifest["all_alive"]) == ("magnitude", 6, True)
    assert identity("a")["density"] == 0.25 and identity("a")["n_train"] == 60
    assert (
        run("prune", "density=0.25", "--model", "mlp", "--data", "digits", "--method", "magnitude", "--out", "b") == 0
    )
    assert identity("b")["density"] == 0.25
    assert run("prune", "--model", "mlp", "--density", "0.1") == 2
    assert "name a config, or give --model and --data" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "say how much is kept: density, target_macs or target_parameters"),
        ({"density": 0.1, "target_macs": 0.5}, "density and target_macs each say how much is kept"),
        ({"density": 0.1, "method": "snp"}, "Did you mean 'snip'"),
        ({"density": 0.1, "metod": "snip"}, "metod: unknown key. Did you mean 'method'?"),
        ({"density": 0.1, "schedule": "cubik"}, "schedule: Unknown schedule 'cubik'. Did you mean 'cubic'?"),
        ({"density": 0.1, "method": "rigl"}, "panning train --dynamic rigl --density 0.1"),
        ({"density": 0.1, "policy": "p", "quotas": "erk", "rounds": 2}, "rounds and quotas cannot go with it"),
        ({"density": 0.1, "round_to": 8}, "round_to keeps whole units"),
        ({"density": 0.1, "shape": "4x1", "all_alive": True}, "would break the shape"),
        ({"density": 0.1, "task": {"model": "my.nets:make", "data": "digits"}}, "Code is named on the command line alone"),
        ({"density": 0.1, "kind": "train"}, "kind: must be 'prune'"),
        ({"density": 0.1, "seed": 2**63}, "seed: must be less than"),
    ],
)  # fmt: skip
def test_a_wrong_config_of_a_mask_is_one_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(PruneConfig, {"task": TASK, **values}, "test")
    assert said in str(caught.value) and "test: 1 error(s)" in str(caught.value)


def test_a_name_of_torchvision_alone_is_a_model_in_configs_too() -> None:
    pytest.importorskip("torchvision")
    assert PruneConfig(task={"model": "alexnet", "data": "digits"}, density=0.1).task.model == "alexnet"


# --- one training ---


def test_a_training_is_the_same_by_options_and_a_file() -> None:
    assert run("prune", "--model", "mlp", "--data", "digits", "--density", "0.2", "--method", "erk", "--out", "p") == 0
    write("sub/t.yaml", kind="train", task={"model": "mlp", "data": "digits"}, recipe=SHORT, mask="mask.safetensors")
    shutil.copy("p/mask.safetensors", "sub")
    assert run("train", "sub/t.yaml", "--out", "a") == 0  # a relative path lies beside the config
    options = ["--model", "mlp", "--data", "digits", "--epochs", "1", "--batch-size", "20", "--learning-rate", "0.05"]
    assert run("train", *options, "--mask", "p/mask.safetensors", "--out", "b") == 0
    assert identity("a") == identity("b")
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    assert run("train", "a/config.yaml", "--out", "a") == 0
    assert run("train", "sub/t.yaml", "recipe.epochs=2", "--out", "a") == 2  # another run


def test_a_preset_is_written_out_and_what_is_said_beside_it_goes_over_it() -> None:
    preset = load_dynamic_preset("dpf/lenet5-fashion_mnist/short")
    task = {"model": "lenet5", "data": "fashion_mnist"}
    write("t.yaml", task=task, dynamic="dpf/lenet5-fashion_mnist/short", density=0.02)
    plain = named_config(TRAIN, "t.yaml").config
    assert plain.recipe == preset.recipe and plain.dynamic is not None and plain.dynamic.name == "dpf"
    assert plain.dynamic.options.items() >= preset.options.items()
    changed = named_config(TRAIN, "t.yaml", ["recipe.epochs=3"], {"dynamic.options.every": 7}).config
    assert changed.recipe == preset.recipe.model_copy(update={"epochs": 3.0})
    assert changed.dynamic is not None and changed.dynamic.options["every"] == 7
    own = {"task": task, "dynamic": "dpf/lenet5-fashion_mnist/short", "recipe": {"epochs": 2}, "density": 0.02}
    assert parse_config(TrainConfig, own, "test").recipe.epochs == 2
    assert expanded({"dynamic": "rigl"}) == {"dynamic": {"name": "rigl"}}


def test_a_start_that_is_refused_stays_refused_in_the_config_of_the_folder() -> None:
    start = ["--density", "0.2", "--method", "erk", "--start", "gain:0.5", "--out", "p"]
    assert run("prune", "--model", "mlp", "--data", "digits", *start) == 0
    values = {"task": {"model": "mlp", "data": "digits"}, "mask": "p/mask.safetensors"}
    taken = check_train(TrainConfig.model_validate({**values, "recipe": SHORT}))
    assert taken.plan.recipe.start is not None and taken.plan.recipe.start.text == "gain:0.5"
    assert "the mask asks for the start gain:0.5, and gets it" in taken.notes[0]
    refused = TrainConfig.model_validate({**values, "recipe": {**SHORT, "start": "none"}})
    again = TrainConfig.model_validate(refused.model_dump(mode="json"))
    for config in (refused, again):
        assert check_train(config).plan.recipe.start is None and check_train(config).notes == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"density": 0.1}, "density, all_alive and shape need dynamic"),
        ({"dynamic": "rigl"}, "dynamic needs density, or a shape like 2:4"),
        ({"dynamic": "rigle", "density": 0.1}, "Did you mean 'rigl'"),
        ({"dynamic": "dpf/lenet5/short", "density": 0.1}, "Unknown preset 'dpf/lenet5/short'"),
        ({"recipe": "lenet5-mnist/shrt"}, "Did you mean 'lenet5-mnist/short'"),
        ({"recipe": {"start": "gain"}}, "start is that of kept weights"),
        ({"recipe": {"epoch": 1}}, "recipe.epoch: unknown key. Did you mean 'epochs'?"),
    ],
)
def test_a_wrong_config_of_a_training_is_one_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, {"task": TASK, **values}, "test")
    assert said in str(caught.value)
    write("t.yaml", task=TASK, **values)
    with pytest.raises(ConfigError) as caught:
        named_config(TRAIN, "t.yaml")
    assert said in str(caught.value)


# --- kinds ---


def test_a_file_that_says_its_kind_is_taken_by_its_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    write("t.yaml", kind="train", task=TASK)
    assert run("prune", "t.yaml", "density=0.1") == 2
    assert "a config of the kind 'train': 'panning train t.yaml' takes it, 'panning prune' does not." in (
        capsys.readouterr().err
    )
    write("p.yaml", task=TASK, density=0.5)
    assert named_config(PRUNE, "p.yaml").config.kind == "prune"
    write("w.yaml", kind="prnue", task=TASK, density=0.5)
    with pytest.raises(ConfigError, match="kind: must be 'prune'"):
        named_config(PRUNE, "w.yaml")


def test_values_replace_others_where_dotted_keys_lead() -> None:
    values = {"recipe": {"epochs": 3}, "rungs": [{"keep": 2}]}
    assert replaced(values, {"recipe.epochs": 5, "rungs.0.keep": 1, "a.b": True}) == {
        "recipe": {"epochs": 5}, "rungs": [{"keep": 1}], "a": {"b": True},
    }  # fmt: skip
    assert values == {"recipe": {"epochs": 3}, "rungs": [{"keep": 2}]}
    with pytest.raises(ConfigError, match="there is no 'epochs' in 'a/short'"):
        replaced({"recipe": "a/short"}, {"recipe.epochs": 1})
