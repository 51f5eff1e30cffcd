"""Whole runs from Python: a search, an agent and an environment on networks and data of the caller's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import A2C
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import panning
from panning.agents import AgentConfig, export_policy
from panning.calls import SearchReport
from panning.foundation.config import load_config
from panning.foundation.errors import ConfigError, DataError, DeviceError, ModelError, PanningWarning
from panning.foundation.progress import Event, silent
from panning.foundation.records import read_records
from panning.masks.file import load_masks
from panning.searches import SearchConfig
from panning.tasks import TaskSpec

ROOT = Path(__file__).resolve().parent.parent
PPO = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}


class Net(nn.Module):
    """Of a kind that no table has, defined where no worker can import it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x)) * torch.sigmoid(self.right(x)))


def samples(n: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(1)


def arguments(**other: Any) -> dict[str, Any]:
    return {
        "densities": [0.2], "seeds": (0, 1), "n_samples": 1, "baselines": ("snip", "synflow"), "on_event": silent,
        "recipe": {"epochs": 1, "batch_size": 32}, "agent": {"n_rounds": 2, "ppo": PPO}, **other,
    }  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchReport, list[Event]]:
    events: list[Event] = []
    out = tmp_path_factory.mktemp("search") / "mine"
    return panning.search(Net, samples(), out=out, **arguments(on_event=events.append)), events


# --- the search ---


def test_a_search_gives_winner_masks_table_and_records(searched: tuple[SearchReport, list[Event]]) -> None:
    report, events = searched
    masks = report.masks[0.2]
    assert set(masks) == {0, 1} and all(one.n_kept == round(0.2 * one.n_prunable) for one in masks.values())
    assert masks[0] == load_masks(report.out / "choice-density0.2-seed0.safetensors")
    assert masks[0].manifest["model"].startswith("own:Net-") and masks[0].manifest["data"] == "tensors"
    named = [row for row in report.table if report.winner[0.2] in row["method"]]
    assert named and all(0 <= value <= 1 for value in named[0]["test_accuracy"].values())
    assert report.sentences[0].startswith(f"At density 0.2 the search chose {report.winner[0.2]}")
    assert {record.kind for record in read_records(report.records)} == {"prune", "train", "cell"}
    assert report.policy is not None and report.policy.is_file()
    stages = [event.stage for event in events]
    assert stages[0] == "training the agent" or events[0].kind == "plan"
    assert "training every method in full" in stages
    assert (report.out / "report.md").is_file() and "Net on tensors" in (report.out / "table.md").read_text()
    panning.apply_masks(Net(), masks[0])


def test_a_search_goes_on_in_its_folder_and_refuses_another_network_or_other_data(
    searched: tuple[SearchReport, list[Event]],
) -> None:
    report, _ = searched
    n_records, events = len(read_records(report.records)), list[Event]()
    again = panning.search(lambda: Net(), samples(), out=report.out, **arguments(on_event=events.append))
    assert again.winner == report.winner and again.table == report.table
    assert len(read_records(report.records)) == n_records and not [e for e in events if e.kind == "job"]
    with pytest.raises(ConfigError, match=r"differs in: task.model: 'own:Net-.*' there, 'own:Linear-.*' here"):
        panning.search(lambda: nn.Linear(6, 3), samples(), out=report.out, **arguments())
    with pytest.raises(ConfigError, match="differs in: task.data"):
        panning.search(Net, samples(seed=1), out=report.out, **arguments())


@pytest.mark.ray
def test_ray_workers_get_network_and_data_and_give_the_same(
    searched: tuple[SearchReport, list[Event]], tmp_path: Path, local_ray: None
) -> None:
    report = panning.search(Net, samples(), out=tmp_path / "mine", workers=2, **arguments())
    assert report.winner == searched[0].winner and report.masks == searched[0].masks
    keys = [{record.key for record in read_records(one.records)} for one in (report, searched[0])]
    assert keys[0] == keys[1]


@pytest.mark.ray
def test_what_cannot_be_sent_to_workers_is_said(tmp_path: Path, local_ray: None) -> None:
    import threading

    lock = threading.Lock()

    def guarded() -> nn.Module:
        with lock:
            return Net()

    with pytest.raises(panning.PanningError, match="Net.* cannot be sent to Ray workers .*workers=0"):
        panning.search(guarded, samples(), out=tmp_path / "mine", workers=1, **arguments())


