"""Sinks of the event stream: what each of them holds in the end, and that none of them changes a run."""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from console import run
from torch import nn

import panning
from panning.cli import output
from panning.foundation import tracking as module
from panning.foundation.errors import MissingExtraError, OutputError
from panning.foundation.progress import Event
from panning.foundation.records import read_records
from panning.foundation.tracking import SINKS, tracking

EVENTS = [
    Event("training the agent", 0, 2),
    Event("training the agent", 1, 2, "rollout", {"reward": -1.5, "episodes": 4.0, "advantage": math.nan}),
    Event("training the agent", 2, 2, "rollout", {"reward": -0.5, "episodes": 4.0, "advantage": 0.25}),
    Event("rung 1: short trainings", 0, 1),
    Event(
        "rung 1: short trainings", 1, 1, "job", {"key": "ab", "error": None, "seed": 3, "accuracy": 0.75, "ok": True}
    ),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(events: list[Event] = EVENTS, **sinks: Any) -> None:
    with tracking(**sinks) as tell:
        for event in events:
            tell(event)


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(folder)
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_json_lines_hold_every_event_and_go_on(tmp_path: Path) -> None:
    told(EVENTS[:2], log="logs/a.jsonl")
    told(EVENTS[2:], log="logs/a.jsonl")
    lines = [json.loads(line) for line in Path("logs/a.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["done"], line["total"], line["kind"]) for line in lines] == [
        (event.stage, event.done, event.total, event.kind) for event in EVENTS
    ]
    assert lines[1]["facts"] == {"reward": -1.5, "episodes": 4.0, "advantage": None}
    assert lines[4]["facts"] == {"key": "ab", "error": None, "seed": 3, "accuracy": 0.75, "ok": True}
    assert all(line["time"] > 1.5e9 for line in lines)


def test_tensorboard_holds_the_figures_of_each_stage() -> None:
    told(tensorboard="tb")
    assert scalars("tb") == {
        "training the agent/reward": [(1, -1.5), (2, -0.5)],
        "training the agent/episodes": [(1, 4.0), (2, 4.0)],
        "training the agent/advantage": [(2, 0.25)],
        "rung 1: short trainings/accuracy": [(1, 0.75)],
    }


def test_mlflow_holds_figures_and_config_and_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the one store that mlflow-skinny has all parts of
    config = {"seeds": [0, 1], "agent": {"ppo": {"n_rollouts": 2}}}
    told(EVENTS[:2], mlflow="runs/mlflow/pruning", name="mine", config=config)
    told(EVENTS[2:], mlflow="runs/mlflow/pruning", name="mine", config=config)
    told(EVENTS[:1], mlflow="runs/mlflow/pruning", name="mine", config={})
    client = MlflowClient(tracking_uri="runs/mlflow")
    experiment = client.get_experiment_by_name("pruning")
    assert experiment is not None
    other, run = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == other.info.run_name == "mine" and run.info.status == "FINISHED"
    assert run.data.params == {"seeds": "[0, 1]", "agent.ppo.n_rollouts": "2"} and other.data.params == {}
    history = client.get_metric_history(run.info.run_id, "training the agent/reward")
    assert [(one.step, one.value) for one in history] == [(1, -1.5), (2, -0.5)]
    assert run.data.metrics["rung 1 short trainings/accuracy"] == 0.75


def test_wandb_has_a_run_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    told(wandb="pruning", name="mine", config={"seed": 1}, folder="runs/x")
    wandb.teardown()  # its service writes the file, and ends here
    (file,) = Path("runs/x/wandb").glob("offline-run-*/*.wandb")
    written = file.read_bytes()
    assert b"rung 1: short trainings/accuracy" in written and b"training the agent/reward" in written


def test_wandb_is_told_of_each_stage_over_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    logged: list[dict[str, Any]] = []

    class Spy:
        def __init__(self, **given: Any) -> None:
            self.given, self.ended = given, None

        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, values: dict[str, Any]) -> None:
            logged.append(values)

        def finish(self, exit_code: int) -> None:
            self.ended = exit_code

    spies: list[Spy] = []
    monkeypatch.setattr(wandb, "init", lambda **given: spies.append(Spy(**given)) or spies[-1])
    told(wandb="pruning", name="mine", config={"seed": 1}, folder="runs/x")
    with pytest.raises(KeyError), tracking(wandb="pruning") as tell:
        tell(EVENTS[1])
        raise KeyError
    first, second = spies
    assert (first.given["project"], first.given["name"], first.given["config"]) == ("pruning", "mine", {"seed": 1})
    assert first.given["dir"] == "runs/x" and first.given["resume"] == "allow" and first.ended == 0
    assert second.given["id"] is second.given["resume"] is None and second.ended == 1
    assert logged[2] == {
        "training the agent/done": 2, "training the agent/reward": -0.5, "training the agent/episodes": 4.0,
        "training the agent/advantage": 0.25,
    }  # fmt: skip


def test_two_runs_have_two_keys_and_one_that_goes_on_has_one() -> None:
    first = module.Run("a", {"seed": 0})
    assert first.key == module.Run("a", {"seed": 0}, Path("elsewhere")).key
    assert len({first.key, module.Run("b", {"seed": 0}).key, module.Run("a", {"seed": 1}).key}) == 3


class Failing:
    """A sink whose disk is full after the first event."""

    def __init__(self, where: str, run: Any) -> None:
        self.heard: list[Event] = []

    def hear(self, event: Event) -> None:
        self.heard.append(event)
        if len(self.heard) > 1:
            raise OSError(28, "No space left on device")

    def close(self, finished: bool) -> None:
        raise AssertionError("it failed, and is not asked any more")


def test_a_sink_that_fails_warns_once_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "tensorboard", Failing)
    with pytest.warns(panning.PanningWarning) as caught:
        told(tensorboard="full", log="a.jsonl")
    (warning,) = caught
    assert str(warning.message) == (
        "tensorboard cannot write to 'full' any more: [Errno 28] No space left on device. The run goes on without it."
    )
    assert len(Path("a.jsonl").read_text().splitlines()) == len(EVENTS)


