"""What a run costs before it starts: parameters, dense epochs, memory, bytes on disk, and limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import panning
from panning.agents import AgentConfig, PPOSpec
from panning.compare.grid import GridConfig
from panning.foundation.errors import ConfigError
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.jobs.train import TrainConfig, check_train, run_train
from panning.measure.estimate import agent_stages, in_images
from panning.measure.footprint import HEADER_BYTES, PROCESS_BYTES, Footprint
from panning.measure.report import measured, shipped_records
from panning.searches.config import SearchConfig
from panning.searches.cost import Limits, cost_of, dry_run_of
from panning.searches.whole import whole_search
from panning.tasks import TaskSpec, load_task

TASK = {"model": "mlp", "data": "digits", "n_train": 60}
SHORT = {"epochs": 2, "batch_size": 20}
PPO = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
SEARCH = {
    "name": "s", "task": TASK, "densities": [0.2], "seeds": [0], "n_samples": 0, "baselines": ["snip"], "recipe": SHORT,
    "agent": {"n_rounds": 2, "seeds": [100], "ppo": PPO}, "rungs": [{"keep": 1, "recipe": SHORT}],
}  # fmt: skip
GRID = {
    "name": "g", "tasks": [{"task": TASK, "recipe": SHORT}], "densities": [0.3], "seeds": [0, 1], "methods": ["snip"],
    "controls": False,
}  # fmt: skip
AGENT = {"env": {"tasks": [TASK], "densities": [0.2], "n_rounds": 2, "seeds": [0]}, "ppo": PPO}
N_PRUNABLE = 64 * 256 + 256 * 128 + 128 * 10
N_PARAMETERS = N_PRUNABLE + 256 + 128 + 10


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_mask_costs_no_training_and_its_rounds() -> None:
    cost = cost_of(PruneConfig(task=TASK, density=0.1, method="iter_snip", rounds=7))
    assert (cost.n_parameters, cost.networks[0].n_prunable) == (N_PARAMETERS, N_PRUNABLE)
    assert (cost.dense_epochs, cost.n_steps) == (0.0, 7)
    assert cost.networks[0].mask_bytes == N_PRUNABLE // 8 + HEADER_BYTES


def test_a_training_costs_its_epochs() -> None:
    cost = cost_of(TrainConfig(task=TASK, recipe=SHORT))
    n_train = len(load_task(TaskSpec.model_validate(TASK), 0).data.train)
    assert cost.dense_epochs == 2 * (n_train // 20) * 20 / n_train and cost.n_steps == 2


@pytest.mark.parametrize(
    ("config", "n_steps"),
    [(GridConfig.model_validate(GRID), 4), (AgentConfig.model_validate(AGENT), 1)],
    ids=["bench", "train-agent"],
)
def test_other_runs_cost_their_jobs_and_rollouts(config: Any, n_steps: int) -> None:
    assert cost_of(config).n_steps == n_steps and cost_of(config).n_parameters == N_PARAMETERS


def test_the_actions_that_an_agent_may_begin_at_are_counted() -> None:
    """Two tasks, each with two densities: three actions a case, and the fixed policy once for each before, not after."""
    reward = {"training": 1.0, "recipe": SHORT}
    tasks = [TASK, {**TASK, "n_train": 90}]
    env: dict[str, Any] = {"tasks": tasks, "densities": [0.1, 0.2], "n_rounds": 2, "seeds": [0], "reward": reward}
    start = [{"mix": name} for name in ("magnitude", "snip", "synflow")]
    plain = AgentConfig.model_validate({"env": env, "ppo": PPO})
    begun = plain.model_copy(update={"ppo": PPOSpec.model_validate({**PPO, "start": start})})
    (alone,), (first, then) = agent_stages(plain, in_images), agent_stages(begun, in_images)
    assert first.steps == 2 and then.steps == alone.steps
    of_one = first.epochs / (2 * 2 * (3 + 1))
    n_episodes = 4 / 2  # steps of the rollout, rounds of an episode
    assert then.epochs == pytest.approx(n_episodes * of_one) and alone.epochs == pytest.approx(
        (n_episodes + 4) * of_one
    )


def test_runs_leave_no_more_than_they_are_said_to(tmp_path: Path) -> None:
    prune, train = PruneConfig(task=TASK, density=0.1), TrainConfig(task=TASK, recipe=SHORT)
    search = SearchConfig.model_validate(SEARCH)
    run_prune(check_prune(prune), tmp_path / "prune")
    run_train(check_train(train), tmp_path / "train")
    whole_search(search, tmp_path / "search")
    for name, config in {"prune": prune, "train": train, "search": search}.items():
        said, left = cost_of(config).disk_bytes, bytes_in(tmp_path / name)
        assert left <= said, name


def test_what_a_pass_keeps_is_counted_by_hand() -> None:
    """Of an MLP with ReLU: its input, and of each hidden layer what the ReLU gives; the logits' softmax and the label."""
    sizes = Footprint.of(load_task(TaskSpec.model_validate(TASK), 0))
    assert sizes.n_parameters == N_PARAMETERS
    floats = 64 + 256 + 128 + 10
    assert sizes.layer_bytes == 4 * 256
    assert 4 * floats <= sizes.kept_bytes <= 4 * (floats + 256 + 128 + 10) + 64