def test_one_module_for_several_seeds_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.warns(PanningWarning, match="Net is one module: all 2 seeds start from its weights") as caught:
        report = panning.search(Net(), TensorDataset(*samples()), out=tmp_path / "mine", **arguments())
    assert caught[0].filename == __file__
    assert report.masks[0.2][0].manifest["data"] == "TensorDataset"


def test_the_folder_of_a_search_cannot_be_run_without_its_network(searched: tuple[SearchReport, list[Event]]) -> None:
    config = load_config(SearchConfig, searched[0].out / "config.yaml")
    assert str(config.task.model).startswith("own:Net-")
    with pytest.raises(DataError, match="are data of a Python process"):
        panning.search(config=config, out=searched[0].out)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"densities": None}, ConfigError, r"Pass densities.*\[0.05\]"),
        ({"densities": 0.2}, ConfigError, r"densities is 0.2; pass a list"),
        ({"desities": [0.2]}, ConfigError, "Did you mean 'densities'"),
        ({"baselines": ("snpi",)}, ConfigError, "Did you mean 'snip'"),
        ({"workers": -1}, ConfigError, "workers is -1"),
        ({"ray_address": "10.0.0.1:1"}, ConfigError, "0 workers run without Ray"),
        ({"device": "gpu"}, DeviceError, "gpu"),
        ({"config": "no-such-config"}, ConfigError, "no-such-config"),
        ({"config": 3}, ConfigError, "config is a int; pass a name, a file, a SearchConfig"),
        ({"model": None, "data": None}, ConfigError, "Pass a model with its data"),
        ({"data": None}, ConfigError, "needs data"),
        ({"model": "mlp", "data": None}, ConfigError, "'MODEL/DATA'"),
        ({"data": (torch.ones(90, 5), torch.arange(90) % 3)}, ModelError, "fails on inputs of shape"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(
    call: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    with pytest.raises(error, match=message):
        panning.search(**{"model": Net, "data": samples(), "out": out, **arguments(), **call})
    assert not (out / "run.json").exists()


def test_a_config_by_name_takes_another_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[SearchConfig] = []

    def stop(config: SearchConfig) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("panning.searches.whole.check_search", stop)
    for config in ("demo/digits", load_config(SearchConfig, Path("configs/demo/digits.yaml"))):
        with pytest.raises(KeyboardInterrupt):
            panning.search(Net, samples(), config=config, seeds=(7, 8, 9), out=tmp_path / "mine")
    assert seen[0] == seen[1].model_copy(update={"name": seen[0].name})
    assert seen[0].seeds == (7, 8, 9) and seen[0].densities == (0.05, 0.02, 0.01) and seen[0].recipe.epochs == 30
    with pytest.raises(KeyboardInterrupt):
        panning.search("mlp/digits", densities=[0.1], recipe={"epochs": 20}, out=tmp_path / "mine")
    assert [rung.recipe.epochs for rung in seen[2].rungs] == [2, 10] and seen[2].name == "mine"


# --- the agent ---


def test_an_agent_learns_on_own_networks_and_prunes_others(tmp_path: Path) -> None:
    tasks = [TaskSpec(model=Net, data=samples()), "mlp/digits"]
    call: dict[str, Any] = {"densities": [0.2], "n_rounds": 2, "ppo": PPO, "seeds": (5,), "out": tmp_path / "agent"}
    trained = panning.train_agent(tasks, on_event=silent, **call)
    assert len(trained.rollouts) == 1 and {"reward", "alive", "effective_density"} <= set(trained.rollouts[0])
    with pytest.warns(
        PanningWarning, match=r"no network like this one.*target_density is 0.10, seen were 0.14 to 0.14"
    ):
        masks = panning.prune(Net(), samples(), density=0.3, policy=trained.policy)
    assert masks.n_kept == 36 and masks.manifest["method"] == "panning"
    events: list[Event] = []
    panning.train_agent(tasks, on_event=events.append, **call)
    assert not [event for event in events if event.kind == "rollout"]
    config = load_config(AgentConfig, tmp_path / "agent" / "config.yaml")
    assert config.ppo.n_steps == 4 and str(config.env.tasks[0].model).startswith("own:Net-")
    with pytest.raises(ConfigError, match="Did you mean 'n_rounds'"):
        panning.train_agent(tasks, n_round=3, **{key: value for key, value in call.items() if key != "n_rounds"})
    with pytest.raises(ConfigError, match="Pass a model with its data"):
        panning.train_agent(**call)


@pytest.mark.ray
def test_ray_workers_train_the_same_agent_on_an_own_network(tmp_path: Path, local_ray: None) -> None:
    call: dict[str, Any] = {"densities": [0.2], "n_rounds": 2, "ppo": PPO, "on_event": silent}
    one = panning.train_agent(Net, samples(), out=tmp_path / "here", **call)
    two = panning.train_agent(Net, samples(), out=tmp_path / "ray", workers=1, **call)
    assert one.path.read_bytes() == two.path.read_bytes()


# --- the environment, and the three walks ---


def test_an_own_agent_on_an_own_network_gives_masks_for_a_third() -> None:
    """The engineer of agents: an environment of her network, her agent, its masks."""
    env = panning.make_env(Net, samples(), densities=[0.2], n_rounds=2, seeds=[0, 1])
    agent = A2C("MlpPolicy", env, n_steps=4, seed=0, device="cpu").learn(8)
    observation, _ = env.reset(seed=0)
    done = False
    while not done:
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    assert info["masks"].n_kept == env.masks().n_kept
    other = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    assert panning.prune(other, samples(), density=0.1, policy=agent).n_kept == 18
    assert export_policy(agent).n_rounds == 2


def test_several_models_share_data_in_an_environment() -> None:
    env = panning.make_env([Net, lambda: nn.Linear(6, 3)], samples(), densities=[0.5])
    assert {env.reset(options={"task": number})[1]["task"] for number in (0, 1)} == {0, 1}


def test_a_researcher_searches_a_mask_for_her_network_and_trains_it(
    searched: tuple[SearchReport, list[Event]],
) -> None:
    torch.manual_seed(0)
    net, (inputs, labels) = Net(), samples()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    panning.enforce_masks(net, searched[0].masks[0.2][0], optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    assert sum(int((p != 0).sum()) for name, p in net.named_parameters() if name.endswith("weight")) <= 24


def test_without_workers_nothing_loads_ray_and_progress_is_told_on_stderr(tmp_path: Path) -> None:
    """The engineer with data of her own, at a prompt."""
    lines = [
        "import panning, sys, torch",
        "inputs = torch.randn(120, 6); labels = inputs[:, :3].argmax(1)",
        "net = lambda: torch.nn.Linear(6, 3)",
        f"ppo = {PPO}",
        "agent = panning.train_agent(net, (inputs, labels), densities=[0.5], n_rounds=2, ppo=ppo, out='agent')",
        "print(panning.prune(net(), (inputs, labels), density=0.5, policy=agent.policy).n_kept, 'ray' in sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "9 False\n" and "training the agent: 100% (1 of 1)" in done.stderr
    assert json.loads((tmp_path / "agent" / "run.json").read_text())["env"]["tasks"][0]["model"].startswith(
        "own:Linear-"
    )


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = (ROOT / "docs" / "python.md").read_text().split("```python\n")[1:]
    code = "\n".join(block.split("```")[0] for block in blocks)
    for whole, short in (
        ("torch.randn(3000, 6)", "torch.randn(300, 6)"),
        ('out="runs/mine"', 'out="runs/mine", **SHORT'),
        ("learn(1000)", "learn(8)"),
        ('"n_rollouts": 10', '"n_steps": 4, "batch_size": 8, "n_envs": 2, "n_rollouts": 1'),
    ):
        assert whole in code
        code = code.replace(whole, short)
    names: dict[str, Any] = {"SHORT": {**arguments(seeds=(0,), n_samples=0), "on_event": None}, "__name__": __name__}
    del names["SHORT"]["densities"]
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["masks"].n_kept == names["report"].masks[0.05][0].n_kept == round(0.05 * 960)
    assert len(names["trained"].rollouts) == 1 and names["info"]["masks"].n_prunable == 960
