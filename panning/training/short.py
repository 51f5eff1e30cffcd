"""A short training from the initial weights: how good is this mask, cheaply? Looks at the validation part only."""

from __future__ import annotations

from torch import nn

from panning.masks.masks import Masks
from panning.tasks import Task
from panning.training.loop import train
from panning.training.recipe import Recipe
from panning.training.result import TrainResult


def train_copy(task: Task, masks: Masks | None, recipe: Recipe, seed: int) -> tuple[nn.Module, TrainResult]:
    """Train a copy of the task's network under ``masks``; the task's own model keeps its initial weights.

    Equal (task, masks, recipe, seed) give equal results, and two masks with one seed see the same batches.
    """
    model = task.network()
    result = train(model, task.data, recipe, seed=seed, masks=masks, validate_every_epoch=False)
    return model, result
