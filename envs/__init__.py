"""The Gymnasium environment: an episode prunes one network in rounds. ``gymnasium.make("panning:Panning-v0", ...)``."""

from panning.envs.panning_env import PanningEnv
from panning.envs.reward import RewardSpec

__all__ = ["PanningEnv", "RewardSpec"]
