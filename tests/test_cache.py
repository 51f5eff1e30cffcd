"""Caches of results on disk, and the short trainings that are looked up there or given up early."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from panning.agents import AgentConfig, fastest, train_agent
from panning.envs import PanningEnv, RewardSpec, ending
from panning.foundation import cache as caches
from panning.foundation.cache import REWARDS, Cache
from panning.foundation.errors import ConfigError
from panning.masks.allocation import top_k
from panning.masks.masks import Masks
from panning.tasks import Task, TaskSpec, load_task
from panning.training import Recipe, short
from panning.training.loop import train_copy
from panning.training.short import Halving, judge

SPEC = {"model": "mlp", "data": "digits", "n_train": 200}
RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.05)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "of" / "somebody" / REWARDS)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of every short training; what a process remembers of references is forgotten."""
    seen: list[Any] = []

    def spy(*given: Any) -> Any:
        seen.append(given)
        return train_copy(*given)

    monkeypatch.setattr(short, "train_copy", spy)
    monkeypatch.setattr(ending, "_REFERENCES", {})
    return seen


def task_and_masks(density: float = 0.1) -> tuple[Task, Masks]:
    task = load_task(TaskSpec.model_validate(SPEC), 3)
    layout = task.problem.layout
    return task, Masks(layout, top_k(task.problem.weight.abs(), int(density * layout.n_prunable)))


# --- the file ---


def test_a_value_is_found_by_all_that_was_asked_and_stays_what_it_was(cache: Cache) -> None:
    assert cache.get({"a": 1}) is None and not cache.path.exists() and len(cache) == 0
    cache.put({"a": 1, "b": [0.1]}, {"accuracy": 0.1 + 0.2})
    cache.put({"b": [0.1], "a": 1}, {"accuracy": 0.9})  # the same: what came first stays
    cache.put({"a": 1}, {"accuracy": 0.4})
    assert cache.get({"b": [0.1], "a": 1}) == {"accuracy": 0.1 + 0.2} and len(cache) == 2
    assert cache.get({"a": 1, "b": [0.10000001]}) is None


def test_the_oldest_entries_go_first(cache: Cache) -> None:
    small = Cache(cache.path, max_entries=3)
    for number in range(5):
        small.put({"n": number}, {"x": number})
    assert [small.get({"n": number}) for number in range(5)] == [None, None, {"x": 2}, {"x": 3}, {"x": 4}]
    assert len(small) == 3


