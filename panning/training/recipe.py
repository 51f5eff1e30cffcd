"""How a network is trained: a recipe, and what follows from it for a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from panning.foundation.config import Config


class Recipe(Config):
    """How a network is trained.

    Attributes:
        epochs: may be a fraction; the last epoch is then cut short.
        schedule: ``cosine`` falls from ``learning_rate`` to 0, ``one_cycle`` rises over the first quarter and falls
            linearly to 0, ``constant`` stays, ``steps`` is multiplied by ``gamma`` at each of ``milestones``.
        milestones: shares of the whole training.
        precision: ``bfloat16`` runs the forward pass under autocast; weights stay float32.
        n_images: train on the first so many images of each epoch's order only; None uses all. Short trainings use it.
        compact: train the compact network (``panning.compact``) where that is worth it.

    >>> from panning.training import Recipe
    >>> Recipe(epochs=2, schedule="constant").learning_rate
    0.1
    """

    epochs: Annotated[float, Field(gt=0)] = 10.0
    batch_size: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    nesterov: bool = False
    schedule: Literal["cosine", "one_cycle", "constant", "steps"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: bool = True
    n_images: Annotated[int, Field(ge=1)] | None = None
    compact: bool = True


@dataclass(frozen=True)
class Plan:
    """A recipe in steps.

    Attributes:
        images_per_step: the recipe's batch, or all images of an epoch that has fewer.
        n_steps: of the recipe's schedule of learning rates.
    """

    images_per_epoch: int
    images_per_step: int
    steps_per_epoch: int
    n_steps: int

    @classmethod
    def of(cls, recipe: Recipe, n_train: int) -> Plan:
        images = min(n_train, recipe.n_images or n_train)
        steps = max(1, images // recipe.batch_size)  # the ragged last batch is left out, as BatchNorm likes it
        return cls(images, min(recipe.batch_size, images), steps, max(1, round(recipe.epochs * steps)))

    def n_epochs(self, n_steps: int) -> int:
        """Epochs that have a part of so many steps."""
        return math.ceil(n_steps / self.steps_per_epoch)


def learning_rate_at(recipe: Recipe, step: int, n_steps: int) -> float:
    """The learning rate of step ``step`` of ``n_steps``, counted from 0."""
    progress = step / n_steps
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "one_cycle":
        rising = (step + 1) / (0.25 * n_steps)
        return recipe.learning_rate * max(0.0, min(1.0, rising, (1.0 - progress) / 0.75))
    if recipe.schedule == "steps":
        return recipe.learning_rate * recipe.gamma ** sum(progress >= milestone for milestone in recipe.milestones)
    return recipe.learning_rate
