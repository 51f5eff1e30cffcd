"""Agents: PPO of Stable-Baselines3 on the panning environment, in process or on Ray workers."""

from panning.agents.config import AgentConfig, EnvSpec, PPOSpec
from panning.foundation.extras import extra_packages

with extra_packages():
    from panning.agents.train import train_agent

__all__ = ["AgentConfig", "EnvSpec", "PPOSpec", "train_agent"]
