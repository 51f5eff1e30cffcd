"""The reward beside several fixed policies: its unit, what it trains and how often, and that it rewards what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import panning
from panning.agents import AgentConfig
from panning.agents.train import train_agent
from panning.envs import PanningEnv, RewardSpec, ending
from panning.envs.contest import STANDARD_RIVALS, Contest
from panning.episode.episode import run_policy
from panning.episode.levers import Levers
from panning.foundation.cache import REWARDS, Cache
from panning.foundation.config import parse_config
from panning.foundation.errors import ConfigError
from panning.foundation.records import content_key
from panning.jobs.levers import LeverAction
from panning.pruners import make_all_alive
from panning.tasks import TaskSpec, load_task
from panning.training import Recipe, short

SPEC = TaskSpec(model="mlp:16", data="digits", n_train=200)
RIVALS: list[dict[str, Any]] = [
    {"mix": "magnitude", "quotas": "erk", "spread": 1, "start": "gain"}, {"mix": "synflow", "n_rounds": 2}, {"mix": "snip"},
]  # fmt: skip
REWARD: dict[str, Any] = {
    "alive": 0, "loss": 0, "gradient": 0, "contest": 2.0, "n_steps": 7, "against": {"rivals": RIVALS},
    "recipe": {"batch_size": 50, "learning_rate": 0.05},
}  # fmt: skip


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of the trainings that ran; references of other tests are forgotten."""
    ending._REFERENCES.clear()
    seen: list[Any] = []
    train = short.train_copy

    def counted(*args: Any) -> Any:
        seen.append(args)
        return train(*args)

    monkeypatch.setattr(short, "train_copy", counted)
    return seen


def env_of(cache: Path | None = None, **keys: Any) -> PanningEnv:
    action = {"quotas": ["erk"], "start": True}
    return PanningEnv([SPEC], [0.1, 0.2], [0, 1], n_rounds=1, action=action, reward={**REWARD, **keys}, cache=cache)


# --- the score ---


def test_the_unit_is_the_distance_from_the_best_to_the_middle() -> None:
    contest = Contest(floor=0.02, most=3)
    for accuracy, rivals, score in [
        (0.9, [0.5, 0.9, 0.7], 0.0),  # as the best
        (0.7, [0.5, 0.9, 0.7], -1.0),  # as the one in the middle
        (1.0, [0.5, 0.9, 0.7], 0.5),
        (0.8, [0.9, 0.7, 0.1, 0.9], -1.0),  # the middle of four is between two: 0.8
        (0.89, [0.9, 0.9, 0.9], -0.5),  # no less than the floor
        (0.91, [0.9], 0.5),
        (0.1, [0.9, 0.9], -3.0),
        (1.0, [0.5, 0.5], 3.0),
    ]:
        assert contest.score(accuracy, rivals) == pytest.approx(score), (accuracy, rivals)


def test_rivals_that_do_not_go_are_refused() -> None:
    for keys, said in [
        ({"rivals": []}, "rivals"),
        ({"rivals": [RIVALS[0], RIVALS[0]]}, "named twice"),
        ({"rivals": [{"mix": "snap"}]}, "Unknown"),
        ({"floor": 0}, "floor"),
    ]:
        with pytest.raises(ConfigError, match=said):
            parse_config(RewardSpec, {"contest": 1, "against": keys}, "it")
    with pytest.raises(ConfigError, match="training and contest both judge"):
        RewardSpec(contest=1.0, training=1.0)
    with pytest.raises(ConfigError, match="halving gives a training up"):
        RewardSpec(contest=1.0, halving={})


def test_rewards_of_before_keep_their_json() -> None:
    assert not {"contest", "against", "n_steps"} & set(RewardSpec(training=1.0).model_dump(mode="json"))
    assert content_key(RewardSpec().model_dump(mode="json")) == "875b5e08dd1cea21347e"
    spec = parse_config(RewardSpec, REWARD, "it")
    assert spec.model_dump(mode="json")["against"]["floor"] == 0.02
    assert parse_config(RewardSpec, spec.model_dump(mode="json"), "again") == spec


