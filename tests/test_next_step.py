"""What is refused or done says the command to go on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from panning import cli
from panning.data import load_data
from panning.foundation.errors import OutputError, UnknownNameError
from panning.foundation.tracking import tracking


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("sink", ["wandb", "mlflow", "log", "tensorboard"])
def test_an_empty_sink_is_refused(sink: str) -> None:
    with pytest.raises(OutputError, match=f"{sink} is ''"), tracking(**{sink: ""}):
        pass


@pytest.mark.parametrize(("name", "own"), [("mine.npz", "npz:mine.npz"), ("images", "folder:images")])
def test_a_bare_path_of_data_is_led_to_its_form(
    name: str, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=f"before the path: '{own}'"):
        load_data(name)


def test_a_misspelt_data_set_is_no_path() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'") as refusal:
        load_data("digit")
    assert "before the path" not in str(refusal.value)


def test_prune_leads_a_method_that_moves_masks_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "prune", "--model", "mlp", "--data", "digits", "--density", "0.1", "--method", "dpf")
    assert "panning train --dynamic dpf --density 0.1" in said


def test_a_grid_says_how_its_tables_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"epochs": 1, "batch_size": 64, "learning_rate": 0.05}
    grid = {
        "name": "g",
        "tasks": [{"task": {"model": "mlp", "data": "digits", "n_train": 60}, "recipe": recipe}],
        "densities": [0.5],
        "seeds": [0],
        "methods": ["magnitude"],
        "controls": False,
    }
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(grid))
    folder = tmp_path / "a run"
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", str(tmp_path / "g.yaml"), "--workers", "0", "--out", str(folder)])
    assert ended.value.code == 0
    assert f"panning bench report '{folder}'" in capsys.readouterr().out


def test_training_under_a_mask_takes_the_seed_of_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``--seed`` the weights are those that the mask was made for; another seed is said, with the way back."""
    made = ("--model", "mlp", "--data", "digits")

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main([*arguments])
        assert not stopped.value.code
        return capsys.readouterr().err

    run("prune", *made, "--density", "0.1", "--method", "magnitude", "--seed", "3", "--out", str(tmp_path / "pruned"))
    train = ("train", *made, "--mask", str(tmp_path / "pruned/mask.safetensors"), "--epochs", "1")
    assert "note" not in run(*train, "--out", str(tmp_path / "own"))
    assert "this trains those of seed 1: seed 3, or no seed" in run(
        *train, "--seed", "1", "--out", str(tmp_path / "other")
    )
    seeds = [json.loads((tmp_path / name / "records.jsonl").read_text())["config"]["seed"] for name in ("own", "other")]
    assert seeds == [3, 1]
