"""Agents on disk: safetensors + JSON, nothing pickled (``PPO.load`` of Stable-Baselines3 executes what a file says).

A checkpoint holds the policy's parameters and Adam's state; PPO itself is built from our config. The exported policy is a
plain network that the core runs without Stable-Baselines3 (``panning.episode.policy_net``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from stable_baselines3 import PPO
from torch import nn

from panning.agents.config import EpisodeSpec
from panning.episode.policy_net import PolicyNet
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


def load_agent(path: Path, model: PPO) -> dict[str, Any]:
    """Put a checkpoint into a ``model`` built from the same config; returns the facts.

    Raises:
        PolicyError: if the file is broken or was made by another config.
    """
    facts: dict[str, Any]
    try:
        facts, tensors = read_tensors(path, "panning_agent")
        if type(facts["rollouts"]) is not int or facts["rollouts"] < 0:
            raise ValueError("it does not say after how many rollouts")
        restore(tensors, "policy.", model.policy, model.policy.optimizer)
    except DAMAGE as error:
        raise PolicyError(f"{path} is not a checkpoint of this agent; delete it to train again ({error}).") from None
    return facts


def export_policy(model: PPO, episode: EpisodeSpec, facts: dict[str, Any]) -> PolicyNet:
    """The actor as a plain network, for episodes like those of its training."""
    policy: Any = model.policy
    hidden = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    layers = [*hidden, policy.action_net]
    log_std = policy.log_std if episode.action.form == "mix" else torch.zeros(0)
    return PolicyNet(
        spec=episode.action,
        n_rounds=episode.n_rounds,
        weights=tuple(layer.weight.detach().cpu().numpy().astype(np.float32) for layer in layers),
        biases=tuple(layer.bias.detach().cpu().numpy().astype(np.float32) for layer in layers),
        log_std=log_std.detach().cpu().numpy().astype(np.float32),
        facts=facts,
        observations=episode.observations,
    )
