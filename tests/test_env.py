"""The Gymnasium environment: the checkers, one trajectory per seed, rewards, endings, pictures."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_checker import check_env

import panning  # noqa: F401 (registers the environment)
from panning.envs import PanningEnv, RewardSpec
from panning.envs.ending import ENDING_TERMS, ending_reward, ending_terms
from panning.episode.actions import ActionSpec
from panning.episode.episode import initial, transition
from panning.episode.observations import STANDARD
from panning.episode.policies import make_policy
from panning.episode.round_reward import ROUND_TERMS, round_reward, round_terms
from panning.foundation.errors import ArgumentError, ConfigError
from panning.pruners.rounds import RoundAction
from panning.tasks import TaskSpec, load_task

TASK = {"model": "mlp", "data": "digits", "n_train": 200}
SHORT = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05}


def make(**arguments: Any) -> PanningEnv:
    return PanningEnv(**{"tasks": [TASK], "n_rounds": 3, **arguments})


@pytest.mark.parametrize("form", ["mix", "pick"])
def test_the_checker_of_sb3_passes_without_a_warning(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("panning:Panning-v0", tasks=[TASK], action={"form": form}, render_mode="ansi")
        check_env(env.unwrapped)


def test_reset_options_fix_what_is_drawn() -> None:
    env = make(densities=[0.1], seeds=[0])
    _, info = env.reset(seed=1, options={"seed": 5, "density": 0.02})
    assert (info["seed"], info["target_density"], info["task"]) == (5, 0.02, 0)
    with pytest.raises(ConfigError, match="Unknown reset options"):
        env.reset(options={"sed": 5})
    with pytest.raises(ConfigError, match="Task 3 does not exist"):
        env.reset(options={"task": 3})


def test_the_episode_ends_on_the_target_and_then_wants_a_reset() -> None:
    env = make(densities=[0.05])
    with pytest.raises(ConfigError, match="reset"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    action = make_policy("synflow", env.spec_of_action)(np.zeros(len(STANDARD), np.float32))
    endings = [env.step(action)[2] for _ in range(3)]
    assert endings == [False, False, True]
    assert env.state.n_kept == round(0.05 * env.state.mask.numel())
    with pytest.raises(ConfigError, match="over"):
        env.step(action)


def test_an_outside_limit_truncates() -> None:
    env = gymnasium.make("panning:Panning-v0", tasks=[TASK], n_rounds=5, max_episode_steps=2)
    env.reset(seed=0)
    action = make_policy("synflow", ActionSpec())(np.zeros(len(STANDARD), np.float32))
    assert env.step(action)[2:4] == (False, False)
    assert env.step(action)[2:4] == (False, True)


def test_reward_terms_are_the_papers_with_fixed_normalisers() -> None:
    state = initial(load_task(TaskSpec.model_validate(TASK), 0).problem, 0.02, 4)
    assert set(round_terms(state).values()) == {0.0}
    state = transition(state, RoundAction({"snip": 1.0}, 0.05))
    terms = round_terms(state)
    assert terms["alive"] == pytest.approx(state.effective_density / state.density - 1)
    assert terms["loss"] == pytest.approx(-abs(state.signals.loss - state.dense_loss) / state.dense_loss)
    assert -1.0 <= terms["gradient"] <= 0.0
    spec = RewardSpec(alive=2.0, loss=3.0, gradient=0.5)
    expected = (2 * terms["alive"] + 3 * terms["loss"] + 0.5 * terms["gradient"]) / 4
    assert round_reward(spec.weights(ROUND_TERMS), state) == pytest.approx(expected)


@pytest.mark.parametrize("left_out", ["training", "contest"])  # which both judge a short training
def test_every_term_has_a_weight_and_whatever_is_rewarded_is_told_and_logged(left_out: str) -> None:
    assert {*ROUND_TERMS, *ENDING_TERMS} <= set(RewardSpec.model_fields)
    rewarded = {term: 1.0 for term in ENDING_TERMS if term != left_out}
    spec = RewardSpec.model_validate({**rewarded, "recipe": SHORT, "against": {"rivals": [{"mix": "synflow"}]}})
    env = make(densities=[0.05], n_rounds=1, reward=spec)
    env.reset(seed=0)
    info = env.step(env.action_space.sample())[4]
    assert set(spec.figures) <= set(info) and set(spec.figures) > set(RewardSpec().figures) == set(ROUND_TERMS)


def test_a_dead_network_costs_the_rounds_it_did_not_see() -> None:
    task = load_task(TaskSpec.model_validate(TASK), 0)
    state = initial(task.problem, 0.002, 4)
    state = transition(state, RoundAction({"random": 1.0}, 0.0003))
    assert state.is_dead
    alone = RewardSpec(alive=0.0, loss=0.0, gradient=0.0)
    assert round_reward(alone.weights(ROUND_TERMS), state) == pytest.approx(-3 / 4)


def test_a_mask_that_is_dead_at_the_target_is_mended_before_it_is_judged_and_one_that_died_before_is_not() -> None:
    task = load_task(TaskSpec.model_validate(TASK), 0)
    spec = RewardSpec.model_validate({"training": 1.0, "recipe": SHORT})
    dead = {}
    for n_rounds, density in ((1, 0.002), (4, 0.003)):
        state = transition(initial(task.problem, 0.002, n_rounds), RoundAction({"random": 1.0}, density, 1.0))
        assert state.is_dead and state.reached_target == (n_rounds == 1)
        dead[n_rounds] = state
    assert ending_terms(spec, task, dead[1])["images_seen"] > 0
    assert ending_terms(spec, task, dead[4])["accuracy"] == 0.1
    as_it_is = spec.model_copy(update={"all_alive": False})
    assert ending_terms(as_it_is, task, dead[1])["accuracy"] == 0.1


def test_the_training_reward_is_an_advantage_over_the_fixed_policy() -> None:
    reward = {"alive": 0, "loss": 0, "gradient": 0, "training": 10.0, "recipe": SHORT, "reference": "synflow"}
    env = make(densities=[0.05], reward=reward)
    env.reset(seed=0)
    action = make_policy("synflow", env.spec_of_action)(np.zeros(len(STANDARD), np.float32))
    rewards = [env.step(action) for _ in range(3)]
    info = rewards[-1][4]
    assert info["advantage"] == 0.0 and rewards[-1][1] == 0.0  # the reference itself, same batches
    assert 0.1 < info["accuracy"] <= 1.0 and info["images_seen"] == 192  # without the reference's
    env.reset(seed=0)
    magnitude = make_policy("magnitude_spread", env.spec_of_action)(np.zeros(len(STANDARD), np.float32))
    while not (outcome := env.step(magnitude))[2]:
        pass
    assert outcome[1] == pytest.approx(
        10.0 * outcome[4]["advantage"] + round_reward(env.spec_of_reward.weights(ROUND_TERMS), env.state)
    )
    assert outcome[4]["advantage"] < 0


def test_a_short_training_that_diverges_counts_as_guessing() -> None:
    spec = RewardSpec.model_validate({"training": 1.0, "recipe": {**SHORT, "learning_rate": 1e6}})
    task = load_task(TaskSpec.model_validate(TASK), 0)
    state = transition(initial(task.problem, 0.3, 1), RoundAction({"snip": 1.0}, 0.3))
    terms = ending_terms(spec, task, state)
    assert terms["accuracy"] == 0.1 and terms["images_seen"] == 0


def test_the_cost_is_the_share_of_multiply_adds_that_compaction_leaves() -> None:
    """By hand: an MLP of 64-256-128-10, of which the mask leaves 2-2-1-10: inputs that nothing reads go, too."""
    task = load_task(TaskSpec.model_validate(TASK), 0)
    layout = task.problem.layout
    mask = torch.zeros(layout.n_prunable, dtype=torch.bool)
    first, second, last = layout.views(mask).values()
    first[0, 3] = first[7, 9] = second[5, 0] = second[5, 7] = last[4, 5] = True
    second[6, 0] = True  # a unit that nothing reads
    state = initial(task.problem, 0.5, 1)
    state = dataclasses.replace(state, mask=mask, scores=task.problem.weight.abs())
    spec = RewardSpec(cost=3.0, all_alive=False)
    terms = ending_terms(spec, task, state)
    assert terms == {"cost": pytest.approx((2 * 2 + 2 * 1 + 1 * 10) / layout.n_prunable)}
    assert ending_reward(spec, terms) == pytest.approx(-3.0 * terms["cost"])
    dead = dataclasses.replace(state, alive=torch.zeros_like(state.mask))
    assert ending_terms(spec, task, dead) == {"cost": 1.0}


def test_the_cost_is_in_the_reward_of_the_last_round() -> None:
    plain, dear = make(densities=[0.01]), make(densities=[0.01], reward={"cost": 2.0})
    action = make_policy("synflow", plain.spec_of_action)(np.zeros(len(STANDARD), np.float32))
    outcomes = []
    for env in (plain, dear):
        env.reset(seed=0)
        while not (outcome := env.step(action))[2]:
            assert "cost" not in outcome[4]
        outcomes.append(outcome)
    cost = outcomes[1][4]["cost"]
    assert 0.0 < cost < 1.0 and outcomes[1][1] == pytest.approx(outcomes[0][1] - 2.0 * cost)


def test_episodes_are_shown_as_text_and_as_pictures() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    text = env.render()
    assert "classifier.weight" in text and "round 1: density" in text
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8 and picture.std() > 0


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        make(densities=[])
    with pytest.raises(
        ArgumentError, match=r"^panning.envs.PanningEnv takes no sparsity. Pass densities: 0.1 keeps 10 %"
    ):
        PanningEnv(sparsity=0.9)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match=r"^panning.envs.PanningEnv takes no rounds. Pass n_rounds"):
        gymnasium.make("panning:Panning-v0", rounds=3)
    with pytest.raises(ArgumentError, match=r"Unknown argument 'task'. Did you mean 'tasks'"):
        PanningEnv(task="mlp/digits")  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match=r"takes tasks, densities, seeds, n_rounds by place"):
        PanningEnv(None, (0.1,), (0,), 2, 3)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="render mode"):
        make(render_mode="human")
    with pytest.raises(ConfigError, match=r"Did you mean 'model'"):
        PanningEnv(tasks=[{"modle": "mlp", "data": "digits"}])
    with pytest.raises(ConfigError, match=r"Did you mean 'progress'"):
        make(observations=["loss", "progres"])
    with pytest.raises(ConfigError, match="named twice"):
        make(observations=["loss", "loss"])
    with pytest.raises(ConfigError, match=r"reward.*\n.*reference"):
        make(reward={"reference": "synflo"})
