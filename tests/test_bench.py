"""The speed benchmark: every item in a real process, going on after an interruption, and the report. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from panning.cli import bench
from panning.envs import PanningEnv
from panning.foundation.errors import ConfigError, JobError, UnknownNameError
from panning.foundation.records import RecordStore, RunRecord, content_key, read_records
from panning.masks.file import save_masks
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks
from panning.measure import compaction
from panning.measure import report as speed_report
from panning.measure import run as speed_run
from panning.measure.items import ITEMS
from panning.measure.report import AUTHORS, PASS, STEP
from panning.measure.workbench import Workbench
from panning.models import build_model
from panning.pruners import PRUNERS

ALIVE, SNIP = "alive test", "SNIP"
ROUND, ROUND_SECOND_ORDER = "environment round, first order", "environment round, second order"
TINY = ["--model", "mlp", "--threads", "1", "--samples", "6", "--budget-s", "0", "--out", "b"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def panning_bench(*arguments: str, what: str = "speed") -> None:
    """Run the command as the command line has it, errors and all."""
    app = typer.Typer()
    app.add_typer(bench.app)
    app(args=["bench", what, *arguments], standalone_mode=False)


def test_every_item_is_measured_once_and_an_interrupted_benchmark_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = speed_run.cases(["mlp"], [1], 6)
    config = case.config(ALIVE)
    metrics = {"seconds": 42.0, "ratio": 4.2, "ratio_low": 4.0, "ratio_high": 5.0, "n": 3, "error": None}
    RecordStore("b/records.jsonl").append(RunRecord(content_key(config), "speed", config, metrics))
    panning_bench(*TINY, "--json")
    rows = {row["item"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == set(case.items(None)) and {f"method {name}" for name in PRUNERS} < set(rows)
    assert set(ITEMS) - set(rows) == {
        name for name in ITEMS if name.startswith("episode: ")
    }  # no agent was trained on it
    # an MLP has no convolution that Uniform+ could keep
    assert [name for name, row in rows.items() if row["error"] is not None] == ["method uniform_plus"]
    assert rows["method uniform_plus"]["error"].startswith("DensityError: Uniform+")
    assert rows[ALIVE]["seconds"] == 42.0  # it was there before
    done = [row for row in rows.values() if row["error"] is None]
    assert all(row["seconds"] > 0 and row["ratio_low"] <= row["ratio_high"] and 1 <= row["n"] <= 3 for row in done)
    agents = rows["agent's round"]
    assert agents["rival"] == AUTHORS and agents["times_rival"] > 0 and agents["clock"] == "cpu"
    synflow = rows["method synflow"]
    assert synflow["n_rounds"] == 100 and synflow["total_passes"] == pytest.approx(100 * synflow["ratio"])

    def no_process(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr(speed_run.subprocess, "Popen", no_process)
    before = Path("b/records.jsonl").read_bytes()
    panning_bench(*TINY)
    assert Path("b/records.jsonl").read_bytes() == before and len(read_records("b/records.jsonl")) == len(rows)
    printed = capsys.readouterr().out
    assert "method synflow" in printed
    table = Path("b/table.md").read_text()
    assert table == speed_report.markdown(read_records("b/records.jsonl")) and "Commit" in table
    with pytest.raises(ConfigError, match="budget_s"):
        panning_bench(*TINY, "--budget-s", "1")


@pytest.mark.parametrize("item", [ROUND, ROUND_SECOND_ORDER])
def test_an_environment_round_is_a_step_of_the_real_environment(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = []
    step = PanningEnv.step

    def spy(self: PanningEnv, action: Any) -> Any:
        found = step(self, action)
        weights = self.state.last_action.weights if self.state.last_action else {}
        stepped.append((self.state.density, set(weights), found[2], self.observation_space.contains(found[0])))
        return found

    monkeypatch.setattr(PanningEnv, "step", spy)
    bench = Workbench.of("mlp", (1, 8, 8), 10, 6)
    run = ITEMS[item].prepare(bench)
    assert len(stepped) == 1
    run()
    indices = {"magnitude", "snip", "synflow"} | ({"grasp"} if item == ROUND_SECOND_ORDER else set())
    assert stepped == [(pytest.approx(density, rel=1e-3), indices, False, True) for density in (0.2, 0.1)]


def test_an_item_that_kills_its_process_is_recorded_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, """echo '{"ready": true}'; kill -9 $$""")
    records = speed_run.run_speed(speed_run.cases(["mlp"], [1]), Path("b"), "snip")
    assert [record.config["item"] for record in records] == [name for name in ITEMS if "snip" in name.lower()]
    assert all("code -9" in record.metrics["error"] for record in records)
    assert len(speed_report.failures(records)) == len(records)


def test_a_process_that_never_gets_ready_is_a_job_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo 'no torch here' >&2; exit 3")
    with pytest.raises(JobError, match="code 3: no torch here"):
        speed_run.run_speed(speed_run.cases(["mlp"], [1]), Path("b"), STEP)
    assert not Path("b/records.jsonl").exists()


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script take the place of the measuring process."""
    path = folder / "measure"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(speed_run.sys, "executable", str(path))


