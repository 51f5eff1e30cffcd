"""Configs by name, changes of a config on the command line, the wrong kind of config, and schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from console import run

from panning.foundation.config import overridden
from panning.foundation.errors import ConfigError
from panning.foundation.packaged import packaged_configs
from panning.searches.kinds import AGENT, BENCH, KINDS, SEARCH, config_path, kind_of, listed, named_config, schema

EVERY = [(name, kind) for kind, row in KINDS.items() for name in packaged_configs(*row.folders)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkout around: configs are found by name alone."""
    monkeypatch.chdir(tmp_path)


# --- by name ---


@pytest.mark.parametrize("given", ["fashion-lenet5", "search/fashion-lenet5", "configs/search/fashion-lenet5.yaml"])
def test_a_packaged_config_has_a_name(given: str) -> None:
    found = named_config(SEARCH, given)
    assert found.config.name == found.stem == "fashion-lenet5" and found.path.name == "fashion-lenet5.yaml"


def test_a_file_goes_before_a_name() -> None:
    Path("digits").write_text(
        yaml.safe_dump({"env": {"tasks": [{"model": "mlp", "data": "digits"}], "densities": [0.5]}})
    )
    assert named_config(AGENT, "digits").config.env.densities == (0.5,)
    assert len(named_config(AGENT, "agent/digits").config.env.densities) > 1


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (SEARCH, "fashion-lenet", "Did you mean 'fashion-lenet5'? It has: digits-free, equal-lenet300, equal-lenet5"),
        (SEARCH, "search/fashion", "Did you mean 'search/fashion-lenet5'?"),
        (
            SEARCH,
            "digits-pick",
            "is no config for 'panning search': 'panning train-agent digits-pick' takes it.",
        ),
        (BENCH, "bench/../demo/digits", "No configuration file"),
        (None, "digits", "name one of them with its folder, demo/digits or agent/digits."),
        (None, "zzz", "search/fashion-lenet5"),
    ],
)
def test_a_name_that_is_none(kind: Any, given: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_path(given, kind)
    assert said in str(caught.value)


def test_a_folder_of_a_run_names_the_config_in_it() -> None:
    Path("runs").mkdir()
    with pytest.raises(ConfigError, match="'runs' is a folder: name a config file[.]"):
        config_path("runs", SEARCH)
    Path("runs/config.yaml").touch()
    with pytest.raises(ConfigError, match="name a config file, as runs/config.yaml"):
        config_path("runs", SEARCH)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_packaged_config_is_of_the_kind_of_its_folder(name: str, kind: str) -> None:
    values = yaml.safe_load(config_path(name).read_text())
    assert kind_of(values) == kind
    assert config_path(name, KINDS[kind]) == config_path(name)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (SEARCH, "agent/digits", "digits.yaml' takes it, 'panning search' does not."),
        (SEARCH, "bench/digits-mlp", "a config of the kind 'bench': 'panning bench /"),
        (AGENT, "demo/digits", "a config of the kind 'search': 'panning search /"),
        (BENCH, "recipes/lenet5-mnist", "a config of the kind 'recipe'"),
        (BENCH, "dynamics/dpf", "a config of the kind 'dynamic'"),
    ],
)
def test_a_config_of_another_kind_is_told_by_its_kind(kind: Any, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named_config(kind, config_path(name))
    assert said in str(caught.value) and "\n" not in str(caught.value)


# --- changes ---


def test_changes_reach_the_checked_config() -> None:
    found = named_config(SEARCH, "demo/digits", ["seeds=[0,1,5]", "agent.ppo.n_rollouts=5", "rungs.0.keep = 4"])
    assert (
        found.config.seeds == (0, 1, 5) and found.config.agent.ppo.n_rollouts == 5 and found.config.rungs[0].keep == 4
    )
    assert found.config.agent.seeds == named_config(SEARCH, "demo/digits").config.agent.seeds
    assert found.stem.startswith("digits-") and len(found.stem) == len("digits-") + 8
    again = named_config(SEARCH, "demo/digits", ["rungs.0.keep = 4", "agent.ppo.n_rollouts=5", "seeds=[0,1,5]"])
    assert again.stem == found.stem != named_config(SEARCH, "demo/digits", ["seeds=[0,1,6]"]).stem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["agent.ppo.n_rollout=5"], "agent.ppo.n_rollout: unknown key. Did you mean 'n_rollouts'?"),
        (["agnet.seed=5"], "agnet: unknown key. Did you mean 'agent'?"),
        (["seeds=two"], "seeds: must be a list (given: 'two')"),
        (["seeds"], "'seeds' changes nothing: give KEY=VALUE"),
        (["=3"], "give KEY=VALUE"),
        (["agent..seed=3"], "give KEY=VALUE"),
        (["seeds=[1"], "'seeds=[1': the value is not valid YAML"),
        (["seeds=&a [*a]"], "nested too deeply"),
        (["seeds=!!python/object:os.system x"], "not valid YAML"),
        (["rungs.7.keep=1"], "'rungs.7.keep=1': '7' is no place in a list of"),
        (["rungs.keep=1"], "'keep' is no place in a list of"),
        (["seeds=[0]"], "(top level): rung 1 wants 3 seeds, there are 1"),
        (["recipe.epochs=many"], "recipe.epochs: must be a number (given: 'many')"),
        (["n_samples=1.5"], "n_samples: must be a whole number (given: 1.5)"),
        (["job_timeout_s=-1"], "job_timeout_s: must be more than 0"),
        (["task.model=mine.nets:make"], "Code is named on the command line alone: --model mine.nets:make."),
        (["name.first=a"], "there is no 'first' in 'digits-mlp'; give the whole value, as {first: ...}."),
    ],
)
def test_a_wrong_change_is_one_message(changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named_config(SEARCH, "demo/digits", changes)
    assert said in str(caught.value) and "(given: {" not in str(caught.value)


def test_all_errors_of_a_file_and_of_its_changes_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        named_config(SEARCH, "demo/digits", ["densities=[]", "n_samples=-1"])
    assert "with densities=[] n_samples=-1: 2 error(s)" in str(caught.value)


def test_changes_leave_what_they_were_given() -> None:
    values = {"a": [{"b": 1}], "c": None}
    assert overridden(values, ["a.0.b=2", "c.d=3", "e=yes"]) == {"a": [{"b": 2}], "c": {"d": 3}, "e": True}
    assert values == {"a": [{"b": 1}], "c": None}


def test_a_command_takes_names_and_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", "digits", "n_sampels=2") == 2
    assert "n_sampels: unknown key. Did you mean 'n_samples'?" in capsys.readouterr().err
    assert run("train-agent", "demo/digits") == 2
    assert (
        "'demo/digits' is no config for 'panning train-agent': 'panning search digits' takes it."
        in capsys.readouterr().err
    )
    for given in (["bench", "run"], ["bench"]):
        assert run(*given, "digits-mlp", "desities=[0.1]") == 2
        assert "Did you mean 'densities'?" in capsys.readouterr().err
    assert run("bench", "digits-mpl") == 2
    assert "Did you mean 'digits-mlp'?" in capsys.readouterr().err
    assert run("bench", "reprot") == 2
    assert "No such command 'reprot'" in capsys.readouterr().err
    Path("grid").mkdir()
    assert run("bench", "grid") == 2
    assert "'grid' is a folder" in capsys.readouterr().err


# --- panning configs ---


def test_configs_are_listed_shown_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("configs", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [name for name, _ in EVERY]
    assert rows["search/fashion-lenet5"]["used"] == "panning search fashion-lenet5"
    assert rows["recipes/lenet5-mnist"]["used"] == "panning train --recipe lenet5-mnist/FORM"
    assert rows["dynamics/dpf"] == {
        "name": "dynamics/dpf", "kind": "dynamic", "used": "panning train --dynamic dpf/MODEL-DATA/FORM",
        "about": "DPF (Lin et al. 2020).",
    }  # fmt: skip
    assert run("configs", "list") == 0 and "bench/digits-mlp" in capsys.readouterr().out
    assert run("configs", "show", "digits-pick") == 0
    text = config_path("digits-pick").read_text()
    assert capsys.readouterr().out == text
    Path("folder").mkdir()
    assert run("configs", "copy", "digits-pick", "mine.yaml") == run("configs", "copy", "digits-pick", "folder") == 0
    assert Path("mine.yaml").read_text() == Path("folder/digits-pick.yaml").read_text() == text
    assert run("configs", "copy", "agent/digits", "mine.yaml") == 2
    assert "is there already" in capsys.readouterr().err and Path("mine.yaml").read_text() == text
    assert run("configs", "copy", "agent/digits", "mine.yaml", "--overwrite") == 0
    assert Path("mine.yaml").read_text() == config_path("agent/digits").read_text()


def test_what_a_config_is_ends_at_its_first_full_stop() -> None:
    assert all(
        row.about.endswith((".", "?.")) and len(row.about) > 10 and row.about[-6:] != "et al." for row in listed()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_of_a_kind_takes_its_configs_and_no_wrong_key(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    given = schema(kind)
    jsonschema.Draft202012Validator.check_schema(given)
    judge = jsonschema.Draft202012Validator(given)
    for name, path in packaged_configs(*KINDS[kind].folders).items():
        values = yaml.safe_load(path.read_text())
        assert not list(judge.iter_errors(values)), name
        assert list(judge.iter_errors({**values, "no_such_key": 1})), name


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("configs", "schema", "search") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "panning search config"
    assert run("configs", "schema", "serach") == 2
    assert "Did you mean 'search'" in capsys.readouterr().err


def test_validate_knows_every_kind_and_takes_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", *(name for name, _ in EVERY)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{name}: a well-formed {kind} config" for name, kind in EVERY]