def test_levers_are_known_by_what_they_were() -> None:
    asked = {"mix": "snip + synflow", "quotas": "0.7 erk + 0.3 own", "start": "gain"}
    assert content_key(LeverAction(policy="levers", **asked).model_dump(mode="json")) == "68835b7cf9cb192ac157"
    assert "policy" not in Levers(**asked).model_dump()


# --- what is trained ---


def test_a_mask_is_compared_with_the_same_trainings_of_its_rivals(trainings: list[Any]) -> None:
    env = env_of()
    env.reset(seed=0, options={"seed": 1, "density": 0.2})
    action = env.spec_of_action.encode({"snip": 1.0}, quotas={"erk": 0.5}, start="gain")
    _, reward, terminated, _, info = env.step(action)
    assert terminated and len(trainings) == 4
    assert {task.problem.seed for task, *_ in trainings} == {1}  # the seed of the weights and of the order
    assert [recipe.start and recipe.start.text for _, _, recipe, *_ in trainings] == ["gain", None, None, "gain"]
    assert {recipe.epochs for _, _, recipe, *_ in trainings} == {7 / 4}  # 4 steps are an epoch of 200 images
    assert info["images_seen"] == 7 * 50
    task, spec = load_task(SPEC, 1), env.spec_of_reward
    accuracies = []
    for levers in spec.against.rivals:
        result = make_all_alive(task.problem, levers.mask_of(task.problem, 0.2))
        recipe = spec.recipe_on(200) if levers.start == "none" else spec.recipe_on(200).starting("gain", "it")
        accuracies.append(short.judge(task, result.masks, recipe).accuracy)
    assert info["advantage"] == info["accuracy"] - max(accuracies)
    assert info["score"] == spec.against.score(info["accuracy"], accuracies)
    assert reward == pytest.approx(2.0 * info["score"]) and reward != 0


def test_who_acts_as_the_best_rival_has_nothing_to_lose(trainings: list[Any]) -> None:
    env = env_of(against={"rivals": [{"mix": "snip", "quotas": "erk"}, {"mix": "magnitude", "n_rounds": 2}]})
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.spec_of_action.encode({"snip": 1.0}, quotas={"erk": 1.0}))
    final = ending.Final(load_task(SPEC, info["seed"]), info["target_density"], None, env.spec_of_reward, 1)
    of_rivals = [ending.reference(final, levers).accuracy for levers in env.spec_of_reward.against.rivals]
    assert len(trainings) == 3 and info["accuracy"] == of_rivals[0]
    assert reward == (0.0 if of_rivals[0] >= of_rivals[1] else 2 * info["score"]) and reward <= 0


def test_rivals_are_trained_once(trainings: list[Any], tmp_path: Path) -> None:
    rewards = []
    for cache in (tmp_path, tmp_path, None):
        env = env_of(cache)
        env.reset(seed=0, options={"seed": 0, "density": 0.1})
        rewards.append(env.step(env.spec_of_action.encode({"synflow": 1.0}))[1])
        rewards.append(rewards[-1])
        env.reset(seed=1, options={"seed": 0, "density": 0.1})
        assert env.step(env.spec_of_action.encode({"magnitude": 1.0}))[2]
    # three rivals and two masks; the second environment finds all on disk, the third rivals in memory
    assert len(trainings) == 5 + 0 + 2 and len(set(rewards)) == 1
    ending._REFERENCES.clear()  # another process
    env = env_of(tmp_path)
    env.reset(seed=0, options={"seed": 0, "density": 0.1})
    env.step(env.spec_of_action.encode({"synflow": 1.0}))
    assert len(trainings) == 7 and len(Cache(tmp_path / REWARDS)) == 8  # five masks, and three by the rivals' names


def test_the_mask_of_a_rival_is_trained_once_whoever_makes_it(trainings: list[Any], tmp_path: Path) -> None:
    env = env_of(tmp_path)
    env.reset(seed=0, options={"seed": 0, "density": 0.1})
    *_, info = env.step(env.spec_of_action.encode({"snip": 1.0}))  # the third rival's
    final = ending.Final(load_task(SPEC, 0), 0.1, None, env.spec_of_reward, 1)
    assert info["accuracy"] == ending.reference(final, env.spec_of_reward.against.rivals[2]).accuracy
    assert len(trainings) == 3


