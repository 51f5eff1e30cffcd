"""Packages that extend the tables by entry points, and that nothing but an installed package can."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save
from test_layers import ROOT
from torch import nn

import panning
from panning.agents import AgentConfig, EnvSpec, train_agent
from panning.cli import main
from panning.compare.grid import GridConfig
from panning.compare.report import write_report
from panning.compare.run import check_grid, run_grid
from panning.envs import PanningEnv, RewardSpec
from panning.episode.actions import ActionSpec
from panning.episode.policy_net import PolicyNet, load_policy, save_policy
from panning.episode.round_reward import ROUND_TERMS, round_reward, round_terms
from panning.foundation.config import load_config, parse_config
from panning.foundation.errors import ConfigError, PanningError, PluginError, UnknownNameError
from panning.foundation.progress import silent
from panning.foundation.records import read_records
from panning.foundation.registry import Table
from panning.jobs.executor import SerialExecutor
from panning.jobs.ways import Method
from panning.models import MODELS, build_model, model_names
from panning.pruners import PRUNERS
from panning.scoring.indices import INDICES
from panning.searches.config import SearchConfig
from panning.searches.samplers import SAMPLERS

EXAMPLE = ROOT / "docs" / "examples" / "plugin"
TABLES: dict[str, Table[Any]] = {table.group: table for table in (PRUNERS, INDICES, MODELS, ROUND_TERMS, SAMPLERS)}
FROM = "panning-example 1.0"
Installer = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Installs a package of one module, as pip lays it out: the module, and a dist-info folder beside it."""
    modules: list[str] = []

    def put(name: str, version: str, code: str, entry_points: dict[str, dict[str, str]], module: str) -> Path:
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [
            line for group, rows in entry_points.items() for line in (f"[{group}]", *map(" = ".join, rows.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(site)
        modules.append(module)
        return site

    yield put
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def example(install: Installer) -> None:
    """The package of docs/examples/plugin."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    code = (EXAMPLE / "panning_example.py").read_text()
    install(project["name"], project["version"], code, project["entry-points"], "panning_example")


def run(command: str) -> None:
    """A command that works."""
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert not ended.value.code


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


BATCH = (torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)


# --- what a package adds ---


@pytest.mark.usefixtures("example")
def test_names_join_the_tables_and_nothing_is_imported_until_one_is_looked_up() -> None:
    names = {"panning.methods": "example_thirds", "panning.indices": "example_taylor",
             "panning.models": "example_net", "panning.rewards": "example_layers",
             "panning.samplers": "example_steps"}  # fmt: skip
    for group, name in names.items():
        table = TABLES[group]
        assert name in table and list(table)[-1] == name and len(table) == len(table.data) + 1
        assert table.origin(name) == FROM and table.origin(next(iter(table))) is None
    assert model_names()[-1] == "example_net"
    with pytest.raises(UnknownNameError, match="Did you mean 'example_thirds'"):
        panning.prune(network(), BATCH, density=0.5, method="example_third")
    assert "panning_example" not in sys.modules
    assert INDICES["example_taylor"].needs == ("weight", "grad") and "panning_example" in sys.modules


def test_the_page_shows_the_file_as_it_is() -> None:
    whole = (EXAMPLE / "pyproject.toml").read_text()
    assert f"```toml\n{whole[whole.index('[project]') :]}```" in (ROOT / "docs" / "plugins.md").read_text()


def test_without_the_package_its_names_are_unknown() -> None:
    for table in TABLES.values():
        assert list(table) == list(table.data) and "example_thirds" not in table
    with pytest.raises(KeyError):
        PRUNERS["example_thirds"]


@pytest.mark.usefixtures("example")
def test_prune_takes_its_method_and_the_mask_says_where_that_comes_from() -> None:
    masks = panning.prune(network(), BATCH, density=0.25, method="example_thirds")
    squares = panning.prune(
        network(), BATCH, density=0.25, method="snip", n_rounds=3
    )  # squares rank as absolute values
    assert masks == squares and masks.n_kept == 14
    assert masks.manifest["plugins"] == {
        "panning.methods: example_thirds": FROM, "panning.indices: example_taylor": FROM
    }  # fmt: skip
    assert "plugins" not in squares.manifest
    row = PRUNERS["example_thirds"]
    assert (row.label, row.paper, row.needs_data) == ("example_thirds", FROM, True)


@pytest.mark.usefixtures("example")
def test_the_environment_takes_its_model_index_and_reward() -> None:
    env = PanningEnv(
        tasks=[{"model": "example_net", "data": "digits"}], n_rounds=2, densities=[0.1],
        action={"indices": ["example_taylor", "magnitude"]}, reward={"cost": 0.0, "terms": {"example_layers": 8.0}},
    )  # fmt: skip
    bare = PanningEnv(tasks=env.tasks, n_rounds=2, densities=[0.1], action=env.spec_of_action)
    assert env.reset(seed=0)[1]["example_layers"] == 0.0 and "example_layers" not in bare.reset(seed=0)[1]
    action = np.array([1, -1, 0, -1], np.float32)  # the package's index alone
    rewards = [(env.step(action)[1], bare.step(action)[1]) for _ in range(2)]
    assert [one for one, _ in rewards] == [
        other for _, other in rewards
    ] and env.state.reached_target  # all layers live
    alive = env.state.alive.clone()
    alive[: env.state.problem.layout.sizes[0]] = False
    state = dataclasses.replace(env.state, alive=alive)
    weights = env.spec_of_reward.weights(env.spec_of_reward.round_terms)
    assert round_terms(state, weights)["example_layers"] == -0.5
    without = {name: weight for name, weight in weights.items() if name != "example_layers"}
    assert round_reward(weights, state) == pytest.approx(round_reward(without, state) - 8.0 * 0.5 / 2)
    assert "example_layers" in env.spec_of_reward.figures


@pytest.mark.usefixtures("example")
def test_an_agent_is_trained_on_it_and_says_so(tmp_path: Path) -> None:
    env = {
        "tasks": [{"model": "example_net", "data": "digits", "n_train": 100}], "densities": [0.05], "n_rounds": 2,
        "action": {"indices": ["example_taylor"]}, "reward": {"terms": {"example_layers": 1.0}},
    }  # fmt: skip
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    policy = train_agent(AgentConfig.model_validate({"env": env, "ppo": ppo}), tmp_path / "agent")
    known = {"panning.models: example_net", "panning.indices: example_taylor", "panning.rewards: example_layers"}
    assert policy.facts["plugins"] == dict.fromkeys(known, FROM)
    (record,) = read_records(tmp_path / "agent" / "rollouts.jsonl")
    assert record.environment["plugins"] == policy.facts["plugins"] and "example_layers" in record.metrics
    assert load_policy(tmp_path / "agent" / "policy.safetensors").spec.indices == ("example_taylor",)


@pytest.mark.usefixtures("example")
def test_a_grid_takes_it_from_a_config_and_every_record_says_where_its_rows_come_from(tmp_path: Path) -> None:
    config = load_config(GridConfig, EXAMPLE / "grid.yaml")
    assert check_grid(config, EXAMPLE)[0] == 5
    records = run_grid(config, EXAMPLE, tmp_path / "grid", SerialExecutor(), silent)
    assert len(records) == 5 and not [record.metrics["error"] for record in records if record.metrics["error"]]
    model = {"panning.models: example_net": FROM}
    both = {"panning.methods: example_thirds": FROM, "panning.indices: example_taylor": FROM}
    for record in records:
        method = (record.config["by"] or {}).get("method")
        assert record.environment["plugins"] == {**model, **(both if method == "example_thirds" else {})}
    (table,) = write_report(records, tmp_path / "report")
    assert "example_thirds" in (tmp_path / "report" / "report.md").read_text() and len(table.rows) >= 3


@pytest.mark.usefixtures("example")
def test_commands_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("prune --model example_net --data digits --density 0.2 --method example_thirds --out made --json")
    made = json.loads(capsys.readouterr().out)
    assert made["n_kept"] == round(0.2 * (64 * 32 + 32 * 10))
    (record,) = map(json.loads, (tmp_path / "made" / "records.jsonl").read_text().splitlines())
    assert record["environment"]["plugins"] == panning.load_masks(made["mask"]).manifest["plugins"]
    assert len(record["environment"]["plugins"]) == 3
    run("methods --json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["example_thirds"]["paper"] == FROM and rows["example_thirds"]["rounds"] == 3


def test_specs_without_plugins_are_named_as_before() -> None:
    """Keys of records and identities of folders are hashes of these."""
    assert "terms" not in RewardSpec().model_dump(mode="json")
    with pytest.raises(ConfigError, match="alive are panning's own: give their weights beside terms"):
        parse_config(RewardSpec, {"terms": {"alive": 1.0}}, "reward")


# --- packages that go wrong ---


def test_a_name_of_pannings_own_stays_what_it_is_with_a_warning(install: Installer) -> None:
    install("panning-bold", "2.1", "BOLD = None", {"panning.methods": {"snip": "bold:BOLD"}}, "bold")
    with pytest.warns(UserWarning, match=r"panning-bold 2\.1 adds 'snip' to panning\.methods.*panning's is used"):
        assert PRUNERS["snip"].label == "SNIP"
    assert list(PRUNERS) == list(PRUNERS.data) and PRUNERS.origin("snip") is None and "bold" not in sys.modules


@pytest.mark.parametrize(
    "code", ["import nowhere_to_be_found", "raise RuntimeError('x')", "import sys; sys.exit(3)", ""]
)
def test_a_package_that_cannot_be_imported_is_named(install: Installer, code: str) -> None:
    install("panning-broken", "0.3", code, {"panning.methods": {"broken": "broken_module:METHOD"}}, "broken_module")
    said = (
        r"'broken' of panning-broken 0\.3 \(panning\.methods: broken_module:METHOD\) cannot be imported: .*uninstall it"
    )
    with pytest.raises(PluginError, match=said):
        panning.prune(network(), BATCH, density=0.5, method="broken")
    with pytest.raises(ConfigError, match=said):
        parse_config(Method, {"method": "broken"}, "a grid")
    assert PRUNERS["snip"].label == "SNIP"


@pytest.mark.parametrize(
    ("group", "code", "said"),
    [
        ("panning.methods", "ROW = 3", "method is a int"),
        ("panning.methods", "from panning.pruners.score_rounds import ScoreRounds as ROW", "the class ScoreRounds"),
        (
            "panning.methods",
            "from panning.pruners import PrunerRow, PRUNERS\nROW = PrunerRow(PRUNERS['erk'].pruner, 'SNIP', 'me')",
            "label 'SNIP' is one of panning's own",
        ),
        ("panning.indices", "ROW = abs", "must be a panning.scoring.indices.Index"),
        ("panning.models", "import torch; ROW = torch.nn.Linear(2, 2)", "must be a function or class"),
        ("panning.rewards", "ROW = -1.0", "must be a function of an EpisodeState"),
    ],
)
def test_a_row_of_another_kind_is_named(install: Installer, group: str, code: str, said: str) -> None:
    install("panning-odd", "1", code, {group: {"odd": "odd:ROW"}}, "odd")
    with pytest.raises(PluginError, match=f"'odd' of panning-odd 1 .*{said}"):
        TABLES[group]["odd"]


def test_a_model_with_one_of_torchvisions_names_is_refused(install: Installer) -> None:
    install("panning-odd", "1", "def ROW(): pass", {"panning.models": {"alexnet": "odd:ROW"}}, "odd")
    with pytest.raises(PluginError, match="'alexnet' is one of torchvision's models"):
        build_model("alexnet", input_shape=(3, 64, 64), n_classes=2, seed=0)


def test_a_name_in_two_packages_is_refused(install: Installer) -> None:
    for name in ("one", "two"):
        install(
            f"panning-{name}", "1", "ROW = None", {"panning.indices": {"same": f"{name}_module:ROW"}}, f"{name}_module"
        )
    with pytest.raises(PluginError, match="'same' is in panning.indices of panning-one 1 and panning-two 1: uninstall"):
        INDICES["same"]


@pytest.mark.parametrize("value", ["float('nan')", "float('-inf')"])
def test_a_reward_that_is_no_number_stops_the_episode(install: Installer, value: str) -> None:
    install("panning-odd", "1", f"def term(state): return {value}", {"panning.rewards": {"odd": "odd:term"}}, "odd")
    env = PanningEnv(reward={"terms": {"odd": 1.0}})
    with pytest.raises(PanningError, match="The reward term 'odd' is .*(nan|inf) in round 0"):
        env.reset(seed=0)


def test_a_models_draw_does_not_depend_on_whether_its_package_was_imported_before(install: Installer) -> None:
    code = (
        "import torch\ntorch.rand(5)\ndef make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))"
    )
    install("panning-draws", "1", code, {"panning.models": {"draws": "draws:make"}}, "draws")
    first, second = (build_model("draws", input_shape=(1, 2, 2), n_classes=2, seed=0)[1].weight for _ in range(2))
    assert torch.equal(first, second)


# --- a file can name rows, and nothing else ---


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the current directory and on the path that leaves a file behind when it is imported or called."""
    left = tmp_path / "it-ran"
    code = f"open({str(left)!r}, 'w').close()\ndef factory(*args, **kwargs): open({str(left)!r}, 'w').close()\n"
    (tmp_path / "canary_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield left
    assert not left.exists() and "canary_module" not in sys.modules


ASKED = ("canary_module:factory", "canary_module.factory", "canary_module", "os:system")
TASK = {"model": "mlp", "data": "digits"}


def grid(**changed: Any) -> dict[str, Any]:
    whole = yaml.safe_load((EXAMPLE / "grid.yaml").read_text())
    whole["tasks"][0]["task"] = TASK
    controls = [{"method": "snip", "control": control} for control in ("shuffle_alive", "reinitialise")]
    whole["methods"] = ["snip", *controls, "erk"]
    return {**whole, **changed}


@pytest.mark.parametrize("name", ASKED)
def test_no_config_imports_anything(canary: Path, name: str) -> None:
    task, recipe = {"model": name, "data": "digits"}, {"epochs": 1}
    controls = grid()["methods"]
    asked: list[tuple[type[Any], dict[str, Any]]] = [
        (GridConfig, grid(tasks=[{"task": task, "recipe": recipe}])),
        (GridConfig, grid(tasks=[{"task": {"model": "mlp", "data": name}, "recipe": recipe}])),
        (GridConfig, grid(tasks=[{"task": TASK, "recipe": name}])),
        (GridConfig, grid(methods=[*controls, name])),
        (GridConfig, grid(methods=[*controls, {"dynamic": name}])),
        (GridConfig, grid(methods=[*controls, {"method": "snip", "control": name}])),
        (EnvSpec, {"tasks": [task], "densities": [0.1]}),
        (EnvSpec, {"tasks": [TASK], "densities": [0.1], "action": {"indices": [name]}}),
        (EnvSpec, {"tasks": [TASK], "densities": [0.1], "reward": {"terms": {name: 1.0}}}),
        (EnvSpec, {"tasks": [TASK], "densities": [0.1], "observations": [name]}),
        (SearchConfig, {"name": "s", "task": task, "densities": [0.1], "rungs": [{"recipe": recipe, "keep": 1}],
                        "recipe": recipe}),
        (SearchConfig, {"name": "s", "task": TASK, "densities": [0.1], "rungs": [{"recipe": recipe, "keep": 1}],
                        "recipe": recipe, "baselines": [name]}),
    ]  # fmt: skip
    for number, (kind, values) in enumerate(asked):
        path = Path(f"config-{number}.yaml")
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(ConfigError, match="canary_module|system"):
            load_config(kind, path)


@pytest.mark.parametrize("name", ASKED)
def test_no_policy_imports_anything(canary: Path, name: str) -> None:
    net = PolicyNet(ActionSpec(), 3, (np.zeros((6, 16), np.float32),), (np.zeros(6, np.float32),),
                    np.zeros(6, np.float32), {"plugins": {f"panning.methods: {name}": "panning-example 1.0"}})  # fmt: skip
    save_policy(net, "policy.safetensors")
    assert load_policy("policy.safetensors").facts == net.facts  # what it says of packages is text
    for key, value in (("indices", [name, "snip", "grasp", "synflow"]), ("form", name), ("combination", name)):
        described = {"format_version": 1, "action": {**ActionSpec().model_dump(mode="json"), key: value}, "n_rounds": 3,
                     "observations": list(net.observations), "facts": {}}  # fmt: skip
        tensors = {"log_std": torch.zeros(6), "layers.0.weight": torch.zeros(6, 16), "layers.0.bias": torch.zeros(6)}
        Path("bad.safetensors").write_bytes(save(tensors, {"panning_policy": json.dumps(described)}))
        with pytest.raises(PanningError, match="bad.safetensors"):
            load_policy("bad.safetensors")


@pytest.mark.parametrize("name", ASKED)
def test_no_mask_imports_anything(canary: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    masks = panning.prune(network(), BATCH, density=0.5, method="snip")
    said = masks.with_manifest(model=name, method=name, data=name, plugins={f"panning.models: {name}": "evil 1"})
    panning.save_masks(said, "mask.safetensors")
    loaded = panning.load_masks("mask.safetensors")
    assert loaded.manifest["model"] == name
    model = network()
    panning.enforce_masks(model, loaded, torch.optim.SGD(model.parameters(), 0.1))
    run("mask show mask.safetensors")
    assert "kept" in capsys.readouterr().out


def test_a_folder_that_pretends_to_be_a_package_is_none(canary: Path, tmp_path: Path) -> None:
    """Entry points come from packages on the path alone; what lies beside a config is no package."""
    folder = tmp_path / "downloaded"
    shutil.copytree(EXAMPLE, folder)
    info = folder / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[panning.methods]\nevil = canary_module:factory\n")
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid(methods=[*grid()["methods"], "evil"])))
    with pytest.raises(ConfigError, match="Unknown method 'evil'"):
        load_config(GridConfig, folder / "grid.yaml")
