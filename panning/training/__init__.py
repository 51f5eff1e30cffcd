"""Training dense, masked and moving networks: one plain loop, one recipe, one table of methods that move masks."""

from panning.training.evaluation import evaluate, evaluate_mean
from panning.training.loop import n_epochs, train
from panning.training.moving.method import Movement
from panning.training.moving.methods import DYNAMICS, make_dynamic
from panning.training.recipe import Recipe
from panning.training.result import TrainResult

__all__ = [
    "DYNAMICS",
    "Movement",
    "Recipe",
    "TrainResult",
    "evaluate",
    "evaluate_mean",
    "make_dynamic",
    "n_epochs",
    "train",
]