def test_a_dead_network_scores_as_guessing(trainings: list[Any]) -> None:
    env = env_of()
    dead = ending.Final(load_task(SPEC, 0), 0.2, None, env.spec_of_reward, 1)
    figures = ending.contest(dead)
    assert figures["accuracy"] == 0.1 and figures["images_seen"] == 0 and len(trainings) == 3
    assert figures["score"] < -1 and figures["advantage"] < -0.1


def test_steps_are_the_same_whatever_the_number_of_images() -> None:
    spec = RewardSpec(n_steps=30, recipe=Recipe(batch_size=20, n_images=100, epochs=5))
    assert spec.recipe_on(1000).epochs == 6.0 and spec.recipe_on(40).epochs == 15.0
    assert RewardSpec(recipe=spec.recipe).recipe_on(40) == spec.recipe


def test_one_round_is_deployed_as_it_was_trained(tmp_path: Path) -> None:
    """A contextual bandit: the mask that the reward judged is the one that panning.prune makes."""
    env = {
        "tasks": [SPEC.model_dump(mode="json")], "densities": [0.1, 0.2], "seeds": [0], "n_rounds": 1,
        "action": {"quotas": ["erk"], "balance": True, "start": True}, "observations": ["kept_fan_in", "network_depth"],
    }  # fmt: skip
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    policy = train_agent(parse_config(AgentConfig, {"env": env, "ppo": ppo}, "it"), tmp_path, cache=None)
    shell = PanningEnv([SPEC], [0.1], [0], n_rounds=1, action=policy.spec, observations=policy.observations)
    observation, _ = shell.reset(seed=0)
    *_, terminated, _, info = shell.step(policy(observation))
    result, actions = run_policy(load_task(SPEC, 0).problem, 0.1, policy, policy.spec, policy.n_rounds)
    assert terminated and len(actions) == 1 and torch.equal(result.mask, info["masks"].flat)
    assert result.start == info["masks"].manifest["start"]
    task = load_task(SPEC, 0)
    masks = panning.prune(task.network(), task.problem.batch(0), density=0.1, policy=tmp_path / "policy.safetensors")
    assert masks.n_kept == result.masks.n_kept and masks.manifest["start"] == result.start


def test_who_sees_nothing_takes_one_action(tmp_path: Path) -> None:
    """The twin that says what seeing is worth: rounds_left is 1 in every episode of one round."""
    env = {"tasks": [SPEC.model_dump(mode="json")], "densities": [0.1], "seeds": [0], "n_rounds": 1}
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    config = parse_config(AgentConfig, {"env": env | {"observations": ["rounds_left"]}, "ppo": ppo}, "it")
    policy = train_agent(config, tmp_path, cache=None)
    other = TaskSpec(model="plain:4-6", data="digits", n_train=200)
    taken = [
        run_policy(load_task(task, 0).problem, d, policy, policy.spec, 1)[1] for task, d in ((SPEC, 0.1), (other, 0.5))
    ]
    assert np.array_equal(taken[0], taken[1])


def test_an_agent_is_trained_by_contests(tmp_path: Path) -> None:
    env = {"tasks": [SPEC.model_dump(mode="json")], "densities": [0.1], "seeds": [0], "n_rounds": 1, "reward": REWARD}
    ppo = {"n_rollouts": 2, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    config = parse_config(AgentConfig, {"env": env, "ppo": ppo}, "it")
    rollouts: list[dict[str, Any]] = []
    policy = train_agent(config, tmp_path, cache=None, listen=lambda event: rollouts.append(dict(event.facts)))
    told = [figures for figures in rollouts if "score" in figures]
    assert len(told) == 2 and all(np.isclose(one["reward"], 2 * one["score"]) for one in told)
    assert policy.facts["images_seen"] == 2 * 4 * 7 * 50
    assert {levers.start for levers in STANDARD_RIVALS if levers.spread == 1} == {"none", "gain"}
    assert len(STANDARD_RIVALS) == 5  # one of which is the median