def record(item: str, threads: int = 1, model: str = "lenet5", n_samples: int = 100, **metrics: Any) -> RunRecord:
    config = {"model": model, "n_samples": n_samples, "threads": threads, "item": item}
    facts = {
        "method": None, "n_rounds": 1, "reference": PASS, "error": None, "n": 3, "ratio_low": 0.9, "ratio_high": 9.0,
    }  # fmt: skip
    return RunRecord(f"{model}/{n_samples}/{threads}/{item}", "speed", config, {**facts, **metrics})


def test_the_report_computes_ratios_totals_and_costs() -> None:
    records = [
        record(STEP, seconds=0.002, ratio=1.1, peak_bytes=10e6),
        record(ROUND, seconds=0.004, ratio=2.0, peak_bytes=25e6, process_peak_bytes=300e6),
        record("method snip", seconds=0.003, ratio=1.5, method="snip"),
        record("method synflow", seconds=0.001, ratio=0.5, method="synflow", n_rounds=100),
        record("method synflow", threads=2, seconds=0.001, ratio=0.7, method="synflow", n_rounds=100),
        record("method grasp", model="vgg19", seconds=9.0, ratio=3.5, method="grasp"),
        RunRecord("other", "train", {}, {}),
    ]
    found = {(row["threads"], row["item"]): row for row in speed_report.rows(records)}
    assert found[1, ROUND]["memory_ratio"] == 2.5 and found[1, ROUND]["total_passes"] is None
    assert found[1, "method snip"]["memory_ratio"] is None
    assert speed_report.method_costs(records) == {
        "snip": {"lenet5": 1.5}, "synflow": {"lenet5": 50.0}, "grasp": {"vgg19": 3.5},
    }  # fmt: skip
    text = speed_report.markdown(records)
    assert "| lenet5 | 100 | 1 | method synflow | 1 | - | 0.5 | pass | 0.9 | 9 | - | 3 | - | - | - | 100 | 50 |" in text
    assert "Failed" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet6"], "Did you mean 'lenet5'"),
        (["--model", "torchvision:resnet5"], "Unknown model"),
        (["--model", "mlp", "--item", "snips"], "No item has 'snips'.*training step"),
    ],
)
def test_wrong_names_are_answered_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises((UnknownNameError, ConfigError), match=message) as caught:
        panning_bench(*arguments)
    assert caught.value.exit_code == 2 and not Path("runs").exists()


def mlp_mask(**manifest: Any) -> Path:
    """A mask file of the MLP that empties all but four units of its first layer."""
    layout = prunable_layout(build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=0))
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    masks[layout.names[0]][4:] = False
    path = Path("mask.safetensors")
    save_masks(Masks.from_tensors(masks, {"method": "by hand", "all_alive": True, **manifest}), path)
    return path


def test_compaction_is_measured_dense_against_compact_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mlp_mask(input_shape=[1, 8, 8], n_classes=10)
    arguments = [str(path), "--model", "mlp", "--batch-size", "4", "--budget-s", "0", "--out", "c"]
    panning_bench(*arguments, "--json", what="compaction")
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["method"], row["threads"], row["n"]) == ("by hand + all-alive", 1, 3)
    dense, small = row["dense"], row["compact"]
    n_hidden = 256
    saved = (n_hidden - 4) * (64 + 128)  # weights into and out of the units that are gone
    assert dense["multiply_adds"] - small["multiply_adds"] == saved
    assert dense["n_parameters"] - small["n_parameters"] == saved + n_hidden - 4
    assert all(figures["step_ms"] > 0 and figures["inference_ms"] > 0 for figures in (dense, small))
    table = Path("c/table.md").read_text()
    assert "by hand + all-alive" in table

    monkeypatch.setattr(compaction.report, "times", None)  # nothing is left to measure
    panning_bench(*arguments, what="compaction")


def test_a_mask_that_does_not_say_its_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not say its input shape"):
        panning_bench(str(mlp_mask()), "--model", "mlp", what="compaction")
