"""An agent that begins at the best of several actions: what is foreseen, fitted, kept and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from panning.agents import AgentConfig, train_agent
from panning.agents import train as training
from panning.agents.demonstrations import Demonstrations, choose, fit, foresee
from panning.agents.saving import export_policy
from panning.episode.levers import Levers
from panning.episode.policy_net import load_policy
from panning.foundation.config import parse_config
from panning.foundation.errors import ConfigError, PanningError
from panning.foundation.files import strict_json
from panning.foundation.progress import Event

DENSE, LAST = Levers(mix="snip"), Levers(mix="synflow", spread=1.0, start="gain")
ENV: dict[str, Any] = {
    "tasks": [{"model": "mlp", "data": "digits", "n_train": n} for n in (100, 200)],
    "densities": [0.05, 0.2],
    "seeds": [5],
    "n_rounds": 2,
    "action": {"indices": ["snip", "synflow"], "start": True},
    "reward": {"alive": 1, "loss": 1, "gradient": 0},
}
PPO: dict[str, Any] = {
    "n_rollouts": 1, "n_envs": 2, "n_steps": 4, "batch_size": 4, "learning_rate": 1e-9,
    "start": [levers.model_dump(exclude_defaults=True) for levers in (DENSE, LAST)],
}  # fmt: skip


def config(**changes: Any) -> AgentConfig:
    return parse_config(AgentConfig, {"env": {**ENV, **changes}, "ppo": PPO}, "the config")


def test_what_is_held_out_is_what_a_regression_without_the_group_says() -> None:
    """Beside the regression solved again without each group, with the penalty that errs least."""
    rng = np.random.default_rng(0)
    seen, rewards, groups = rng.normal(size=(12, 3)), rng.normal(size=(12, 4)), np.arange(12) // 2
    rewards[:, 1] += 3 * seen[:, 0]
    found = foresee(seen, rewards, groups)
    scaled = (seen - seen.mean(0)) / seen.std(0)
    kernel = np.array([[np.exp(-np.mean((one - two) ** 2)) for two in scaled] for one in scaled])
    beside = rewards - rewards.mean(1, keepdims=True)
    target = beside - beside.mean(0)

    def held_out(penalty: float) -> NDArray[np.float64]:
        result = np.empty_like(target)
        for group in np.unique(groups):
            kept, left = groups != group, groups == group
            own = kernel[np.ix_(kept, kept)] + penalty * np.eye(kept.sum())
            result[left] = kernel[np.ix_(left, kept)] @ np.linalg.solve(own, target[kept])
        return result

    every = [held_out(10.0**exponent) for exponent in range(-2, 6)]
    best = min(every, key=lambda result: float(((result - target) ** 2).mean()))
    np.testing.assert_allclose(found, best + beside.mean(0), atol=1e-8)


def test_where_nothing_that_is_seen_tells_the_best_action_for_all_is_foreseen() -> None:
    rng = np.random.default_rng(1)
    seen, rewards = rng.normal(size=(60, 2)), rng.normal(size=(60, 3))
    rewards[:, 2] += 1.0
    assert (foresee(seen, rewards, np.arange(60)).argmax(1) == 2).mean() > 0.9


@pytest.mark.parametrize("form", ["mix", "pick"])
def test_the_agent_begins_at_the_action_that_does_best_for_what_it_sees(form: str) -> None:
    settings = config(action={**ENV["action"], "form": form})
    n_cases, n_seen = 20, len(settings.env.observations)
    first = np.zeros((n_cases, n_seen))
    first[:, 0] = np.linspace(-1, 1, n_cases)
    rewards = np.stack([first[:, 0], -first[:, 0]], 1)
    seen = tuple(tuple(np.stack([row, row + 0.1]) for _ in range(2)) for row in first)
    with training.isolated_global_rngs(0):
        model = training._build(settings, training._make_envs(settings, 0))
        before = [parameter.clone() for name, parameter in model.policy.named_parameters() if name == "log_std"]
        choice = choose(settings, Demonstrations(rewards, np.arange(n_cases), seen, 0))
        fit(model, choice)
    policy = export_policy(model, settings.env, {})
    for case, levers in ((0, LAST), (4, LAST), (15, DENSE), (n_cases - 1, DENSE)):
        wanted = levers.action(settings.env.action)
        np.testing.assert_allclose(policy(first[case].astype(np.float32)), wanted, atol=0.1)
    after = [parameter for name, parameter in model.policy.named_parameters() if name == "log_std"]
    assert all((one == two).all() for one, two in zip(before, after, strict=True))  # it explores as its config says
    assert choice.facts == {
        "foreseen": pytest.approx(0.526, abs=1e-3), "one_action": 0.0, "hindsight": pytest.approx(0.526, abs=1e-3),
        "first": {DENSE.text: 10, LAST.text: 10},
    }  # fmt: skip


def test_episodes_are_kept_and_an_interrupted_beginning_goes_on_to_the_same_agent(tmp_path: Path) -> None:
    heard: list[Event] = []
    policy = train_agent(config(), tmp_path / "a", listen=heard.append)
    lines = (tmp_path / "a/demonstrations.jsonl").read_text().splitlines()
    records = [record for line in lines if (record := strict_json(line))["kind"] == "demonstrations"]
    assert [record["config"]["task"] for record in records] == [0, 1]
    assert np.shape(records[0]["metrics"]["rewards"]) == (2, 2)  # densities, actions
    assert [event.done for event in heard if event.stage.startswith("trying")] == [0, 1, 2]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/demonstrations.jsonl").write_text("\n".join(lines[:2]) + "\n")  # the environment, the first task
    train_agent(config(), tmp_path / "b", listen=(again := []).append)
    assert [event.done for event in again if event.stage.startswith("trying")] == [1, 2]
    for name in ("start.safetensors", "policy.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first = load_policy(tmp_path / "a/start.safetensors")
    np.testing.assert_allclose(first.weights[0], policy.weights[0], atol=1e-6)  # PPO's rate was next to nothing
    assert first.seen.keys() == policy.seen.keys() == set(policy.observations)
    assert all(policy.seen[name][0] <= low <= high <= policy.seen[name][1] for name, (low, high) in first.seen.items())
    assert set(policy.facts["start"]) == {"foreseen", "one_action", "hindsight", "first"}
    assert "n_episodes: 12" in (tmp_path / "a/policy.yaml").read_text()  # 8 to begin, 4 of the rollout


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"rewards": [[1.0, 2.0]], "seen": [], "images_seen": 0}, "no reward for each density and action"),
        ({"rewards": [[1.0, None], [1.0, 2.0]], "seen": [], "images_seen": 0}, "no reward for each density and action"),
        (
            {"rewards": [[1.0, 2.0], [1.0, 2.0]], "seen": [[[[0.5]]]], "images_seen": 0},
            "what was observed does not fit",
        ),
        ({"seen": []}, "rewards"),
    ],
)
def test_damaged_episodes_are_refused(metrics: dict[str, Any], reason: str, tmp_path: Path) -> None:
    train_agent(config(), tmp_path)
    path = tmp_path / "demonstrations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], json.dumps({**json.loads(lines[-1]), "metrics": metrics})]) + "\n")
    with pytest.raises(PanningError, match=reason):
        train_agent(config(), tmp_path)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ([{"mix": "snip"}], "at least 2"),
        ([{"mix": "snip"}, {"mix": "magnitude"}], "'magnitude': .*is not among the action's indices"),
        ([{"mix": "snip"}, {"mix": "snip", "quotas": "erk"}], "is not among the action's levers"),
        ([{"mix": "snip"}, {"mix": "synflow", "n_rounds": 10}], "takes env.n_rounds rounds"),
        ([{"mix": "snip"}, {"mix": "snip"}], "named twice"),
    ],
)
def test_an_action_that_the_agent_cannot_take_is_refused(start: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(AgentConfig, {"env": ENV, "ppo": {**PPO, "start": start}}, "the config")


def ends_its_worker_once(env: Any, item: Path) -> str:
    """Ends the process that calls it, where the item's file is missing; the next call finds the file."""
    if not item.exists():
        item.write_text("")
        os._exit(1)
    return f"{type(env).__name__} {item.name}"


def test_whichever_worker_is_free_takes_the_next_item_and_one_that_dies_loses_none(
    tmp_path: Path, local_ray: None
) -> None:
    from panning.agents.ray_vec_env import RayVecEnv

    items = [tmp_path / str(number) for number in range(5)]
    for item in items[1:]:
        item.write_text("")
    envs = RayVecEnv([training.partial(training._make_env, config().env, config().source)] * 2, 2)
    found = dict(envs.each(ends_its_worker_once, items))
    envs.close()
    assert found == {number: f"PanningEnv {number}" for number in range(5)}
    assert isinstance(training._make_envs(config(), 0), DummyVecEnv)
