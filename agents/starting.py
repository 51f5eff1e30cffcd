"""An untrained agent is put near a fixed policy, or at the best of several actions, where its config says so."""

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
from panning.agents.demonstrations import choose, demonstrate, fit
from panning.agents.saving import export_policy
from panning.agents.sight import Seen, named, widened
from panning.episode.actions import ActionSpec
from panning.episode.policies import make_policy
from panning.episode.policy_net import save_policy
from panning.foundation.progress import Listener


@dataclass(frozen=True)
class Began:
    """The episodes that tried several actions before PPO: their cost, and what they say of the choice among the actions.

    Attributes:
        n_episodes: that were taken to try the actions.
        images_seen: by the short trainings that judged these episodes.
        facts: ``Choice.facts``; empty where the agent does not begin at one of several actions.
        seen: of each observation the lowest and the highest that the agent was fitted on; None where it was not.
    """

    n_episodes: int = 0
    images_seen: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    seen: Seen | None = None


def begin(model: PPO, config: AgentConfig, envs: VecEnv, out: Path, listen: Listener, *, untrained: bool) -> Began:
    """Put an untrained agent where its config says; of one that goes on, tell where it began.

    For several actions ``out`` keeps the episodes in ``demonstrations.jsonl``, and the agent as it begins in
    ``start.safetensors``: beside the trained policy it says what learning added.
    """
    start = config.ppo.start
    if isinstance(start, str | None):
        if untrained and start is not None:
            _near(model, config.env.action, start)
        return Began()
    shown = demonstrate(config, envs, out / "demonstrations.jsonl", listen)
    choice = choose(config, shown)
    seen = widened(None, choice.observations)
    if untrained:
        fit(model, choice)
        facts = {"config": config.identity, "start": choice.facts}
        save_policy(
            export_policy(model, config.env, facts, named(config.env.observations, seen)), out / "start.safetensors"
        )
    return Began(shown.rewards.size, shown.images_seen, choice.facts, seen)


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
