"""Agents on disk: safetensors + JSON, nothing pickled (``PPO.load`` of Stable-Baselines3 executes what a file says).

A checkpoint holds the policy's parameters and Adam's state; PPO itself is built from our config. The exported policy is a
plain network that the core runs without Stable-Baselines3 (``panning.pruners.policy_net``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from stable_baselines3 import PPO
from torch import Tensor, nn

from panning.errors import PolicyError
from panning.pruners.actions import ActionSpec
from panning.pruners.policy_net import PolicyNet
from panning.records import write_atomic


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
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})["panning_agent"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        model.policy.load_state_dict(_under("policy.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        model.policy.optimizer.load_state_dict({**model.policy.optimizer.state_dict(), "state": state})
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise PolicyError(f"{path} is not a checkpoint of this agent; delete it to train again ({error}).") from None
    return facts


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def export_policy(model: PPO, spec: ActionSpec, n_rounds: int, facts: dict[str, Any]) -> PolicyNet:
    """The actor as a plain network."""
    policy: Any = model.policy
    hidden = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    layers = [*hidden, policy.action_net]
    log_std = policy.log_std if spec.form == "mix" else torch.zeros(0)
    return PolicyNet(
        spec,
        n_rounds,
        tuple(layer.weight.detach().cpu().numpy().astype(np.float32) for layer in layers),
        tuple(layer.bias.detach().cpu().numpy().astype(np.float32) for layer in layers),
        log_std.detach().cpu().numpy().astype(np.float32),
        facts,
    )
