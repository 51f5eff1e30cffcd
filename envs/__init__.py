"""The Gymnasium environment: an episode prunes one network in rounds. ``gymnasium.make("panning:Panning-v0", ...)``."""

from panning.envs.ending import RewardSpec
from panning.envs.panning_env import PanningEnv

__all__ = ["PanningEnv", "RewardSpec"]
