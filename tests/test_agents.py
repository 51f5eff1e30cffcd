"""Agents: they learn, resume to the same policy, do not depend on workers, and load without pickle."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from panning.agents import AgentConfig, train_agent
from panning.agents import train as training
from panning.agents.config import EpisodeSpec
from panning.agents.rollouts import read_rollouts
from panning.agents.saving import export_policy, load_agent, save_agent
from panning.envs import RewardSpec
from panning.episode.actions import ActionSpec
from panning.episode.observations import STANDARD
from panning.episode.policy_net import load_policy
from panning.foundation.errors import ConfigError, OutputError, PolicyError
from panning.foundation.files import sole_writer
from panning.foundation.progress import Event

TASK = {"model": "mlp", "data": "digits", "n_train": 200}


def config(**ppo: Any) -> AgentConfig:
    env = {"tasks": [TASK], "densities": [0.05], "seeds": [5, 6], "n_rounds": 2}
    return AgentConfig.model_validate({
        "env": env, "ppo": {"n_rollouts": 3, "n_envs": 2, "n_steps": 4, "batch_size": 4, "n_epochs": 2, **ppo},
    })  # fmt: skip


class Aim(gymnasium.Env[Any, Any]):
    """One step: the reward is how near the action is to a target shown in the observation."""

    def __init__(self, spec: ActionSpec) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (len(STANDARD),), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(spec.dimensions),), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.target = np.float32(self.np_random.choice([-0.5, 0.5]))
        return np.full(self.observation_space.shape, self.target, np.float32), {}

    def step(self, action: Any) -> Any:
        reward = -float(np.abs(action - self.target).mean())
        return np.zeros(self.observation_space.shape, np.float32), reward, True, False, {}


def test_ppo_beats_the_random_policy_on_a_toy_problem() -> None:
    spec = ActionSpec(indices=("snip",))
    settings = config(n_steps=32, n_envs=2, batch_size=32, n_epochs=10, learning_rate=3e-3)
    with training.isolated_global_rngs(0):
        model = training._build(settings, DummyVecEnv([lambda: Aim(spec)] * 2))
        model.learn(1500)
    policy = export_policy(model, EpisodeSpec(action=spec), {})

    def mean_reward(act: Any) -> float:
        rewards = []
        env = Aim(spec)
        for seed in range(40):
            observation, _ = env.reset(seed=seed)
            rewards.append(env.step(act(observation))[1])
        return float(np.mean(rewards))

    rng = np.random.default_rng(0)
    assert mean_reward(lambda _: rng.uniform(-1, 1, 3)) < -0.4
    assert mean_reward(policy) > -0.15


@pytest.mark.parametrize("form", ["mix", "pick"])
def test_the_exported_network_acts_as_the_agent(form: str, tmp_path: Path) -> None:
    settings = config()
    env = settings.env.model_copy(update={"action": ActionSpec(form=form)})  # type: ignore[arg-type]
    settings = settings.model_copy(update={"env": env})
    train_agent(settings, tmp_path)
    envs = training._make_envs(settings, 0)
    model = training._build(settings, envs)
    load_agent(tmp_path / "agent.safetensors", model)
    policy = load_policy(tmp_path / "policy.safetensors")
    low, high = np.array([policy.seen[name] for name in STANDARD], np.float32).T
    for seed in range(5):
        observation = np.random.default_rng(seed).uniform(-1, 1, len(STANDARD)).astype(np.float32)
        expected, _ = model.predict(observation.clip(low, high), deterministic=True)
        np.testing.assert_allclose(policy(observation), expected, atol=1e-5)


def test_an_interrupted_training_ends_with_the_same_policy(tmp_path: Path) -> None:
    train_agent(config(), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if event.done == 2:
            raise Killed

    with pytest.raises(Killed):
        train_agent(config(), tmp_path / "cut", listen=kill)
    assert not (tmp_path / "cut" / "policy.safetensors").exists()
    train_agent(config(), tmp_path / "cut")
    names = ("policy.safetensors", "agent.safetensors")
    assert all((tmp_path / "cut" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)
    cut, whole = (read_rollouts(tmp_path / name / "rollouts.jsonl") for name in ("cut", "whole"))
    assert [record.metrics for record in cut] == [record.metrics for record in whole]
    assert len(cut) == 3 and list((tmp_path / "cut" / "logs").glob("*/progress.csv"))


@pytest.mark.ray
def test_workers_do_not_change_the_policy(tmp_path: Path, local_ray: None) -> None:
    """One of the two workers has two environments, the other one."""
    settings = config(n_envs=3, n_rollouts=2)
    train_agent(settings, tmp_path / "serial")
    train_agent(settings, tmp_path / "ray", n_workers=2)
    name = "policy.safetensors"
    assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


@pytest.mark.ray
def test_a_dead_rollout_worker_is_replaced_in_the_state_it_had(local_ray: None) -> None:
    import ray

    from panning.agents.ray_vec_env import RayVecEnv

    makers = [training.partial(training._make_env, config().env, config().source)] * 2
    envs, twin = RayVecEnv(makers, 2), DummyVecEnv(list(makers))
    for each in (envs, twin):
        each.seed(3)
    assert np.array_equal(envs.reset(), twin.reset())  # type: ignore[arg-type]
    action = np.zeros((2, 6), np.float32)
    for step in range(4):
        if step == 2:
            ray.kill(envs._workers[1])
        ours, theirs = envs.step(action), twin.step(action)
        assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])  # type: ignore[arg-type]
        assert np.array_equal(ours[2], theirs[2])
    envs.close()
    twin.close()


def test_two_trainings_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(OutputError, match="Another process writes to"):
        train_agent(config(), tmp_path)
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_a_checkpoint_of_more_rollouts_than_there_are_records_of_is_refused(tmp_path: Path) -> None:
    train_agent(config(), tmp_path)
    (tmp_path / "rollouts.jsonl").write_text("")
    with pytest.raises(PolicyError, match="agent.safetensors is of 3 rollouts, .*rollouts.jsonl has 0"):
        train_agent(config(), tmp_path)


def test_a_folder_holds_one_agent_only(tmp_path: Path) -> None:
    train_agent(config(n_rollouts=1), tmp_path)
    with pytest.raises(ConfigError, match="holds another run"):
        train_agent(config(n_rollouts=2), tmp_path)


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    settings = config(n_rollouts=1)
    train_agent(settings, tmp_path)
    for content in (b"\x80\x04junk", (tmp_path / "policy.safetensors").read_bytes(), b""):
        (tmp_path / "agent.safetensors").write_bytes(content)
        with pytest.raises(PolicyError, match="not a checkpoint of this agent"):
            train_agent(settings, tmp_path)


def test_an_agent_can_start_near_a_fixed_policy(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    settings = config(n_rollouts=1, start="synflow", learning_rate=1e-9)
    policy = train_agent(settings, tmp_path)
    action = replace(policy, seen={})(np.zeros(len(STANDARD), np.float32))
    np.testing.assert_allclose(action, [-0.8, -0.8, -0.8, 0.8, 0.0, -0.8], atol=1e-3)


def test_adam_survives_a_checkpoint(tmp_path: Path) -> None:
    settings = config(n_rollouts=1)
    envs = training._make_envs(settings, 0)
    with training.isolated_global_rngs(0):
        first, second = training._build(settings, envs), training._build(settings, envs)
        first.learn(8)
    save_agent(tmp_path / "a", first, {"rollouts": 1})
    assert load_agent(tmp_path / "a", second) == {"rollouts": 1}
    states = [model.policy.optimizer.state_dict()["state"] for model in (first, second)]
    assert states[0].keys() == states[1].keys() and states[0]
    assert all(torch.equal(states[0][i][k], states[1][i][k]) for i in states[0] for k in states[0][i])


def test_the_type_of_agent_is_stable_baselines3s_own() -> None:
    assert isinstance(training._build(config(), training._make_envs(config(), 0)), PPO)


def test_logs_have_the_figures_of_the_episodes_and_a_linear_schedule_lowers_the_rate(tmp_path: Path) -> None:
    settings = config(schedule="linear", target_kl=0.5, vf_coef=0.4, max_grad_norm=0.3, learning_rate=0.003)
    reward = {"training": 1.0, "recipe": {"epochs": 1, "n_images": 50, "batch_size": 25}}
    env = settings.env.model_copy(update={"reward": RewardSpec.model_validate(reward)})
    train_agent(settings.model_copy(update={"env": env}), tmp_path)
    with open(next((tmp_path / "logs").glob("*/progress.csv"))) as file:
        rows = list(csv.DictReader(file))
    figures = ("panning/advantage", "panning/effective_density", "panning/alive", "panning/accuracy")
    assert len(rows) == 3 and all(row[name] for row in rows for name in figures)
    assert [float(row["train/learning_rate"]) for row in rows[1:]] == pytest.approx([0.003, 0.002])
    assert list((tmp_path / "logs").glob("*/events.*"))


def test_settings_that_came_later_are_not_said_where_they_are_as_before() -> None:
    later = {"schedule", "vf_coef", "max_grad_norm", "target_kl"}
    assert not later & set(config().model_dump(mode="json")["ppo"])
    assert config(target_kl=0.1).model_dump(mode="json")["ppo"]["target_kl"] == 0.1
    model = training._build(config(target_kl=0.1, vf_coef=0.4, max_grad_norm=0.3), training._make_envs(config(), 0))
    assert (model.target_kl, model.vf_coef, model.max_grad_norm) == (0.1, 0.4, 0.3)
