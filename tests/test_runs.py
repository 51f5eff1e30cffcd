"""Folders of runs: their names, the index of masks, the list, and what may be deleted of a search."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from console import run
from test_search import CONFIG, SHORT

import panning
from panning.foundation.errors import MaskError, OutputError
from panning.foundation.files import sole_writer
from panning.foundation.records import RunRecord, read_records
from panning.jobs import runs
from panning.jobs.runs import RunFolder, needless_masks, run_folder, run_folders, write_index

PRUNE = ["prune", "--model", "mlp", "--data", "digits", "--density", "0.05"]
SEARCH = {**CONFIG, "densities": [0.1], "seeds": [0], "rungs": [{"keep": 1, "recipe": SHORT}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search, a mask and a training have ended."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        Path("tiny.yaml").write_text(yaml.safe_dump(SEARCH))
        assert run("search", "tiny.yaml", "--workers", "0") == 0
        assert run(*PRUNE, "--method", "snip") == 0
        assert run("train", "--model", "mlp", "--data", "digits", "--epochs", "1", "--batch-size", "100") == 0
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def test_folders_are_named_by_what_one_knows_of_a_run() -> None:
    names = sorted(path.name for path in Path("runs").iterdir())
    assert [name.rpartition("-")[0] or name for name in names] == [
        "prune-mlp-digits-snip-d0.05-s0", "tiny", "train-mlp-digits-dense-s0",
    ]  # fmt: skip
    assert run(*PRUNE, "--method", "snip") == 0  # again into its own folder
    assert sorted(path.name for path in Path("runs").iterdir()) == names


def test_a_name_has_no_path_in_it_and_is_short() -> None:
    given = ("mine.net:make", "npz:../../secret/" + "x" * 200 + ".npz", "", "d0.1")
    name = run_folder("prune", {"a": 1}, *given).name
    assert name.startswith("prune-mine.net_make-") and name.count("/") == 0 and ".." not in name and len(name) < 100
    assert run_folder("prune", {"a": 2}, *given).name != name


def test_the_index_names_every_mask(home: Path) -> None:
    with open("runs/tiny/masks/index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = {r.key: r for r in read_records("runs/tiny/records.jsonl") if r.kind == "prune"}
    assert {row["file"] for row in rows} == {path.name for path in Path("runs/tiny/masks").glob("*.safetensors")}
    assert len(rows) == len(records) and {"SNIP", "SNIP + all-alive"} < {row["method"] for row in rows}
    for row in rows:
        masks = panning.load_masks(Path("runs/tiny/masks") / row["file"])
        assert masks.n_kept == int(row["n_kept"]) and masks.manifest["seed"] == int(row["seed"]) == 0
        assert float(row["effective_density"]) == pytest.approx(masks.manifest["effective_density"])


def test_an_index_is_made_of_what_lies_in_the_folder_alone(tmp_path: Path) -> None:
    facts = {"error": None, "effective_density": 0.1, "n_kept": 3}
    by = {"by": {"method": "of_no_package_here"}, "all_alive": False, "density": 0.1, "seed": 0}
    records = [RunRecord("ab12", "prune", by, facts), RunRecord("../../ab", "prune", by, facts)]
    write_index(tmp_path, records)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "ab12.safetensors").touch()
    write_index(tmp_path, records)
    lines = (tmp_path / "masks" / "index.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("ab12.safetensors,") and "of_no_package_here" in lines[1]


def test_runs_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("runs", "list", "--json") == 0
    rows = {row["run"].rpartition("-")[0] or row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: (row["command"], row["ended"]) for name, row in rows.items()} == {
        "tiny": ("search", "yes"), "prune-mlp-digits-snip-d0.05-s0": ("prune", "yes"),
        "train-mlp-digits-dense-s0": ("train", "yes"),
    }  # fmt: skip
    assert rows["prune-mlp-digits-snip-d0.05-s0"]["masks"] == 1 and rows["train-mlp-digits-dense-s0"]["masks"] == 0
    assert run("runs", "list") == 0
    said = capsys.readouterr()
    assert "tiny" in said.out and f"Runs in {Path('runs').resolve()}; of another folder:" in said.err
    (mask,) = Path("runs").glob("prune-*")
    assert run("runs", "list", str(mask)) == 0
    assert f"No run in {mask.resolve()}: no folder in it has a run.json. It is a run itself:" in capsys.readouterr().err
    assert run("runs", "show", "runs/tiny") == 0
    shown = capsys.readouterr().out
    assert "command: search" in shown and "records.jsonl" in shown and "# tiny" in shown
    assert run("runs", "list", str(tmp_path / "absent")) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert run("runs", "show", str(tmp_path)) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("[1]")
    with pytest.raises(OutputError, match="no run.json that can be read"):
        run_folders(tmp_path)


def copied(home: Path, to: Path) -> RunFolder:
    """The search in a folder where it may be spoiled."""
    shutil.copytree(home / "runs" / "tiny", to)
    return RunFolder.at(to)


def test_only_masks_that_the_table_does_not_name_may_go(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = copied(home, tmp_path / "s")
    final = {(json.dumps(r.config["by"]), r.config["all_alive"]) for r in made.records if r.kind == "cell"}
    needless = needless_masks(made)
    kept = {path.stem for path in (made.path / "masks").glob("*.safetensors")} - {path.stem for path in needless}
    prunes = {r.key: (json.dumps(r.config["by"]), r.config["all_alive"]) for r in made.records if r.kind == "prune"}
    assert needless and kept and {prunes[key] for key in kept} <= final
    assert not {prunes[path.stem] for path in needless} & final
    (made.path / "masks" / "mine.safetensors").touch()
    before = sorted(made.path.rglob("*"))
    assert run("runs", "prune", str(made.path)) == 0
    assert f"{len(needless)} masks of candidates" in (said := capsys.readouterr().out) and "--yes deletes them" in said
    assert sorted(made.path.rglob("*")) == before
    with sole_writer(made.path), pytest.raises(OutputError, match="Another process"):
        runs.delete_masks(made, needless)
    assert run("runs", "prune", str(made.path), "--yes") == 0
    left = {path.stem for path in (made.path / "masks").glob("*.safetensors")}
    assert left == kept | {"mine"} and len(list(made.path.glob("choice-*.safetensors"))) == 1
    with open(made.path / "masks" / "index.csv", newline="") as file:
        assert {row["file"].removesuffix(".safetensors") for row in csv.DictReader(file)} == kept
    assert needless_masks(made) == []


def test_a_search_that_lost_candidates_masks_gives_the_same_again(home: Path, tmp_path: Path) -> None:
    made = copied(home, tmp_path / "s")
    table = (made.path / "table.md").read_text()
    runs.delete_masks(made, needless_masks(made))
    assert run("search", "tiny.yaml", "--workers", "0", "--out", str(made.path)) == 0
    assert (made.path / "table.md").read_text() == table and needless_masks(made)


def test_what_is_no_ended_search_is_left_alone(home: Path, tmp_path: Path) -> None:
    made = copied(home, tmp_path / "s")
    (made.path / "result.json").unlink()
    with pytest.raises(MaskError, match="has not ended"):
        needless_masks(RunFolder.at(made.path))
    other: Any = next(path for path in Path("runs").iterdir() if path.name.startswith("prune-"))
    with pytest.raises(MaskError, match="of 'panning prune'"):
        needless_masks(RunFolder.at(other))
