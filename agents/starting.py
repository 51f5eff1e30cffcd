"""Where an agent begins: in the middle of the action space, near a fixed policy, or at the best of several actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from panning.agents.config import AgentConfig
from panning.agents.demonstrations import begin_at_best, demonstrate
from panning.agents.saving import export_policy
from panning.episode.actions import ActionSpec
from panning.episode.policies import make_policy
from panning.episode.policy_net import save_policy
from panning.foundation.progress import Listener


@dataclass(frozen=True)
class Began:
    """What the beginning has cost and shown.

    Attributes:
        facts: JSON-able, of the choice among several actions; empty without one.
    """

    n_episodes: int = 0
    images_seen: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


#: A beginning that costs nothing.
NOWHERE = Began()


def begin(model: PPO, config: AgentConfig, envs: VecEnv, out: Path, listen: Listener) -> Began:
    """Put an untrained agent where its config says.

    For several actions ``out`` keeps the episodes in ``demonstrations.jsonl``, and the agent as it begins in
    ``start.safetensors``: beside the trained policy it says what learning added.
    """
    start = config.ppo.start
    if start is None:
        return NOWHERE
    if isinstance(start, str):
        _near(model, config.env.action, start)
        return NOWHERE
    shown = demonstrate(config, start, envs, out / "demonstrations.jsonl", listen)
    facts = begin_at_best(model, config, start, shown)
    save_policy(
        export_policy(model, config.env, {"config": config.identity, "start": facts}), out / "start.safetensors"
    )
    return Began(shown.rewards.size, shown.images_seen, facts)


def _near(model: PPO, spec: ActionSpec, policy: str) -> None:
    """Move the action's mean (``mix``) or most likely choices (``pick``) to a fixed policy's action."""
    fixed = make_policy(policy, spec)
    action = fixed(np.zeros(len(fixed.observations), np.float32))
    bias: Any = model.policy.action_net.bias
    with torch.no_grad():
        if spec.form == "mix":  # short of the bounds, or half of the exploration would be clipped away
            bias.copy_(0.8 * torch.from_numpy(action))
            return
        offset = 0
        for choice, n_choices in zip(action.astype(int), spec.choices, strict=True):
            bias[offset + int(choice)] += 2.0
            offset += n_choices