def test_a_sink_that_cannot_be_opened_is_one_sentence() -> None:
    Path("file").touch()
    with pytest.raises(OutputError, match="log cannot write to 'file/a': .*"), tracking(log="file/a"):
        pass
    with pytest.raises(OutputError, match="takes URI/EXPERIMENT"), tracking(mlflow="pruning"):
        pass


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs {package}.*pip install 'panning\[integrations\]'"):
        told(**{package: "a/b"})


def test_a_mask_is_the_same_whoever_listens(tiny_mlp: nn.Module) -> None:
    heard: list[Event] = []
    plain = panning.prune(tiny_mlp, density=0.5, n_rounds=7, input_shape=(4,))
    with tracking(tensorboard="tb", log="a.jsonl") as tell:
        masks = panning.prune(
            tiny_mlp,
            density=0.5,
            n_rounds=7,
            input_shape=(4,),
            on_round=lambda event: (heard.append(event), tell(event)),
        )
    assert masks == plain and masks.manifest == plain.manifest
    assert [(event.kind, event.done, event.total) for event in heard] == [("round", done, 7) for done in range(1, 8)]
    assert heard[-1].facts["density"] == plain.density
    assert len(Path("a.jsonl").read_text().splitlines()) == 7 and set(scalars("tb")) == {
        f"pruning/{name}" for name in ("density", "effective_density", "dead")
    }


def test_what_a_listener_raises_ends_the_work(tiny_mlp: nn.Module) -> None:
    def stop(event: Event) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    before = {name: tensor.clone() for name, tensor in tiny_mlp.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        panning.prune(tiny_mlp, density=0.5, n_rounds=7, input_shape=(4,), on_round=stop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_mlp.state_dict().items())


def test_no_warning_of_a_library_reaches_the_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told(tensorboard="tb")


# --- the commands ---


GRID = {
    "name": "small", "densities": [0.1], "seeds": [0],
    "tasks": [{"task": {"model": "mlp", "data": "digits", "n_train": 200}, "recipe": {"epochs": 1, "batch_size": 50}}],
    "methods": [
        "erk", "snip", {"method": "snip", "control": "shuffle_alive"}, {"method": "snip", "control": "reinitialise"},
    ],
}  # fmt: skip
TRAIN = ["train", "--model", "mlp", "--data", "digits", "--epochs", "2", "--batch-size", "100", "--out", "t"]


def test_train_tells_its_sinks_and_trains_the_same() -> None:
    assert run(*TRAIN) == 0
    plain = Path("t/model.safetensors").read_bytes()
    assert run(*TRAIN[:-1], "u", "--log", "a.jsonl", "--tensorboard", "tb") == 0
    assert Path("u/model.safetensors").read_bytes() == plain
    history = json.loads(Path("u/records.jsonl").read_text())["metrics"]["history"]
    assert [round(value, 4) for _, value in scalars("tb")["training/accuracy"]] == [
        round(entry["accuracy"], 4) for entry in history
    ]
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [line["facts"] for line in lines if line["kind"] == "epoch"] == history


def test_a_grid_tells_each_cell(capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.yaml").write_text(yaml.safe_dump(GRID))
    assert run("bench", "grid.yaml", "--workers", "0", "--out", "g", "--log", "a.jsonl") == 0
    events = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    told = [event["facts"] for event in events if event["kind"] == "job"]
    cells = read_records("g/records.jsonl")
    assert {one["key"]: one["test_accuracy"] for one in told} == {
        cell.key: cell.metrics["test_accuracy"] for cell in cells
    }
    assert {"dense", "SNIP", "SNIP (of other weights)"} < {one["item"] for one in told}


def test_a_sink_that_is_not_there_ends_a_command_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(*TRAIN, "--wandb", "pruning") == 2
    assert "pip install 'panning[integrations]'" in capsys.readouterr().err
    assert not Path("t").exists()


def test_a_warning_of_ours_is_a_line_for_who_types() -> None:
    plain = warnings.formatwarning
    with output.of_one_command():
        said = warnings.formatwarning("a [red]sink[/] fails", panning.PanningWarning, "some/file.py", 3)
        other = warnings.formatwarning("old", DeprecationWarning, "some/file.py", 3)
    assert said == "warning: a [red]sink[/] fails\n" and other == plain("old", DeprecationWarning, "some/file.py", 3)
    assert warnings.formatwarning is plain
