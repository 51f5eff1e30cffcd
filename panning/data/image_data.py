"""ImageData: one data set for classification as every other part of the package sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from panning.data.batches import Batch
from panning.data.splits import Split, check_labels
from panning.foundation.errors import DataError
from panning.foundation.seeding import torch_generator
from panning.foundation.tensorfile import tensor_bytes

Augmentation = Literal["none", "crop_flip"]

#: Channel statistics are taken from this many images, evenly spaced over the train part.
N_STATISTICS_IMAGES = 4096


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: images are uint8 in memory and normalised per batch; other inputs are used as they are.

    Attributes:
        name: as given to ``load_data``.
        label: its name in tables.
        input_shape: of one input; of images (channels, height, width).
        mean: per channel, in [0, 1] units, of the train part; empty where inputs are used as they are.
        std: likewise, at least one grey level (1/255).
        augmentation: what ``augment_batch`` should do while training.
        load_test: reads the test part; ask ``test_split`` for it.
    """

    name: str
    label: str
    train: Split
    validation: Split
    n_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    load_test: Callable[[], Split] = field(repr=False)

    def test_split(self) -> Split:
        """The test part, read now; for the final evaluation alone, nothing may be chosen by it.

        Raises:
            DataError: if it is absent, broken, or does not match the train part.
        """
        split = self.load_test()
        check_labels(split.labels, self.n_classes, f"The test part of {self.label}")
        if split.image_shape != self.input_shape:
            raise DataError(
                f"The test part of {self.label} has images {split.image_shape}, the train part {self.input_shape}."
            )
        return split

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs that ``batch`` gives."""
        return self.batch(self.train, torch.zeros(1, dtype=torch.int64))[0].dtype

    @property
    def n_bytes(self) -> int:
        """What train and validation part take in memory; of images that are read batch by batch next to nothing."""
        return sum(split.n_bytes for split in (self.train, self.validation))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images and labels of train and validation part."""
        hashed = hashlib.sha256()
        for split in (self.train, self.validation):
            hashed.update(split.labels.cpu().numpy().tobytes())
            for indices in torch.arange(len(split)).split(1000):
                hashed.update(tensor_bytes(split.images(indices)))
        return hashed.hexdigest()[:20]

    def to(self, device: torch.device) -> ImageData:
        """The same data with images and labels on ``device``, as far as they are held in memory; the test part, too."""
        train, validation = self.train.to(device), self.validation.to(device)
        return replace(self, train=train, validation=validation, load_test=partial(_moved, self.load_test, device))

    def batch(self, split: Split, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and labels int64 [b] of ``indices`` [b] of ``split``; images float32 [b, C, H, W], normalised.

        Args:
            device: where to; None leaves them where the split is.
        """
        indices = indices.to(split.labels.device, non_blocking=True)
        images, labels = split.images(indices), split.labels[indices]
        if device is not None:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if not self.mean:
            return images, labels
        factor, shift = _scale(self.mean, self.std, images.device)
        return images.float().mul_(factor).sub_(shift), labels


def _moved(load: Callable[[], Split], device: torch.device) -> Split:
    return load().to(device)


@lru_cache(maxsize=32)
def _scale(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """x * factor - shift is (x / 255 - mean) / std in two passes over a batch instead of three."""
    means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (1 / (255 * stds)).to(device), (means / stds).to(device)


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over pixels, in [0, 1] units, of evenly spaced images; () of other inputs.

    The sums are integers, so that the result depends neither on the order nor on the number of threads.
    """
    if not split.is_images:
        return (), ()
    n_images = min(len(split), N_STATISTICS_IMAGES)
    chosen = torch.arange(n_images) * len(split) // n_images
    channels, height, width = split.image_shape
    total = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    for part in chosen.split(256):
        pixels = split.images(part).to(torch.int32)  # 255**2 does not fit uint8
        total += pixels.sum((0, 2, 3), dtype=torch.int64)
        squares += (pixels * pixels).sum((0, 2, 3), dtype=torch.int64)
    n_pixels = n_images * height * width
    mean = total.double() / n_pixels
    std = (squares.double() / n_pixels - mean**2).clamp_(min=1.0).sqrt()  # a constant channel is not divided by 0
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def balanced_batch(data: ImageData, split: Split, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exactly ``per_class`` images of every class, sorted by class, then in the order drawn.

    Drawn without replacement; with replacement only from a class that has fewer images than asked.

    Returns:
        Inputs float32 [n_classes * per_class, C, H, W] and labels int64 [n_classes * per_class].

    Raises:
        DataError: if ``per_class`` is below 1 or a class has no image in ``split``.
    """
    if per_class < 1:
        raise DataError(f"per_class is {per_class}, but at least 1 image of each class must be drawn.")
    drawn = []
    for label in range(data.n_classes):
        members = split.class_indices.get(label)
        if members is None:
            raise DataError(f"{data.label}: class {label} has no image in this split; use a larger n_train.")
        if len(members) >= per_class:
            rows = torch.randperm(len(members), generator=generator)[:per_class]
        else:
            rows = torch.randint(len(members), (per_class,), generator=generator)
        drawn.append(members[rows])
    return data.batch(split, torch.cat(drawn))


class ScoringBatches:
    """Class-balanced batches of the train part, drawn for a seed and the number of the round; the last two are kept."""

    N_KEPT = 2

    def __init__(self, data: ImageData, per_class: int, seed: int) -> None:
        self.data = data
        self.per_class = per_class
        self.seed = seed
        self.kept: dict[int, Batch] = {}

    def __call__(self, number: int) -> Batch:
        if number not in self.kept:
            generator = torch_generator(self.seed, "scoring", number)
            self.kept[number] = balanced_batch(self.data, self.data.train, self.per_class, generator)
            if len(self.kept) > self.N_KEPT:
                del self.kept[next(iter(self.kept))]
        return self.kept[number]
