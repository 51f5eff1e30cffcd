"""Splits: parts of a data set, held as uint8 images and int64 labels, and the fixed ways of dividing them.

How a data set is divided never depends on a run's seed: two runs that are compared have seen the same images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from panning.foundation.errors import DataError

#: Seed of every division of a data set into parts.
SPLIT_SEED = 0


class Split(ABC):
    """A part of a data set.

    Attributes:
        labels: int64 [n]; on the device on which indices are taken.
        image_shape: of every input: (channels, height, width) of an image.
        is_images: the inputs are uint8 images, which ``ImageData.batch`` normalises; others are used as they are.
    """

    labels: Tensor
    image_shape: tuple[int, ...]
    is_images: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_bytes(self) -> int:
        """What the inputs take in memory."""
        return 0

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """The inputs [b, ...] of int64 ``indices`` [b]; images are uint8 [b, C, H, W]."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Split:
        """A split of these images alone, in this order."""

    def in_memory(self) -> Split:
        """The same split held in memory, where it fits."""
        return self

    def to(self, device: torch.device) -> Split:
        """The same split on ``device``, where it is held in memory; one that is read batch by batch stays as it is."""
        return self

    @cached_property
    def class_indices(self) -> dict[int, Tensor]:
        """Where each class that occurs lies: int64 indices on the CPU, ascending."""
        labels = self.labels.cpu()
        order = torch.argsort(labels, stable=True)
        classes, counts = torch.unique(labels, return_counts=True)
        return dict(zip(classes.tolist(), order.split(counts.tolist()), strict=True))


class InMemorySplit(Split):
    """Images uint8 [n, C, H, W] and labels [n] in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise DataError(
                f"Images must be uint8 [n, C, H, W] with labels [n], given {images.dtype} {list(images.shape)} "
                f"with labels {list(labels.shape)}."
            )
        self.inputs = images
        self.labels = labels.to(torch.int64)
        self.image_shape = tuple(images.shape[1:])

    @property
    def n_bytes(self) -> int:
        return self.inputs.nbytes

    def images(self, indices: Tensor) -> Tensor:
        return self.inputs.index_select(0, indices.to(self.inputs.device, non_blocking=True))

    def subset(self, indices: Tensor) -> InMemorySplit:
        # A copy rather than a view: what is sent to a worker process is then only what it needs.
        return InMemorySplit(self.images(indices), self.labels[indices])

    def to(self, device: torch.device) -> InMemorySplit:
        return self if self.labels.device == device else InMemorySplit(self.inputs.to(device), self.labels.to(device))


class TensorSplit(Split):
    """Inputs [n, ...] of any shape and dtype and labels [n] in memory."""

    is_images = False

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels.to(torch.int64)
        self.image_shape = tuple(inputs.shape[1:])

    @property
    def n_bytes(self) -> int:
        return self.inputs.nbytes

    def images(self, indices: Tensor) -> Tensor:
        return self.inputs.index_select(0, indices.to(self.inputs.device, non_blocking=True))

    def subset(self, indices: Tensor) -> TensorSplit:
        return TensorSplit(self.images(indices), self.labels[indices])

    def to(self, device: torch.device) -> TensorSplit:
        return self if self.labels.device == device else TensorSplit(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Parts:
    """What a source delivers, before validation is split off and statistics are taken.

    Attributes:
        validation: None if the source has no such part.
        load_test: reads the test part; called by the final evaluation alone.
    """

    train: Split
    validation: Split | None
    load_test: Callable[[], Split]


def stratified_holdout(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide [0, n) into (rest, held out): of each class round(fraction * count) are held out, halves up.

    A class of at least two has at least one on each side; a class of one stays in the rest. Both index tensors ascend.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        n_held = int(fraction * len(members) + 0.5)
        n_held = min(max(n_held, 1), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:n_held]]] = True
    return torch.nonzero(~held).squeeze(1), torch.nonzero(held).squeeze(1)


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation of [0, n) of which every prefix has about the class shares of the whole.

    The first prefix that can hold every class does, however rare a class is.
    """
    key = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        rank = torch.randperm(len(members), generator=generator).double()
        jitter = torch.rand(len(members), generator=generator, dtype=torch.float64)
        key[members] = torch.where(rank == 0, jitter - 1, (rank + jitter) / len(members))
    return torch.argsort(key, stable=True)


def check_labels(labels: Tensor, n_classes: int, where: str) -> None:
    """Refuse labels outside 0..n_classes - 1.

    Raises:
        DataError: naming ``where``, the label found and the range allowed.
    """
    if len(labels) == 0:
        raise DataError(f"{where} holds no images.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        raise DataError(f"{where}: labels lie in {low}..{high}, but must lie in 0..{n_classes - 1}.")


def count_classes(labels: Tensor, where: str) -> int:
    """Number of classes of a train part, whose labels must be 0..n_classes - 1 without a gap.

    Raises:
        DataError: if labels are negative, or a class between 0 and the highest has no image.
    """
    # A label as large as 10**9 must not make a table of that size: the labels that occur are counted, not the range.
    present = torch.unique(labels)
    if len(present) == 0:
        raise DataError(f"{where} holds no images.")
    low, high = int(present[0]), int(present[-1])
    if low != 0 or high != len(present) - 1:
        raise DataError(
            f"{where}: {len(present)} different labels in {low}..{high}, but they must be 0..{len(present) - 1} "
            "without a gap; renumber the classes."
        )
    return len(present)
