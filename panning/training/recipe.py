"""How a network is trained: a recipe, and what follows from it for a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from panning.foundation.config import OR_NAME, Config, Grown, Name, parse_config
from panning.masks.masks import Masks
from panning.masks.orthogonal import orthogonal
from panning.masks.start import STARTS, Started, reinitialise


class Start(Config):
    """How kept weights start: a row of ``STARTS`` (``panning.reinitialise``). As text: ``gain``, or ``gain:0.7``.

    >>> from panning.training import Recipe
    >>> Recipe(start="gain:0.7").start.label
    'gain 0.7 start'
    """

    scheme: Annotated[str, Name(STARTS, "start")]
    gain: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        scheme, colon, gain = given.partition(":")
        return {"scheme": scheme, "gain": gain} if colon else {"scheme": scheme}

    @model_validator(mode="after")
    def _takes_its_gain(self) -> Start:
        if self.gain != 1.0 and not STARTS[self.scheme].takes_gain:
            raise ValueError(f"start '{self.scheme}' has no gain")
        return self

    @property
    def text(self) -> str:
        """The text that it is read from."""
        return self.scheme + (f":{self.gain:g}" if self.gain != 1.0 else "")

    @property
    def label(self) -> str:
        """What tables call it."""
        what = "masks and start" if self.has_own_masks else "start"
        return STARTS[self.scheme].label + (f" {self.gain:g}" if self.gain != 1.0 else "") + f" {what}"

    @property
    def has_own_masks(self) -> bool:
        """Whether it keeps a mask's layer counts alone."""
        return STARTS[self.scheme].own_masks

    def give(self, model: nn.Module, masks: Masks, seed: int) -> tuple[Started, Masks]:
        """Give the kept weights of ``model`` this start, in place (``panning.reinitialise``, ``panning.orthogonal``).

        Returns:
            what was done, and the masks to train under.
        """
        if self.has_own_masks:
            return Started(self.scheme), orthogonal(model, masks, gain=self.gain, seed=seed)
        return reinitialise(model, masks, self.scheme, gain=self.gain, seed=seed), masks


#: A start or none, which a config may call ``none``: the weights as they were drawn.
StartOrNone = Annotated[Start | None, BeforeValidator(lambda given: None if given == "none" else given), OR_NAME]


Precision = Literal["float32", "bfloat16"]


class Recipe(Grown):
    """How a network is trained. Its JSON has no ``start`` where there is none.

    Attributes:
        epochs: may be a fraction; the last epoch is then cut short.
        schedule: ``cosine`` falls from ``learning_rate`` to 0, ``one_cycle`` rises over the first quarter and falls
            linearly to 0, ``constant`` stays, ``steps`` is multiplied by ``gamma`` at each of ``milestones``.
        milestones: shares of the whole training.
        precision: ``bfloat16`` runs the forward pass under autocast; weights stay float32.
        n_images: train on the first so many images of each epoch's order only; None uses all. Short trainings use it.
        compact: train the compact network (``panning.compact``) where that is worth it.
        start: of the kept weights, before the first step; where masks move, of those that the first masks keep. Dense
            networks train as they were drawn.

    >>> from panning.training import Recipe
    >>> Recipe(epochs=2, schedule="constant").learning_rate
    0.1
    """

    later = frozenset({"start"})

    epochs: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    batch_size: Annotated[int, Field(ge=1, le=2**31)] = 128
    learning_rate: Annotated[float, Field(gt=0, le=1e12)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 5e-4
    nesterov: bool = False
    schedule: Literal["cosine", "one_cycle", "constant", "steps"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    precision: Precision = "float32"
    augment: bool = True
    n_images: Annotated[int, Field(ge=1, le=2**53)] | None = None
    compact: bool = True
    start: StartOrNone = None

    @property
    def has_own_masks(self) -> bool:
        """Whether a network trains under other masks than those that it is given."""
        return self.start is not None and self.start.has_own_masks

    def starting(self, start: str, source: str) -> Recipe:
        """This recipe with the start that a text says, ``none`` included; errors say whose text it is.

        >>> from panning.training import Recipe
        >>> Recipe(start="gain").starting("none", "mine").start is None
        True
        """
        return parse_config(Recipe, self.model_dump() | {"start": start}, source)

    def noted(self, masks: Masks | None) -> Recipe:
        """This recipe with the start that the manifest of ``masks`` notes, unless it has one of its own.

        Raises:
            ConfigError: if what the manifest notes is no start.
        """
        start = None if masks is None else masks.manifest.get("start")
        if self.start is not None or not isinstance(start, str):
            return self
        return self.starting(start, "the mask's manifest")


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
