"""A part of a data set: the images of some classes, and smaller images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from panning.data.splits import InMemorySplit, Split
from panning.foundation.errors import DataError


def of_classes(split: Split, classes: Sequence[int]) -> Split:
    """The images of these classes alone, in their order, whose labels become the classes' places."""
    labels = split.labels
    part = split.subset(torch.nonzero(torch.isin(labels, torch.tensor(classes))).squeeze(1))
    places = torch.full((int(labels.max()) + 1,), -1)
    places[torch.tensor(classes)] = torch.arange(len(classes))
    part.labels = places[part.labels]
    return part


def check_classes(classes: Sequence[int], n_classes: int, label: str) -> None:
    """Raise DataError if the data lack one of the classes."""
    if absent := sorted(set(classes) - set(range(n_classes))):
        raise DataError(f"classes has {absent}, but the classes of {label} are 0..{n_classes - 1}.")


def smaller(split: Split, side: int, label: str) -> InMemorySplit:
    """The images, ``side`` pixels high and wide: each pixel is the mean of those that it covers.

    Raises:
        DataError: if the split holds no images in memory, or smaller ones.
    """
    if not isinstance(split, InMemorySplit):
        raise DataError(f"side makes images in memory smaller, and those of {label} are not: leave it out.")
    if side > min(split.image_shape[1:]):
        height, width = split.image_shape[1:]
        raise DataError(
            f"side is {side}, but the images of {label} have {height}x{width} pixels and are only made smaller."
        )
    parts = [
        F.interpolate(split.images(part).float(), (side, side), mode="area").round().to(torch.uint8)
        for part in torch.arange(len(split)).split(1000)
    ]
    return InMemorySplit(torch.cat(parts), split.labels)
