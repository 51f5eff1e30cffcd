"""What must hold for every environment that an agent is trained on."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

Env = gymnasium.Env[Any, Any]


class EnvContract:
    """A suite for one environment; the fixture ``env`` gives a fresh one, which draws its episodes from several.

    Gymnasium's checker tries other render modes only where ``gymnasium.make`` has made it.
    """

    @pytest.fixture
    def env(self) -> Env:
        raise NotImplementedError("a subclass gives the environment")

    def test_gymnasiums_checker_passes_without_a_warning(self, env: Env) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env)

    def test_one_seed_gives_one_trajectory(self, env: Env) -> None:
        first = trajectory(env, 7)
        assert first == trajectory(env, 7)
        assert first != trajectory(env, 8)


def trajectory(env: Env, seed: int) -> list[Any]:
    """All that random actions of a seed see, gain and are told in an episode."""
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    seen: list[Any] = [observation.tolist(), info]
    terminated = False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert not truncated, "an outside limit alone may truncate an episode"
        seen += [observation.tolist(), reward, info]
    return seen
