"""Augmentation of a whole batch at once: random crop after zero padding, and horizontal flip.

The recipe of the CIFAR papers (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2): 4 pixels of
padding on each side, a random crop of the old size, a flip with probability 1/2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from panning.foundation.registry import lookup

#: Pixels of padding on each side.
PADDING = 4


def crop_flip(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Crop and flip each image [b, C, H, W] on its own; a new tensor of the same shape.

    Args:
        generator: of the CPU, whatever the device of the images: a seed gives the same crops everywhere.

    NOTE: the padding is 0 of the normalised inputs, the mean of the train part, where the paper pads with black.
    """
    batch, _, height, width = inputs.shape

    def offsets() -> Tensor:
        drawn = torch.randint(2 * PADDING + 1, (batch,), generator=generator)
        return drawn.to(inputs.device, non_blocking=True)

    tops, lefts = offsets(), offsets()
    flipped = (torch.rand(batch, generator=generator) < 0.5).to(inputs.device, non_blocking=True)
    # All (2 * PADDING + 1)**2 crops of each image as a view; indexing copies the one that was drawn.
    crops = functional.pad(inputs, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cropped = crops[torch.arange(batch, device=inputs.device), :, tops, lefts]
    return torch.where(flipped.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def unchanged(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """The inputs themselves; nothing is drawn."""
    return inputs


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": unchanged,
    "crop_flip": crop_flip,
}


def augment_batch(inputs: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Normalised inputs [b, C, H, W] augmented as ``kind`` says; a pure function of the generator's state.

    Raises:
        UnknownNameError: if ``kind`` is not in ``AUGMENTATIONS``.
    """
    return lookup(AUGMENTATIONS, kind, "augmentation")(inputs, generator)
