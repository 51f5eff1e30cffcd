"""Training dense or masked networks: one plain loop, one recipe."""

from panning.training.loop import Recipe, TrainResult, evaluate, train

__all__ = ["Recipe", "TrainResult", "evaluate", "train"]
