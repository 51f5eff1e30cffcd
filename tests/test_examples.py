"""The examples of docs/examples run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parent.parent / "docs" / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_runs_and_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text().splitlines()) <= 60
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(path), run_name="__main__")
    losses = [float(found) for found in re.findall(r"loss ([0-9.]+)", capsys.readouterr().out)]
    assert len(losses) > 2 and losses[-1] < 0.7 * losses[0]
