"""Agents on disk: safetensors + JSON, nothing pickled (``PPO.load`` of Stable-Baselines3 executes what a file says).

A checkpoint holds the policy's parameters and Adam's state; PPO itself is built from our config. The exported policy is a
plain network that the core runs without Stable-Baselines3 (``panning.episode.policy_net``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from stable_baselines3 import A2C, PPO

from panning.agents.config import EpisodeSpec
from panning.episode.policy_net import PolicyNet
from panning.episode.sb3_policy import actor_of, policy_of_agent
from panning.episode.shelf import Bounds
from panning.foundation.errors import PolicyError
from panning.foundation.files import write_atomic
from panning.foundation.tensorfile import DAMAGE, read_tensors
from panning.training.checkpoint import restore


def save_agent(path: Path, model: PPO, facts: dict[str, Any]) -> None:
    """Write parameters, optimizer state and ``facts`` (JSON-able), whole or not at all."""
    tensors = {f"policy.{name}": t.detach().contiguous() for name, t in model.policy.state_dict().items()}
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    write_atomic(path, save(tensors, {"panning_agent": json.dumps(facts, sort_keys=True)}))


def rollouts_done(path: Path) -> int:
    """After how many rollouts a checkpoint was written; 0 where there is none.

    Raises:
        PolicyError: if the file is broken.
    """
    if not path.exists():
        return 0
    try:
        return _rollouts(read_tensors(path, "panning_agent")[0])
    except DAMAGE as error:
        raise _no_checkpoint(path, error) from None


def _rollouts(facts: Any) -> int:
    if type(facts["rollouts"]) is not int or not 0 <= facts["rollouts"] <= 2**53:
        raise ValueError("it does not say after how many rollouts")
    return int(facts["rollouts"])


def _no_checkpoint(path: Path, error: Exception) -> PolicyError:
    return PolicyError(f"{path} is not a checkpoint of this agent; delete it to train again ({error}).")


def load_agent(path: Path, model: PPO) -> dict[str, Any]:
    """Put a checkpoint into a ``model`` built from the same config; returns the facts.

    Raises:
        PolicyError: if the file is broken or was made by another config.
    """
    facts: dict[str, Any]
    try:
        facts, tensors = read_tensors(path, "panning_agent")
        _rollouts(facts)
        restore(tensors, "policy.", model.policy, model.policy.optimizer)
    except DAMAGE as error:
        raise _no_checkpoint(path, error) from None
    return facts


def export_policy(
    model: PPO | A2C,
    episode: EpisodeSpec | None = None,
    facts: dict[str, Any] | None = None,
    seen: Mapping[str, Bounds] | None = None,
) -> PolicyNet:
    """The actor of a PPO or A2C agent as a plain network, which ``panning.prune(policy=...)`` takes.

    >>> from stable_baselines3 import A2C
    >>> from panning.agents import export_policy, save_policy
    >>> from panning.envs import PanningEnv
    >>> agent = A2C("MlpPolicy", PanningEnv(densities=[0.05], n_rounds=2), n_steps=4, device="cpu").learn(4)
    >>> policy = export_policy(agent)
    >>> save_policy(policy, "policy.safetensors")
    >>> policy.n_rounds, [weight.shape for weight in policy.weights]
    (2, [(64, 16), (64, 64), (6, 64)])

    Args:
        model: with an ``MlpPolicy`` whose activation is tanh, and with the environment that it was trained on.
        episode: what its episodes are like; None asks its environment.
        facts: JSON-able, kept in the file.
        seen: of each observation the lowest and the highest that the training has shown.

    Raises:
        PolicyError: for an agent of another algorithm, policy or environment.
    """
    if episode is None:
        policy = policy_of_agent(model, facts)
    else:
        policy = actor_of(model.policy, episode.action, episode.n_rounds, episode.observations, facts or {})
    return replace(policy, seen=dict(seen or {}))