def test_processes_that_write_at_once_lose_nothing(cache: Cache) -> None:
    code = (
        "import sys; from pathlib import Path; from panning.foundation.cache import Cache\n"
        "cache, me = Cache(Path(sys.argv[1])), int(sys.argv[2])\n"
        "for n in range(40):\n"
        "    cache.put({'n': n}, {'x': n}); cache.put({'n': n, 'of': me}, {'x': me})\n"
        "    assert cache.get({'n': n}) == {'x': n}\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(cache.path)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(cache) == 40 + 4 * 40 and cache.get({"n": 39, "of": 2}) == {"x": 2}


def test_a_file_that_is_no_cache_costs_time_alone(cache: Cache) -> None:
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.warns(UserWarning, match=r"rewards.sqlite cannot be used \(DatabaseError.*PANNING_CACHE"):
        assert cache.get({"a": 1}) is None
    cache.put({"a": 1}, {"x": 1})  # told once
    assert cache.get({"a": 1}) is None


def test_an_entry_that_is_no_figure_is_no_answer(cache: Cache, trainings: list[Any]) -> None:
    task, masks = task_and_masks()
    expected = judge(task, masks, RECIPE, cache)
    with sqlite3.connect(cache.path) as connection:
        connection.execute("""UPDATE entries SET value = '{"accuracy": "1.0", "images_seen": 5}'""")
    assert judge(task, masks, RECIPE, cache) == expected and len(trainings) == 2


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PANNING_CACHE": "off"}, None),
        ({"PANNING_CACHE": "/somewhere", "XDG_CACHE_HOME": "/other"}, "/somewhere"),
        ({"XDG_CACHE_HOME": "/other"}, "/other/panning"),
        ({"HOME": "/home/me"}, "/home/me/.cache/panning"),
    ],
)
def test_the_folder_is_the_users_or_the_one_that_is_named(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PANNING_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert caches.cache_folder() == (None if expected is None else Path(expected))


def test_another_state_of_the_code_finds_nothing(
    cache: Cache, trainings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, masks = task_and_masks()
    judge(task, masks, RECIPE, cache)
    judge(task, masks, RECIPE, cache)
    assert len(trainings) == 1
    monkeypatch.setattr(caches, "source_digest", lambda: "another")
    judge(task, masks, RECIPE, cache)
    assert len(trainings) == 2


# --- short trainings ---


def test_a_mask_is_trained_once_for_each_recipe_seed_and_data(cache: Cache, trainings: list[Any]) -> None:
    task, masks = task_and_masks()
    cold = judge(task, masks, RECIPE, cache)
    assert judge(task, masks, RECIPE, cache) == cold == judge(task, masks, RECIPE) and len(trainings) == 2
    assert cold.images_seen == 400 and cold.accuracy > 0.3
    others = [
        (task_and_masks(0.2)[0], task_and_masks(0.2)[1], RECIPE),
        (task, masks, RECIPE.model_copy(update={"learning_rate": 0.04})),
        (load_task(TaskSpec.model_validate(SPEC), 4), masks, RECIPE),
        (load_task(TaskSpec.model_validate({**SPEC, "n_train": 220}), 3), masks, RECIPE),
    ]
    for number, other in enumerate(others, start=3):
        judge(*other, cache)
        assert len(trainings) == number


def test_a_training_that_diverges_is_tried_once(cache: Cache, trainings: list[Any]) -> None:
    task, masks = task_and_masks()
    wild = RECIPE.model_copy(update={"learning_rate": 1e6})
    assert judge(task, masks, wild, cache) == judge(task, masks, wild, cache) == judge(task, None, wild, cache)
    assert len(trainings) == 1


def test_a_network_of_the_callers_own_is_never_kept(cache: Cache, trainings: list[Any]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task = load_task(TaskSpec(model=net, data="digits", n_train=200), 0)
    masks = Masks.dense(task.problem.layout)
    judge(task, masks, RECIPE, cache)
    judge(task, masks, RECIPE, cache)
    assert len(trainings) == 2 and not cache.path.exists()


def agent(**reward: Any) -> AgentConfig:
    env = {
        "tasks": [SPEC], "densities": [0.05], "seeds": [5, 6], "n_rounds": 2,
        "reward": {"training": 10.0, "recipe": RECIPE.model_dump(mode="json"), **reward},
    }  # fmt: skip
    ppo = {"n_rollouts": 2, "n_envs": 2, "n_steps": 4, "batch_size": 4, "n_epochs": 2}
    return AgentConfig.model_validate({"env": env, "ppo": ppo})


def test_an_agent_ends_with_the_same_bytes_whatever_the_cache_knows(
    tmp_path: Path, trainings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "cache"

    def policy(name: str, cache: Path | None) -> tuple[bytes, int]:
        trainings.clear()
        monkeypatch.setattr(ending, "_REFERENCES", {})
        train_agent(agent(), tmp_path / name, cache=cache)
        return (tmp_path / name / "policy.safetensors").read_bytes(), len(trainings)

    without, n_trained = policy("without", None)
    assert n_trained == 2 * 2 * 2 + 2  # two episodes of two environments in two rollouts; a reference for each seed
    assert policy("cold", kept) == (without, n_trained)
    assert policy("warm", kept) == (without, 0)
    # killed in the second rollout: what is trained again is looked up
    checkpoint = tmp_path / "killed"
    shutil.copytree(tmp_path / "cold", checkpoint)
    for name in ("policy.safetensors", "agent.safetensors"):
        (checkpoint / name).unlink()
    assert policy("killed", kept) == (without, 0)
    assert [(tmp_path / name / REWARDS).exists() for name in ("cache", "cold", "warm")] == [True, False, False]


def test_an_environment_keeps_nothing_unless_it_is_told_where(tmp_path: Path, trainings: list[Any]) -> None:
    arguments: dict[str, Any] = {"tasks": [SPEC], "n_rounds": 1, "reward": agent().env.reward}
    action = [1, -1, -1, -1, 1, -1]
    rewards = []
    for cache, expected in ((None, 2), (tmp_path, 2), (tmp_path, 0)):
        trainings.clear()
        ending._REFERENCES.clear()
        env = PanningEnv(**arguments, cache=cache)
        env.reset(seed=0)
        rewards.append(env.step(torch.tensor(action, dtype=torch.float32).numpy())[1])
        assert len(trainings) == expected
    assert len(set(rewards)) == 1


# --- the faster precision ---


def test_the_faster_precision_is_measured_once_and_kept(
    tmp_path: Path, trainings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = agent(fastest=True)
    assert "fastest" not in agent().env.reward.model_dump(mode="json")  # agents that exist keep their identity
    monkeypatch.setattr(fastest, "measured", lambda config: {"float32": 0.2, "bfloat16": 0.1})
    policy = train_agent(settings, tmp_path / "first", cache=None)
    assert policy.facts["precision"] == "bfloat16" and {given[2].precision for given in trainings} == {"bfloat16"}
    choice = tmp_path / "first" / fastest.CHOICE
    assert json.loads(choice.read_text())["cpu_ms_of_a_step"] == {"float32": 25.0, "bfloat16": 12.5}

    def slower(config: AgentConfig) -> dict[str, float]:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(fastest, "measured", slower)
    (tmp_path / "first" / "agent.safetensors").unlink()  # killed before the first checkpoint
    before = (tmp_path / "first" / "policy.safetensors").read_bytes()
    train_agent(settings, tmp_path / "first", cache=None)
    assert (tmp_path / "first" / "policy.safetensors").read_bytes() == before
    choice.write_text('{"precision": "float8"}')
    with pytest.raises(ConfigError, match=r"precision.json is damaged .*float8"):
        train_agent(settings, tmp_path / "first", cache=None)


def test_both_precisions_are_timed_by_steps_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def spy(task: Task, masks: Masks | None, recipe: Recipe, seed: int) -> None:
        seen.append(recipe)

    monkeypatch.setattr(fastest, "train_copy", spy)
    times = fastest.measured(agent())
    assert set(times) == {"float32", "bfloat16"} and min(times.values()) >= 0
    assert [recipe.precision for recipe in seen] == ["float32", "bfloat16"] * (1 + fastest.N_TURNS)
    assert {(recipe.batch_size, recipe.n_images) for recipe in seen} == {(20, 20 * fastest.N_STEPS)}


# --- halving ---


def test_a_look_changes_nothing_of_a_training_that_goes_on() -> None:
    task, masks = task_and_masks()
    plain = judge(task, masks, RECIPE)
    looked = judge(task, masks, RECIPE, None, Halving(share=0.25, n_images=50), at_least=0.0)
    assert (looked.accuracy, looked.images_seen) == (plain.accuracy, plain.images_seen)
    assert plain.at_look is None and not looked.ended
    assert looked.at_look is not None and 0.05 < looked.at_look < plain.accuracy


def test_a_training_that_lags_behind_is_given_up_at_the_look(cache: Cache, trainings: list[Any]) -> None:
    task, masks = task_and_masks()
    halving = Halving(share=0.25, n_images=50)
    whole = judge(task, masks, RECIPE, None, halving)
    assert whole.at_look is not None
    ended = judge(task, masks, RECIPE, cache, halving, at_least=whole.at_look + 0.01)
    assert ended.ended and ended.accuracy == ended.at_look == whole.at_look
    assert ended.images_seen == 5 * 20  # a quarter of 2 epochs of 10 steps
    assert judge(task, masks, RECIPE, cache, halving, at_least=whole.at_look + 0.01) == ended and len(trainings) == 2
    assert judge(task, masks, RECIPE, cache, halving, at_least=whole.at_look) == whole and len(trainings) == 3


def test_the_advantage_of_a_mask_that_is_given_up_is_the_one_at_the_look(trainings: list[Any]) -> None:
    halving = {"share": 0.5, "n_images": 100, "margin": 0.05}
    spec = RewardSpec.model_validate({**agent(halving=halving).env.reward.model_dump(mode="json")})
    assert "halving" not in agent().env.reward.model_dump(mode="json")  # agents that exist keep their identity
    task, masks = task_and_masks(0.05)
    empty = torch.zeros_like(masks.flat)
    empty[: masks.n_kept] = True  # in the first layer alone: nothing is learned
    result = ending.PruneResult(masks.layout, empty, task.problem.weight.abs())
    plain = spec.model_copy(update={"all_alive": False})
    final = ending.Final(task, masks.density, result, plain, 2)
    figures = ending.training(final)
    reference = ending.reference(final, spec.reference)
    assert reference.at_look is not None and reference.images_seen == 400 and figures["images_seen"] == 200
    assert figures["advantage"] < -0.05 and figures["accuracy"] == reference.accuracy + figures["advantage"]
    at_look = short.judge(task, Masks(masks.layout, empty), RECIPE, None, spec.halving).at_look
    assert at_look is not None and figures["advantage"] == at_look - reference.at_look
