"""Networks of timm by name, trained weights to start from, and factories for configs on the local command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import panning
from panning.cli import main
from panning.compare.grid import GridConfig
from panning.foundation.errors import ConfigError, ModelError, UnknownNameError
from panning.foundation.records import read_records
from panning.models import MODELS, build_model
from panning.models.weights import load_weights
from panning.tasks import DataSource, TaskSpec

DIGITS = (1, 8, 8)
GREY = (1, 28, 28)


def run(command: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert (ended.value.code or 0) == status


def record(folder: Path) -> dict[str, Any]:
    (line,) = (folder / "records.jsonl").read_text().splitlines()
    return json.loads(line)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_networks", None)


# --- timm ---


def test_a_network_of_timm_by_name_is_timms_for_these_inputs() -> None:
    timm = pytest.importorskip("timm")
    before = torch.get_rng_state()
    model = build_model("timm:resnet10t", input_shape=(1, 32, 32), n_classes=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(model) is type(timm.create_model("resnet10t")) and model.conv1[0].in_channels == 1
    again = build_model("timm:resnet10t", input_shape=(1, 32, 32), n_classes=5, seed=3)
    other = build_model("timm:resnet10t", input_shape=(1, 32, 32), n_classes=5, seed=4)
    assert torch.equal(model.conv1[0].weight, again.conv1[0].weight)
    assert not torch.equal(model.conv1[0].weight, other.conv1[0].weight)
    # One that is made for a size of image is made for this one.
    vit = build_model("timm:test_vit", input_shape=(3, 48, 48), n_classes=5, seed=0)
    assert tuple(vit.patch_embed.img_size) == (48, 48)


@pytest.mark.parametrize(
    ("name", "shape", "error", "said"),
    [
        ("timm:resnet10", GREY, UnknownNameError, "Did you mean 'resnet1"),
        ("timm:hf-hub:someone/resnet", GREY, UnknownNameError, "Unknown model 'timm:hf-hub:someone/resnet'"),
        ("timm:local-dir:/tmp", GREY, UnknownNameError, "Unknown model"),
        ("timm:", GREY, UnknownNameError, "Unknown model"),
        ("timm:resnet10t", (5,), ModelError, "takes images"),
        ("timm:test_vit", (3, 50, 50), ModelError, "50"),
        ("keras:resnet", GREY, ModelError, "local command line alone"),
    ],
)
def test_what_timm_does_not_have_or_cannot_make_is_a_sentence(
    name: str, shape: tuple[int, ...], error: type[Exception], said: str
) -> None:
    pytest.importorskip("timm")
    with pytest.raises(error, match=said):
        build_model(name, input_shape=shape, n_classes=3, seed=0)


def test_configs_name_networks_of_timm() -> None:
    task = {"task": {"model": "timm:resnet10t", "data": "fashion_mnist"}, "recipe": {"epochs": 1}}
    snip = [{"method": "snip", "control": control} for control in ("shuffle_alive", "reinitialise")]
    grid = GridConfig.model_validate(
        {"name": "g", "tasks": [task], "densities": [0.1], "seeds": [0], "methods": ["snip", "erk", *snip]}
    )
    assert grid.tasks[0].task.model == "timm:resnet10t"


# --- weights ---


def trained() -> nn.Module:
    """An MLP whose weights are not those of any seed."""
    model = build_model("mlp", input_shape=DIGITS, n_classes=10, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def fresh() -> nn.Module:
    return build_model("mlp", input_shape=DIGITS, n_classes=10, seed=5)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "checkpoint", "old"])
def test_weights_of_every_form_are_put_in(form: str) -> None:
    state = trained().state_dict()
    if form == "safetensors":
        save_file(state, "weights")
    else:
        given: Any = {"checkpoint": {"state_dict": state, "epoch": 3}}.get(form, state)
        if form == "wrapped":
            given = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
        torch.save(given, "weights", _use_new_zipfile_serialization=form != "old")
    model = fresh()
    load_weights(model, "weights")
    assert_same(model, trained())


def test_a_tied_tensor_may_stand_under_one_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.other.weight = self.one.weight

    model = Tied()
    state = {name: torch.ones_like(t) for name, t in model.state_dict().items() if name != "other.weight"}
    save_file(state, "weights")
    load_weights(model, "weights")
    assert bool((model.other.weight == 1).all())


def changed(**other: Tensor | None) -> dict[str, Tensor]:
    state = {**trained().state_dict(), **{name.replace("__", "."): tensor for name, tensor in other.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (changed(classifier__bias=None), r"1 missing: classifier\.bias"),
        (changed(extra=torch.zeros(2)), "1 unknown to the network: extra"),
        (changed(classifier__bias=torch.zeros(7)), r"of another shape or kind: classifier\.bias \(7,\) for \(10,\)"),
        (changed(classifier__bias=torch.zeros(10, dtype=torch.int64)), r"kind: classifier\.bias"),
        ({"a": torch.zeros(1)}, r"6 missing: .*, \.\.\.; 1 unknown"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(state: dict[str, Tensor], said: str) -> None:
    save_file(state, "weights")
    model = fresh()
    with pytest.raises(ModelError, match=f"weights do not fit this network .*{said}.*as many classes"):
        load_weights(model, "weights")
    assert_same(model, fresh())


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("it-ran"),))


@pytest.mark.parametrize(
    "content", [b"", b"PK nothing", b"\x80\x02nothing", {"a": Runs()}, {"a": 3}, [1], {"a": bytearray(9)}]
)
def test_a_file_without_plain_weights_is_refused_and_runs_nothing(content: Any) -> None:
    Path("weights").write_bytes(content) if isinstance(content, bytes) else torch.save(content, "weights")
    with pytest.raises(ModelError, match="No weights can be read from weights: .*safetensors file, or a state_dict"):
        load_weights(fresh(), "weights")
    with pytest.raises(ModelError, match="No such file"):
        load_weights(fresh(), "nowhere")
    assert not Path("it-ran").exists()


def test_prune_and_train_start_from_weights_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(trained().state_dict(), "weights.pth")
    run("prune --model mlp --data digits --density 0.1 --method magnitude --weights weights.pth --out made")
    masks = panning.load_masks("made/mask.safetensors")
    known = panning.prune(trained(), density=0.1, method="magnitude", input_shape=DIGITS)
    assert masks == known and masks.manifest["model"].startswith("own:mlp-")
    assert masks.manifest["weights"] == record(Path("made"))["config"]["weights"]
    capsys.readouterr()
    train = "train --model mlp --data digits --mask made/mask.safetensors --epochs 1 --learning-rate 1e-9"
    run(f"{train} --weights weights.pth --out trained")
    assert "made for other weights" not in capsys.readouterr().err
    kept = masks["hidden.linear2.weight"]
    left = fresh()
    load_weights(left, "trained/model.safetensors")
    torch.testing.assert_close(
        left.hidden.linear2.weight[kept], trained().hidden.linear2.weight[kept], atol=1e-5, rtol=0
    )
    assert record(Path("trained"))["config"]["weights"] == masks.manifest["weights"]
    run(f"{train} --out other")
    assert "note: the mask was made for other weights" in capsys.readouterr().err
    assert "weights" not in record(Path("other"))["config"]


# --- configs with a network of the command line ---

FACTORIES = """
from torch import nn

