"""The README and the pages name what there is."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import panning
from panning.cli.methods import dynamic_table, method_table
from panning.data import data_names
from panning.measure import compaction
from panning.measure import report as speed_report
from panning.measure.methods import dynamic_rows, method_rows
from panning.models import model_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_the_table_of_methods_is_the_table_of_methods() -> None:
    assert "\n".join(method_table(method_rows())) in page("methods")
    assert "\n".join(dynamic_table(dynamic_rows())) in page("methods")


def test_the_speed_page_shows_the_shipped_records() -> None:
    assert speed_report.markdown(speed_report.shipped_records("speed")).removeprefix("# Speed\n\n") in page(
        "speed-items"
    )


def test_the_page_on_compaction_shows_the_shipped_records() -> None:
    assert compaction.markdown(speed_report.shipped_records("compaction")) in page("compact")


def test_every_own_model_and_data_set_is_named() -> None:
    missing = [name for name in (*model_names(), *data_names()) if f"`{name}`" not in page("commands")]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_page_of_what_is_public_names_what_is_public() -> None:
    shown = re.findall(r"^\| \[`panning\.(\w+)`\]\[", page("reference/public"), re.MULTILINE)
    assert sorted(shown) == sorted(panning.__all__)
    assert all(f"\n::: panning.{name}\n" in page("reference/panning") for name in panning.__all__)


def test_the_reference_names_what_there_is() -> None:
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    names = [name for path in pages for name in re.findall(r"^::: ([\w.]+)$", path.read_text(), re.MULTILINE)]
    assert len(names) > 40
    for name in names:
        pkgutil.resolve_name(name)


def test_the_site_has_every_page_and_no_other() -> None:
    shown = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert sorted(shown) == sorted(path.relative_to(ROOT).as_posix() for path in there)


def test_the_readmes_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs, labels = torch.randn(30, 8), torch.arange(30) % 3
    names: dict[str, Any] = {
        "model": model, "inputs": inputs, "labels": labels, "loader": [(inputs, labels)] * 3,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3),
        "loss_function": nn.functional.cross_entropy,
    }  # fmt: skip
    code = README.split("```python\n")[1].split("```")[0]
    exec(code.replace("density=0.02", "density=0.2"), names)
    for name, parameter in model.named_parameters():
        if name in names["masks"]:
            assert not parameter[~names["masks"][name]].any()


def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for code in re.findall(r"```python\n(.*?)```", page("quickstart"), re.DOTALL):
            exec(code, names)
    shown = panning.load_masks(tmp_path / "mask.safetensors")
    assert f"# {shown}\n" in page("quickstart")
    assert names["masks"].density == pytest.approx(0.05, abs=1e-4)
