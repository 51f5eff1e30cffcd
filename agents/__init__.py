"""Agents: PPO of Stable-Baselines3 on the panning environment, in process or on Ray workers."""

from panning.agents.config import AgentConfig, EnvSpec, PPOSpec
from panning.episode.policy_net import load_policy, save_policy
from panning.foundation.extras import extra_packages

with extra_packages():
    from panning.agents.saving import export_policy
    from panning.agents.train import train_agent

__all__ = ["AgentConfig", "EnvSpec", "PPOSpec", "export_policy", "load_policy", "save_policy", "train_agent"]
