"""The command line as a user meets it: products, resuming, and one clear message for every wrong input."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from console import run
from safetensors import safe_open
from safetensors.torch import load_file
from test_search import CONFIG, SHORT

import panning
from panning.data import ImageData
from panning.masks.file import fingerprint
from panning.masks.masks import Masks
from panning.pruners import PRUNERS
from panning.tasks import TaskSpec, load_task
from panning.training import DYNAMICS, evaluate, evaluate_mean

PRUNE = ["prune", "--model", "mlp", "--data", "digits", "--density", "0.05"]
TRAIN = [
    "train",
    "--model",
    "mlp",
    "--data",
    "digits",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--learning-rate",
    "0.05",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs in an empty folder, without a data root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANNING_DATA", raising=False)


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_prune_writes_mask_record_table_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PRUNE, "--method", "snip", "--all-alive", "--out", "p", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    masks = panning.load_masks("p/mask.safetensors")
    assert masks.n_kept == printed["n_kept"] and printed["effective_density"] == masks.density
    assert masks.manifest["method"] == "snip" and masks.manifest["all_alive"] is True
    assert {f"p/{name}" for name in ("layers.png", "records.jsonl", "table.csv", "table.md", "run.json")} < set(files())


def test_a_shape_of_n_of_m_says_the_density() -> None:
    command = [*PRUNE[:-2], "--method", "magnitude", "--shape"]
    assert run(*command, "2:4", "--out", "p") == 0
    masks = panning.load_masks("p/mask.safetensors")
    assert masks.density == 0.5 and masks.manifest["shape"] == "2:4"
    assert run(*command, "4x1", "--out", "q") == 2 and not Path("q").exists(), "blocks say none"


def test_prune_takes_quotas_places_shapes_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    bounds = ["--min-density", "class*=0.5", "--max-density", "hidden.linear1*=0.04"]
    assert run(*PRUNE, "--quotas", "erk+snip", "--place", "balanced:lot", *bounds, "--out", "p") == 0
    manifest = panning.load_masks("p/mask.safetensors").manifest
    assert (manifest["method"], manifest["quotas"], manifest["place"]) == ("placed", "erk + snip", "balanced:lot")
    assert manifest["min_density"] == {"class*": 0.5} and manifest["max_density"] == {"hidden.linear1*": 0.04}
    capsys.readouterr()
    for options, says in (
        (["--method", "snip", "--quotas", "erk", "--place", "lot"], "leave method 'snip' nothing to say"),
        (["--min-density", "class*"], "PATTERN=DENSITY"),
        (["--min-density", "hidden*=0.9"], "leave densities from"),
        (["--shape", "2:4"], "can be had, given 0.05"),
        (["--shape", "4x1", "--all-alive"], "would break the shape"),
    ):
        assert run(*PRUNE, *options, "--out", "q") == 2
        assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not [name for name in files() if name.startswith("q")]


def test_prune_takes_controls_released_forms_and_name_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    change = ["--method", "force", "--released", "--control", "shuffle", "--exclude", "classifier*", "--out", "p"]
    assert run(*PRUNE, *change) == 0
    masks = panning.load_masks("p/mask.safetensors")
    assert list(masks) == ["hidden.linear1.weight", "hidden.linear2.weight"]
    assert masks.manifest["released"] is True and masks.manifest["control"] == "shuffle"
    assert f"{masks.manifest['n_dead_units']} dead units" in capsys.readouterr().out
    assert run("mask", "show", "p/mask.safetensors") == 0
    assert "dead units" in capsys.readouterr().out


def test_methods_are_listed_for_people_machines_and_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    before, during = ([row for row in rows if row["when"] == when] for when in ("before", "during"))
    assert [row["name"] for row in before] == list(PRUNERS) and [row["name"] for row in during] == list(DYNAMICS)
    assert {row["name"]: row["options"] for row in during}["dpf"]["every"] == 16
    needs = {row["name"]: (row["needs_data"], row["second_order"]) for row in before}
    assert needs["grasp"] == (True, True) and needs["snip"] == (True, False) and needs["ntk_sap"] == (False, False)
    assert run("methods") == 0
    shown = capsys.readouterr()
    assert "NTK-SAP" in shown.out and "iter_snip --released" in shown.err and "GraNet-ST" in shown.out
    assert run("methods", "--markdown") == 0
    assert capsys.readouterr().out.count("| `") == len(PRUNERS) + len(DYNAMICS)


def test_the_same_command_gives_the_same_mask_in_another_process() -> None:
    assert run(*PRUNE, "--method", "iter_snip", "--rounds", "4", "--out", "a") == 0
    command = [sys.executable, "-c", "from panning.cli import main; main()", *PRUNE]
    subprocess.run([*command, "--method", "iter_snip", "--rounds", "4", "--out", "b"], check=True, capture_output=True)
    assert Path("a/mask.safetensors").read_bytes() == Path("b/mask.safetensors").read_bytes()


def test_train_with_and_without_a_mask(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PRUNE, "--out", "p") == 0
    assert run(*TRAIN, "--mask", "p/mask.safetensors", "--out", "t", "--json") == 0
    printed = json.loads(capsys.readouterr().out.split("safetensors\n", 1)[1])
    assert printed["density"] == panning.load_masks("p/mask.safetensors").density
    assert 0.1 < printed["test_accuracy"] <= 1 and {"t/model.safetensors", "t/curve.png"} < set(files())
    masks = panning.load_masks("p/mask.safetensors")
    held = json.loads(Path("t/run.json").read_text())["mask"]
    assert held == [fingerprint(masks.layout), hashlib.sha256(masks.flat.numpy().tobytes()).hexdigest()]
    assert run(*PRUNE, "--method", "random", "--out", "q") == 0
    assert run(*TRAIN, "--mask", "q/mask.safetensors", "--out", "t") == 2
    assert "it differs in: mask" in capsys.readouterr().err
    assert run(*TRAIN, "--out", "dense") == 0
    assert "at density 1" in capsys.readouterr().out


def test_a_training_that_goes_on_shows_the_epochs_behind_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--model", "mlp", "--data", "digits", "--epochs", "3", "--batch-size", "100", "--out", "t"]
    with monkeypatch.context() as patched:
        patched.setattr("panning.cli.output._note", interrupted)
        assert run(*command) != 0
    assert "1 of 3" in capsys.readouterr().err
    assert run(*command) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert [line.partition("(")[2][:6] for line in shown] == ["1 of 3", "2 of 3", "3 of 3"]


@pytest.mark.parametrize(
    ("place", "method"),
    [
        ("jobs.single.training_figures", ""),
        ("jobs.single.training_figures", "dpf"),
        ("jobs.single.write_networks", "edst"),
        ("jobs.single._write_record", "dpf"),
        ("jobs.single.curve_picture", "dpf"),
    ],
)
def test_a_training_that_was_killed_when_it_had_ended_is_not_done_again(
    place: str, method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"": [], "dpf": ["--set", "every=2"], "edst": ["--set", "n_members=2", "--epochs", "3"]}[method]
    dynamic = ["--dynamic", method, "--density", "0.1", *numbers] if method else []
    assert run(*TRAIN, *dynamic, "--out", "whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr(f"panning.{place}", killed)
        assert run(*TRAIN, *dynamic, "--out", "cut") != 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("panning.training.loop._train_epoch", killed)
        assert run(*TRAIN, *dynamic, "--out", "cut") == 0
    assert "training: 100% (" in capsys.readouterr().err
    left = {Path(file).name for file in files() if file.startswith("cut/")}
    assert left == {Path(file).name for file in files() if file.startswith("whole/")}
    assert not left & {"checkpoint.safetensors", "model_full.safetensors"}
    assert ("mask.safetensors" in left) == bool(method)
    for name in left - {"records.jsonl"}:
        assert (Path("cut") / name).read_bytes() == (Path("whole") / name).read_bytes(), name
    first, second = (json.loads(Path(f"{out}/records.jsonl").read_text()) for out in ("whole", "cut"))
    first["metrics"].pop("wall_s"), second["metrics"].pop("wall_s")
    assert first == second


def test_partially_masked_training_gives_the_full_network_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = ImageData.test_split
    monkeypatch.setattr(ImageData, "test_split", lambda self: read.append(self) or real(self))
    command = [*TRAIN, "--dynamic", "partial", "--density", "0.1", "--out", "t"]
    with monkeypatch.context() as patched:
        patched.setattr("panning.cli.output._note", interrupted)
        assert run(*command) != 0 and not read
    assert run(*command) == 0
    figures = json.loads(Path("t/records.jsonl").read_text())["metrics"]
    masks, core, full = (
        panning.load_masks("t/mask.safetensors"), load_file("t/model.safetensors"), load_file("t/model_full.safetensors"),
    )  # fmt: skip
    for name, tensor in full.items():  # the core is a part of it
        kept = masks[name] if name in masks else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(core[name], torch.where(kept, tensor, 0.0))
        assert tensor[~kept].count_nonzero() == (~kept).sum()
    assert len(read) == 1, "the test part is read once"
    task = load_task(TaskSpec(model="mlp", data="digits"), 0)
    for which, weights in (("", core), ("_of_full", full)):
        task.problem.model.load_state_dict(weights)
        for part, split in (("validation", task.data.validation), ("test", real(task.data))):
            accuracy = evaluate(task.problem.model, task.data, split)["accuracy"]
            assert figures[f"{part}_accuracy{which}"] == accuracy
    assert figures["test_accuracy_of_full"] > 0.8 > figures["test_accuracy"]  # the core learns at half the steps
    shown = [f"{100 * figures[f'{part}_accuracy_of_full']:.2f} %" for part in ("test", "validation")]
    assert f"; of the full network {shown[0]} (validation {shown[1]})" in capsys.readouterr().out


def test_a_complete_folder_is_trained_again() -> None:
    assert run(*TRAIN, "--out", "t") == 0
    before = Path("t/model.safetensors").stat()
    assert run(*TRAIN, "--out", "t") == 0
    assert Path("t/model.safetensors").stat().st_ino != before.st_ino and "t/checkpoint.safetensors" not in files()


def killed(*arguments: Any, **rest: Any) -> None:
    raise KeyboardInterrupt


def interrupted(entry: dict[str, float]) -> str:
    if entry.get("epoch") == 2:
        raise KeyboardInterrupt
    return ""


def test_train_with_masks_that_move(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--model", "mlp", "--data", "digits", "--epochs", "3", "--batch-size", "100", "--learning-rate", "0.05"]
    dpf = ["train", *short, "--dynamic", "dpf", "--density", "0.1", "--set", "every=2", "--all-alive", "--out", "dpf"]
    assert run(*dpf) == 0
    shown = capsys.readouterr()
    assert "density 0.099996, effective 0.099996" in shown.out and "effective" in shown.err
    masks = panning.load_masks("dpf/mask.safetensors")
    assert masks.density == pytest.approx(0.1, abs=1e-4) and masks.manifest["method"] == "dpf"
    assert (
        run("mask", "verify", "dpf/mask.safetensors", "--model", "mlp") == 0
    )  # the manifest says for what it is built
    assert "fits model 'mlp'" in capsys.readouterr().out
    with safe_open("dpf/model.safetensors", "pt") as file:
        assert all(not file.get_tensor(name)[~mask].any() for name, mask in masks.items())
    header = Path("dpf/table.md").read_text().splitlines()[0]
    assert header == "| epoch | train loss | validation accuracy % | density | effective density |"
    record = json.loads(Path("dpf/records.jsonl").read_text())
    assert record["config"]["dynamic"]["options"]["every"] == 2 and 0 < record["metrics"]["train_epochs"] < 3

    again = [
        "train",
        *short,
        "--dynamic",
        "rigl",
        "--set",
        "every=5",
        "--density",
        "0.1",
        "--mask",
        "dpf/mask.safetensors",
        "--out",
        "rigl",
    ]
    assert run(*again) == 0
    assert panning.load_masks("rigl/mask.safetensors").n_kept == masks.n_kept
    several = [
        "train",
        *short,
        "--dynamic",
        "edst",
        "--density",
        "0.1",
        "--set",
        "n_members=2",
        "--out",
        "edst",
        "--json",
    ]
    capsys.readouterr()
    assert run(*several) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n_networks"] == 2
    found = [panning.load_masks(f"edst/mask{number}.safetensors") for number in (1, 2)]
    assert found[0] != found[1] and figures["density"] == found[0].density == found[1].density
    task = load_task(TaskSpec(model="mlp", data="digits"), 0)
    networks = [copy.deepcopy(task.problem.model) for _ in found]
    for number, (masks, network) in enumerate(zip(found, networks, strict=True), start=1):
        network.load_state_dict(load_file(f"edst/model{number}.safetensors"))
        assert not any(dict(network.named_parameters())[name][~mask].any() for name, mask in masks.items())
    effective = [masks.effective_density(networks[0], task.data.input_shape) for masks in found]
    assert figures["effective_density"] == pytest.approx(sum(effective) / 2)
    assert figures["validation_accuracy"] == evaluate_mean(networks, task.data, task.data.validation)["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dynamic", "dpf"], "dynamic needs density, or a shape like 2:4"),
        (["--density", "0.1"], "density, all_alive and shape need dynamic"),
        (["--set", "every=3"], "--set needs --dynamic"),
        (["--all-alive"], "need dynamic"),
        (["--dynamic", "dpff", "--density", "0.1"], "Did you mean 'dpf'"),
        (["--dynamic", "dpf/lenet5-fashion/short", "--density", "0.1"], "Did you mean 'dpf/lenet5-fashion_mnist/short'"),
        (["--dynamic", "dpf", "--density", "0.1", "--set", "every"], "takes NAME=VALUE"),
        (["--dynamic", "dpf", "--density", "0.1", "--set", "evry=3"], "Did you mean 'every'"),
        (["--dynamic", "dpf", "--density", "0.1", "--set", "every=[", ], "takes NAME=VALUE"),
        (["--dynamic", "dpf", "--density", "2"], "density: must be at most 1.0 (given: 2.0)"),
    ],
)  # fmt: skip
def test_train_says_what_is_wrong_with_a_movement(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--model", "mlp", "--data", "digits", "--epochs", "1", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert not Path("runs").exists()


def test_a_movement_that_cannot_be_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    short = [
        "train",
        "--model",
        "mlp",
        "--data",
        "digits",
        "--batch-size",
        "100",
        "--dynamic",
        "pat",
        "--density",
        "0.5",
    ]
    assert run(*short, "--epochs", "1", "--out", "pat") == 2
    assert "this training has one" in capsys.readouterr().err and files() == []
    assert run(*short, "--epochs", "2", "--out", "pat") == 0


def test_train_agent_and_prune_with_its_policy() -> None:
    Path("agent.yaml").write_text(
        yaml.safe_dump({
            "env": {"tasks": [CONFIG["task"]], "densities": [0.1], "seeds": [9], "n_rounds": 2},
            "ppo": {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4},
        })
    )  # fmt: skip
    assert run("train-agent", "agent.yaml", "--workers", "0", "--out", "agent") == 0
    assert {f"agent/{name}" for name in ("config.yaml", "reward.png", "table.csv", "table.md")} < set(files())
    assert run(*PRUNE, "--policy", "agent/policy.safetensors", "--out", "p") == 0
    assert panning.load_masks("p/mask.safetensors").manifest["method"] == "panning"


def test_search_prints_its_table_and_runs_again_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    rung = {"keep": 1, "recipe": SHORT}
    Path("s.yaml").write_text(yaml.safe_dump({**CONFIG, "densities": [0.1], "seeds": [0], "rungs": [rung]}))
    assert run("search", "s.yaml", "--workers", "0", "--out", "s") == 0
    first = capsys.readouterr().out
    assert "panning" in first and "dense" in first and Path("s/table.md").exists()
    assert run("search", "s.yaml", "--workers", "0", "--out", "s") == 0
    assert capsys.readouterr().out == first


def test_validate_says_what_a_file_is_and_collects_all_errors(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text(yaml.safe_dump(CONFIG))
    assert run("validate", "good.yaml") == 0
    assert "a well-formed search config" in capsys.readouterr().out
    Path("bad.yaml").write_text(yaml.safe_dump({**CONFIG, "densitis": 1, "n_samples": -1}))
    Path("worse.yaml").write_text("a: [")
    assert run("validate", "bad.yaml", "worse.yaml", "absent.yaml") == 2
    message = capsys.readouterr().err
    assert "Did you mean 'densities'" in message and "n_samples" in message
    assert "not valid YAML" in message and "No configuration file 'absent.yaml'" in message


def write_foreign_mask() -> str:
    panning.save_masks(Masks.from_tensors({"other.weight": torch.ones(2, 3)}), "foreign.safetensors")
    return "foreign.safetensors"


def bad_config(**change: Any) -> str:
    Path("bad.yaml").write_text(yaml.safe_dump({**CONFIG, **change}))
    return "bad.yaml"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([*PRUNE, "--method", "synflo"], 2, "Did you mean 'synflow'"),
        (["prune", "--model", "lenet_5", "--data", "digits", "--density", "0.1"], 2, "Did you mean 'lenet5'"),
        (["prune", "--model", "mlp", "--data", "digts", "--density", "0.1"], 2, "Did you mean 'digits'"),
        ([*PRUNE[:-1], "0"], 2, "density: must be more than 0.0 (given: 0.0)"),
        ([*PRUNE[:-1], "1.01"], 2, "density: must be at most 1.0 (given: 1.01)"),
        ([*PRUNE[:-1], "nan"], 2, "density: must be a finite number"),
        ([*PRUNE[:-1], "0.00004"], 2, "a path needs 3"),
        ([*PRUNE, "--schedule", "cubik"], 2, "Did you mean 'cubic'"),
        ([*PRUNE, "--method", "erk", "--schedule", "cubik"], 2, "Did you mean 'cubic'"),
        ([*PRUNE, "--control", "shufle"], 2, "Did you mean 'shuffle'"),
        ([*PRUNE, "--method", "magnitude", "--released"], 2, "these have: snip"),
        ([*PRUNE, "--method", "uniform_plus"], 2, "not defined for a network without one"),
        ([*PRUNE, "--method", "smart_ratio", "--density", "0.001"], 2, "The smallest density is"),
        ([*PRUNE, "--exclude", "conv*"], 2, "matches none of the prunable weights: hidden.linear1.weight"),
        ([*PRUNE, "--policy", "p", "--control", "shuffle"], 2, "control cannot go with it"),
        (["bench", "speed", "--model", "lenet_5"], 2, "Did you mean 'lenet5'"),
        ([*PRUNE, "--policy", "absent"], 2, "No policy file"),
        (["prune", "--model", "lenet5", "--data", "mnist", "--density", "0.1"], 2, "--data-root"),
        (["prune", "--model", "lenet5", "--data", "mnist", "--density", "0.1", "--data-root", "."], 2, "MNIST"),
        (["prune", "--model", "mlp", "--data", "npz:absent.npz", "--density", "0.1"], 2, "absent.npz"),
        (["prune", "--model", "no.such:thing", "--data", "digits", "--density", "0.1"], 2, "no.such"),
        ([*TRAIN, "--mask", "absent.safetensors"], 2, "absent.safetensors"),
        ([*TRAIN, "--schedule", "cosin"], 2, "schedule"),
        ([*TRAIN, "--epochs", "0"], 2, "epochs"),
        ([*TRAIN[:-1], "1e9"], 1, "training loss is"),
        (["search", "absent.yaml"], 2, "No configuration file"),
        (["train-agent", "absent.yaml"], 2, "No configuration file"),
        ([*PRUNE, "--out", "/dev/null/x"], 2, "/dev/null"),
        (["nonsense"], 2, "No such command"),
        ([*PRUNE, "--densty", "1"], 2, "No such option"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_input_gives_one_message_no_traceback_and_no_half_written_file(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err + shown.out
    left = [file for file in files() if not file.endswith(("run.json", ".lock"))]
    assert left == [], "something was written"


def test_a_mask_of_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TRAIN, "--mask", write_foreign_mask()) == 2
    assert "belongs to another network" in capsys.readouterr().err and files() == ["foreign.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselines": ["sinp"]}, "Did you mean 'snip'"),
        ({"task": {"model": "mlp", "data": "mnist"}}, "--data-root"),
        ({"task": {"model": "mlp", "data": "digits", "n_train": 5}}, "n_train"),
        ({"densities": [2]}, "densities"),
    ],
)
def test_a_wrong_search_config_is_refused_before_anything_starts(
    change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", bad_config(**change), "--out", "s") == 2
    assert message in capsys.readouterr().err and files() == ["bad.yaml"]


def test_a_folder_of_another_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PRUNE, "--out", "p") == 0
    before = {name: Path(name).read_bytes() for name in files()}
    assert run(*PRUNE, "--seed", "1", "--out", "p") == 2
    assert "differs in: seed" in capsys.readouterr().err
    assert {name: Path(name).read_bytes() for name in files()} == before


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in ("prune", "train-agent", "search", "train", "mask", "validate", "demo"):
        assert command in shown
