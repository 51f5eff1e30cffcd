"""Short trainings that judge masks: figures from a cache where they are known, and an early end where a mask lags too far.

Ending early is successive halving with one rung (Jamieson and Talwalkar, AISTATS 2016): after a share of the steps one looks
at some validation images, and a training that lies further below the reference at the same look than ``margin`` is given up.
A look changes nothing of a training that goes on: it ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from panning.data import ImageData, Split
from panning.foundation.cache import Cache, code_digest
from panning.foundation.config import Config
from panning.foundation.device import accelerator_name
from panning.foundation.errors import MaskError, NonFiniteError
from panning.masks.masks import Masks, digest_of
from panning.tasks import Task
from panning.training.evaluation import evaluate
from panning.training.loop import train_copy
from panning.training.recipe import Plan, Recipe


class Halving(Config):
    """When a short training is given up.

    Attributes:
        share: of the steps, after which one looks.
        n_images: of the validation part that one looks at.
        margin: accuracy below the reference's at the same look, in [0, 1], beyond which the training ends.

    >>> from panning.training.short import Halving
    >>> Halving(margin=0.05).share
    0.5
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    n_images: Annotated[int, Field(ge=1)] = 1000
    margin: Annotated[float, Field(gt=0)] = 0.1


@dataclass(frozen=True)
class Judged:
    """What a short training tells of a mask.

    Attributes:
        accuracy: on the validation part, in [0, 1]; that of guessing where the network cannot be trained. Of a training that
            was given up, the accuracy at the look.
        images_seen: that it was trained on.
        at_look: accuracy on the images of the look; None if nobody looked.
        ended: whether it was given up.
    """

    accuracy: float
    images_seen: int
    at_look: float | None = None
    ended: bool = False


class _Ended(Exception):
    """A training that a look has ended."""


class _Look:
    """Called after each step; evaluates once, and ends the training if the accuracy is below ``at_least``."""

    def __init__(self, halving: Halving, recipe: Recipe, data: ImageData, at_least: float | None) -> None:
        plan, part = Plan.of(recipe, len(data.train)), data.validation
        n = min(halving.n_images, len(part))
        self.step = min(max(1, round(halving.share * plan.n_steps)), plan.n_steps)
        self.split: Split = part.subset(torch.arange(n) * len(part) // n)  # of all classes, however the part is ordered
        self.data, self.precision, self.at_least = data, recipe.precision, at_least
        self.images, self.accuracy = self.step * plan.images_per_step, 0.0

    def __call__(self, network: nn.Module, step: int) -> None:
        if step == self.step:
            self.accuracy = evaluate(network, self.data, self.split, self.precision)["accuracy"]
            if self.at_least is not None and self.accuracy < self.at_least:
                raise _Ended


def judge(
    task: Task, masks: Masks | None, recipe: Recipe, cache: Cache | None = None, halving: Halving | None = None,
    at_least: float | None = None,
) -> Judged:  # fmt: skip
    """Train a copy of the task's network under a mask, shortly, with the task's seed; look at the validation part alone.

    Args:
        masks: None judges a mask that could not be made: the accuracy of guessing.
        cache: where figures are looked up and kept; a task with a model or data of the caller's own, or of an installed
            package, is never kept, for its code may change unseen.
        halving: look once on the way.
        at_least: the accuracy at the look below which the training is given up; None never gives up.
    """
    if masks is None:
        return _guessing(task)
    asked = {
        "what": "short training", "mask": digest_of(masks.flat), "at_least": at_least,
        "halving": None if halving is None else halving.model_dump(mode="json"),
    }  # fmt: skip
    return remembered(asked, task, recipe, cache, partial(_trained, task, masks, recipe, halving, at_least))


def remembered(
    asked: dict[str, Any], task: Task, recipe: Recipe, cache: Cache | None, make: Callable[[], Judged]
) -> Judged:
    """What ``make`` gives, from the cache where it is known there.

    Args:
        asked: what is judged, beside the task and the recipe.
    """
    if cache is None or not is_named(task):
        return make()
    key = {**asked, **described(task, recipe)}
    if (found := _read(cache.get(key))) is None:
        found = make()
        cache.put(key, asdict(found))
    return found


def _guessing(task: Task) -> Judged:
    return Judged(1.0 / task.data.n_classes, 0)


def _trained(task: Task, masks: Masks, recipe: Recipe, halving: Halving | None, at_least: float | None) -> Judged:
    look = None if halving is None else _Look(halving, recipe, task.data, at_least)
    try:
        _, result = train_copy(task, masks, recipe, task.problem.seed, look)
    except _Ended:
        assert look is not None  # which raised it
        return Judged(look.accuracy, look.images, look.accuracy, ended=True)
    except (NonFiniteError, MaskError):  # it diverges, or the recipe's start can serve none of its layers
        return _guessing(task)
    return Judged(result.final["accuracy"], result.images_seen, None if look is None else look.accuracy)


def is_named(task: Task) -> bool:
    """Whether names and this package's code say all of a task, so that its results can be kept."""
    return not task.spec.own and not task.spec.plugins


def described(task: Task, recipe: Recipe) -> dict[str, Any]:
    """What the result of a training depends on beside the mask."""
    device = str(task.device)
    return {
        "task": task.spec.model_dump(mode="json"), "data": task.data.fingerprint, "seed": task.problem.seed,
        "recipe": recipe.model_dump(mode="json"), "device": [device, accelerator_name(device)],
        "threads": torch.get_num_threads(), **code_digest(),
    }  # fmt: skip


def _read(found: dict[str, Any] | None) -> Judged | None:
    """The judgement that a cache's entry holds; None if there is no entry, or it holds no judgement."""
    try:
        judged = Judged(**found) if found is not None else None
    except TypeError:
        return None
    if judged is None or not (type(judged.accuracy) is float and type(judged.images_seen) is int):
        return None
    return judged
