"""The training benchmark: both loops really train, in turns."""

from __future__ import annotations

import pytest
import torch
import training_speed as speed
from test_layers import ROOT

from panning.data import load_data
from panning.foundation.progress import Event
from panning.foundation.records import read_records
from panning.training import Recipe

SCRIPT = ROOT / "docs" / "measure" / "training_speed.py"


def test_both_loops_are_timed_in_turns() -> None:
    heard: list[Event] = []
    found = speed.measure(
        "mlp", speed.noise_data(64), Recipe(batch_size=8), n_batches=2, n_rounds=2, listen=heard.append
    )
    assert [event.done for event in heard] == [0, 1, 2, 3] and len(found["ratios"]) == 2
    assert min(found["ratio"], found["plain"], found["ours"]) > 0


def test_the_script_prints_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--model", "mlp", "--rounds", "1", "--batches", "1"])
    assert capsys.readouterr().out.count("| mlp | bfloat16 |") == 1


def test_the_page_on_the_benchmark_shows_what_was_measured() -> None:
    records = read_records(SCRIPT.with_suffix(".jsonl"))
    assert speed.markdown(records) in (ROOT / "docs" / "benchmark.md").read_text()


def test_the_plain_loop_sees_the_same_pixels() -> None:
    data = load_data("digits", n_train=50)
    image, label = speed.PlainDataset(data)[3]
    assert image.shape == data.input_shape and label == int(data.train.labels[3])
    shown, _ = data.batch(data.train, torch.tensor([3]))
    # cropped and mirrored, but the same grey levels
    levels = {round(float(value), 3) for value in shown.unique()} | {round(float(-data.mean[0] / data.std[0]), 3)}
    assert {round(float(value), 3) for value in image.unique()} <= levels
