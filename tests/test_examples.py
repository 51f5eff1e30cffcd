"""The examples run: the scripts of docs/examples as they stand, and those of docstrings with the answers they show.

The example of a docstring imports what it uses, so that a reader can paste it.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_layers import ROOT, source_files

SCRIPTS = sorted((ROOT / "docs" / "examples").glob("*.py"))
#: Lines of examples by file.
PROMPTS = {
    path: len(re.findall(r"^\s*>>> ", (ROOT / path).read_text(), re.MULTILINE))
    for path in (Path("panning/__init__.py"), *source_files())
}
ROOMS = ("panning", "panning.envs", "panning.agents", "panning.training")
#: The example of a table stands in its module's docstring.
TABLES = {
    "PRUNERS": "panning.pruners",
    "INDICES": "panning.scoring.indices",
    "DYNAMICS": "panning.training.moving.methods",
}
FRESH = {"__name__": "__main__"}


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 3


#: Libraries of scripts that are no part of the plain package, with what they need besides.
TRAINERS = {"transformers": ("transformers", "accelerate"), "lightning": ("lightning",)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*:UserWarning", "ignore::UserWarning:lightning.*", "ignore::FutureWarning"
)
def test_a_script_is_short_runs_and_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text().splitlines()) <= 60
    for library, needed in TRAINERS.items():
        if f"\nfrom {library}" in path.read_text():
            for package in needed:
                pytest.importorskip(package)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(path), run_name="__main__")
    losses = [float(found) for found in re.findall(r"loss ([0-9.]+)", capsys.readouterr().out)]
    assert len(losses) > 2 and losses[-1] < 0.7 * losses[0]


def module_of(path: Path) -> str:
    inside = path if path.parts[0] == "panning" else Path("panning") / path
    return ".".join(inside.with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path, n in PROMPTS.items() if n], ids=module_of)
def test_an_example_gives_what_it_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "service" in path.parts:
        pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    with torch.random.fork_rng(devices=[]):
        for example in doctest.DocTestFinder().find(importlib.import_module(module_of(path)), globs=FRESH):
            runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
    assert runner.tries == PROMPTS[path], "an example stands where no reader and no test finds it"


def lacking(room: str) -> Iterator[str]:
    """Public names of a room whose docstrings show no example."""
    module = importlib.import_module(room)
    for name in module.__all__:
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isfunction(value)) and ">>> " not in (value.__doc__ or ""):
            yield name


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_have_an_example(room: str) -> None:
    assert list(lacking(room)) == []


@pytest.mark.parametrize("table", TABLES)
def test_tables_have_an_example(table: str) -> None:
    assert ">>> " in (importlib.import_module(TABLES[table]).__doc__ or "")
