"""Agents: PPO of Stable-Baselines3 on the panning environment, in process or on Ray workers.

Configs and policies need no Stable-Baselines3, which is imported with what does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from panning.agents.config import AgentConfig, EnvSpec, PPOSpec
from panning.episode.policy_net import load_policy, save_policy
from panning.foundation.extras import extra_packages

if TYPE_CHECKING:
    from panning.agents.saving import export_policy
    from panning.agents.train import train_agent

__all__ = ["AgentConfig", "EnvSpec", "PPOSpec", "export_policy", "load_policy", "save_policy", "train_agent"]

_HOMES = {"export_policy": "panning.agents.saving", "train_agent": "panning.agents.train"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'panning.agents' has no attribute '{name}'")
    with extra_packages():
        return getattr(importlib.import_module(_HOMES[name]), name)
