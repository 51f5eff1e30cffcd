"""The training benchmark: both loops really train, in turns."""

from __future__ import annotations

from pathlib import Path

import torch

from panning.data import load_data
from panning.foundation.progress import Event
from panning.foundation.records import read_records
from panning.measure.training import PlainDataset, markdown, measure, noise_data, run_throughput
from panning.training import Recipe


def test_both_loops_are_timed_in_turns() -> None:
    heard: list[Event] = []
    found = measure("mlp", noise_data(64), Recipe(batch_size=8), n_batches=2, n_rounds=2, listen=heard.append)
    assert [event.done for event in heard] == [0, 1, 2, 3] and len(found["ratios"]) == 2
    assert min(found["ratio"], found["plain"], found["ours"]) > 0


def test_a_measurement_is_a_record_and_a_row(tmp_path: Path) -> None:
    recipe = Recipe(batch_size=8)
    records = [run_throughput("mlp", recipe, tmp_path, n_batches=2, n_rounds=1) for _ in range(2)]
    assert [r.metrics for r in read_records(tmp_path / "records.jsonl")] == [r.metrics for r in records]
    text = markdown(records)
    assert text.count("| mlp | float32 |") == 2 and text.count("panning bench training") == 1


def test_the_plain_loop_sees_the_same_pixels() -> None:
    data = load_data("digits", n_train=50)
    image, label = PlainDataset(data)[3]
    assert image.shape == data.input_shape and label == int(data.train.labels[3])
    shown, _ = data.batch(data.train, torch.tensor([3]))
    # cropped and mirrored, but the same grey levels
    levels = {round(float(value), 3) for value in shown.unique()} | {round(float(-data.mean[0] / data.std[0]), 3)}
    assert {round(float(value), 3) for value in image.unique()} <= levels