def make(input_shape, n_classes, width=16):
    size = 1
    for n in input_shape: size *= n
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, n_classes))
"""
TASK = {"model": "mlp", "data": "digits", "n_train": 60}
SHORT = {"epochs": 1, "batch_size": 20}
EPISODES = {"tasks": [TASK], "densities": [0.2], "n_rounds": 2, "seeds": [100]}
PPO = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "bench": {
        "name": "g", "tasks": [{"task": TASK, "recipe": SHORT}], "densities": [0.2], "seeds": [0],
        "methods": ["magnitude", "erk", *({"method": "magnitude", "control": c} for c in ("shuffle_alive", "reinitialise"))],
    },
    "train-agent": {"env": EPISODES, "ppo": PPO},
    "search": {
        "name": "s", "task": TASK, "densities": [0.2], "seeds": [0], "n_samples": 1, "baselines": ["magnitude"],
        "agent": {"n_rounds": 2, "seeds": [100], "ppo": PPO}, "rungs": [{"recipe": SHORT, "keep": 1}], "recipe": SHORT,
    },
}  # fmt: skip


def models_of(folder: Path) -> set[str]:
    """The models that a run's records name."""
    tasks = [found.config["task"] for path in folder.rglob("records.jsonl") for found in read_records(path)]
    if (run_file := folder / "run.json").exists():
        said = json.loads(run_file.read_text())
        tasks += said.get("env", {}).get("tasks", [])
    return {task["model"] for task in tasks}


@pytest.mark.parametrize("command", CONFIGS)
def test_a_factory_of_the_command_line_takes_the_place_of_a_configs_model(command: str) -> None:
    Path("my_networks.py").write_text(FACTORIES)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIGS[command]))
    asked = f"{command} config.yaml --workers 0 --model my_networks:make --out out"
    run(asked)
    (model,) = models_of(Path("out"))
    assert model.startswith("own:my_networks:make-")
    run(asked)  # goes on, for nothing has changed
    sys.modules.pop("my_networks")
    Path("my_networks.py").write_text(FACTORIES.replace("width=16", "width=24"))
    run(asked, status=0 if command == "bench" else 2)  # another network: other cells, or another run
    assert len(models_of(Path("out"))) == (2 if command == "bench" else 1)


@pytest.mark.parametrize("command", ["bench", "search"])
def test_weights_of_the_command_line_are_where_a_config_starts(command: str) -> None:
    save_file(trained().state_dict(), "weights.safetensors")
    Path("config.yaml").write_text(yaml.safe_dump(CONFIGS[command]))
    run(f"{command} config.yaml --workers 0 --weights weights.safetensors --out out")
    (model,) = models_of(Path("out"))
    task = TaskSpec.model_validate(TASK).with_network(DataSource(), weights=Path("weights.safetensors"))
    assert model == str(task.model) and model.startswith("own:mlp-")


def test_a_config_cannot_name_a_factory(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_networks.py").write_text("open('it-ran', 'w')\n" + FACTORIES)
    for command, config in CONFIGS.items():
        for name in ("my_networks:make", "own:my_networks:make-0123456789ab"):
            Path("config.yaml").write_text(yaml.safe_dump(config).replace("model: mlp", f"model: {name}"))
            run(f"{command} config.yaml --workers 0 --out out", status=2)
            assert name in capsys.readouterr().err
    assert not Path("it-ran").exists()


def test_one_model_cannot_take_the_place_of_several() -> None:
    tasks = [{"task": {**TASK, "model": name}, "recipe": SHORT} for name in ("mlp", "lenet300_100")]
    grid = GridConfig.model_validate({**CONFIGS["bench"], "tasks": tasks})
    with pytest.raises(ConfigError, match="several models for the same data"):
        grid.with_network("resnet20", None)
    assert [task.task.model for task in grid.with_network(None, None).tasks] == ["mlp", "lenet300_100"]
    assert "mlp" in MODELS