def test_the_memory_of_methods_is_at_least_what_was_measured() -> None:
    """LeNet-5 on 100 images, as in the shipped records."""
    data = torch.randint(0, 255, (200, 1, 28, 28), dtype=torch.uint8), torch.arange(200) % 10
    sizes = Footprint.of(load_task(TaskSpec(model="lenet5", data=data), 0))
    (items,) = [items for (model, n, threads), items in measured(shipped_records("speed")).items()
                if (model, n, threads) == ("lenet5", 100, 1)]  # fmt: skip
    methods = {name: one["peak_bytes"] for name, one in items.items() if name.startswith("method ")}
    assert len(methods) > 20
    for name, peak in methods.items():
        assert 0.8 * peak <= sizes.pruning_bytes(100, [(name, False)]) <= 12 * peak, name


def test_a_network_that_is_too_large_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    images, labels = np.zeros((40, 32, 32, 3), np.uint8), (np.arange(40) % 2)[:, None]
    parts = {
        f"{part}_{what}": one
        for part in ("train", "val", "test")
        for what, one in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "tiny.npz", **parts)
    monkeypatch.setattr("panning.searches.cost.stages_of", lambda *_, **__: pytest.fail("it was loaded"))
    config = PruneConfig(
        task={"model": "torchvision:regnet_y_128gf", "data": f"npz:{tmp_path / 'tiny.npz'}"}, density=0.1
    )
    with pytest.raises(
        ConfigError, match="model is torchvision:regnet_y_128gf, with 6.* parameters.* at most 100,000,000"
    ):
        cost_of(config, limits=Limits(n_parameters=10**8))


def test_limits_name_what_is_above_them_and_what_lowers_it() -> None:
    config = TrainConfig(task=TASK, recipe={**SHORT, "epochs": 50})
    cost_of(config, limits=Limits(n_parameters=N_PARAMETERS, dense_epochs=50, memory_bytes=2**40, disk_bytes=2**40))
    with pytest.raises(ConfigError) as caught:
        cost_of(config, limits=Limits(dense_epochs=20, disk_bytes=10, memory_bytes=PROCESS_BYTES))
    lines = str(caught.value).splitlines()
    assert lines[0] == "This run costs too much:" and len(lines) == 4
    assert "dense_epochs is 50, at most 20 are allowed: lower epochs, seeds" in lines[1]


def test_a_dry_run_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panning.measure.estimate.BUDGET_S", 0.0)
    config = PruneConfig(task=TASK, density=0.1, method="snip")
    run, cost = dry_run_of(config), cost_of(config)
    assert run.as_json()["memory_bytes"] == cost.memory_bytes and run.as_json()["n_parameters"] == N_PARAMETERS
    assert run.sentences()[-1] == cost.sentence() and "mlp on Digits has 50,826 parameters" in cost.sentence()


def test_many_networks_are_told_by_their_range() -> None:
    cost = cost_of(PruneConfig(task=TASK, density=0.1, method="snip"))
    few, many = (
        replace(cost, networks=tuple(replace(cost.networks[0], name=f"net {i}", n_parameters=i) for i in range(1, n)))
        for n in (9, 1001)
    )
    assert few.sentence().startswith("net 1 has 1 parameters, net 2 has 2 parameters")
    assert many.sentence().startswith("1000 networks have 1 to 1,000 parameters; a process takes")


def test_the_cost_of_a_file_a_name_keys_and_an_object_is_one(tmp_path: Path) -> None:
    keys = {"kind": "prune", "task": TASK, "density": 0.1}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(keys))
    found = [panning.cost(one) for one in (tmp_path / "p.yaml", keys, PruneConfig.model_validate(keys))]
    assert found[0] == found[1] == found[2] and panning.cost("prune/digits-mlp").n_parameters == N_PARAMETERS
    with pytest.raises(ConfigError, match="of the kind 'recipe', which does not run"):
        panning.cost("recipes/lenet5-mnist")
