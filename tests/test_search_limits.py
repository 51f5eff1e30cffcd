"""Limits of a search in free order, and going on with a folder's own config, on the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from console import run
from test_free_order import FREE, lines_of
from test_search import CONFIG, TASK

import panning
from panning.foundation.config import load_config
from panning.foundation.errors import ConfigError
from panning.foundation.progress import silent
from panning.masks.file import load_masks
from panning.searches.config import SearchConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = {**CONFIG, **FREE, "samplers": ["random"], "max_trials": 4, "seeds": [0, 1]}
    Path("s.yaml").write_text(yaml.safe_dump(whole))


def ended(out: str) -> list[str]:
    return list(json.loads(Path(out, "result.json").read_text())["ended"])


def test_a_search_is_bounded_by_options_and_goes_on_by_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", "s.yaml", "--workers", "0", "--out", "s", "--max-trials", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ended"] == ended("s")
    assert ended("s") == ["At density 0.1, candidates tried: 2; more were not allowed (max_trials)."]
    assert load_config(SearchConfig, "s/config.yaml").max_trials == 2
    first = lines_of(Path("s"))
    assert run("search", "resume", "s", "--workers", "0") == 0
    assert lines_of(Path("s")) == first  # nothing is left to do
    assert "candidates tried: 2" in capsys.readouterr().out
    assert run("search", "resume", "s", "max_trials=null", "--max-cost", "12", "--workers", "0") == 0
    assert "would have cost too much" in ended("s")[0] and lines_of(Path("s"))[: len(first)] == first
    rungs = json.loads(Path("s/result.json").read_text())["cost_epochs"]
    assert 9 < rungs["search"] <= 12
    assert load_masks("s/choice-density0.1-seed1.safetensors").manifest["seed"] == 1


def test_a_budget_that_is_over_leaves_one_candidate_and_a_longer_one_goes_on() -> None:
    assert run("search", "s.yaml", "--workers", "0", "--out", "s", "--budget", "0.001s") == 0
    assert ended("s") == ["At density 0.1, candidates tried: 1; the time was over (budget)."]
    assert run("search", "resume", "s", "--workers", "0", "--budget", "1d") == 0
    assert ended("s") == ["At density 0.1, candidates tried: 4; more were not allowed (max_trials)."]
    assert [kind for kind, _ in lines_of(Path("s"))].count("open") == 1


def test_python_has_the_same_limits_and_goes_on(tmp_path: Path) -> None:
    def call(**limits: Any) -> panning.calls.SearchReport:
        settings = {name: FREE[name] for name in ("order", "agent", "baselines", "rungs", "recipe")}
        return panning.search(TASK, densities=[0.1], on_event=silent, seeds=(0, 1), samplers=["random"],
                              **{"out": "p", "name": "p", **settings, **limits})  # fmt: skip

    report = call(max_trials=2)
    sentences = call(max_trials=2, out="q", reuse="p").sentences
    n_taken, _, n, *words = sentences[-1].split()
    assert n_taken == n and " ".join(words) == f"evaluations were paid for by other runs and reused: {n} from p."
    assert "candidates tried: 2" in report.sentences[-1]
    assert "candidates tried: 3" in call(max_trials=3).sentences[-1]
    assert sorted(report.masks[0.1]) == [0, 1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["search", "resume"], "resume takes the folder of a search"),
        (["search", "resume", "s", "--out", "t"], "and no --out"),
        (["search", "resume", "nowhere"], "there is no search in nowhere"),
        (["search", "s.yaml", "--budget", "3 weeks"], "'3 weeks' is no time: give days, hours"),
        (["search", "demo/digits", "--max-trials", "3"], "max_trials goes with order: free"),
        (["search", "s.yaml", "--reuse", "nowhere"], "nowhere is no folder of a search or benchmark"),
        (["search", "s.yaml", "--max-cost", "0.5"], "one candidate of each density through all rungs costs up to 3"),
    ],
)
def test_what_cannot_be_is_said(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--workers", "0") == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_rungs_that_python_makes_fit_the_order() -> None:
    from panning.searches.given import search_config

    found = search_config(TASK, None, [0.1], None, {"name": "x", "order": "free"})
    assert found.rungs[0].keep == 0.3
    with pytest.raises(ConfigError, match="in free order it must keep a share"):
        search_config(TASK, None, [0.1], None, {"name": "x", "order": "free", "rungs": CONFIG["rungs"]})


def test_the_shipped_config_runs_and_keeps_to_its_cost() -> None:
    """Smaller, by changes as a user makes them."""
    pytest.importorskip("optuna")
    small = [
        "task.n_train=100", "densities=[0.05]", "seeds=[0]", "agent.n_rounds=2",
        "agent.ppo={n_rollouts: 1, n_envs: 1, n_steps: 4, batch_size: 4}",
        "agent.action={indices: [snip]}", "n_samples=1", "baselines=[erk]", "max_cost=40",
        "rungs.2.n_seeds=1", "recipe.epochs=1", "samplers=[agent,{name: local, per_round: true},tpe,cma_es]",
    ]  # fmt: skip
    assert run("search", "digits-free", *small, "--workers", "0", "--out", "d") == 0
    assert "would have cost too much" in ended("d")[0]
    result = json.loads(Path("d/result.json").read_text())
    assert result["cost_epochs"]["search"] <= 40 and {entry["rung"] for entry in result["rungs"]} == {1, 2, 3}
