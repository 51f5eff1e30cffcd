"""The network that a mask's manifest describes, at the initial weights of the mask's seed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from panning.foundation.errors import MaskError, ModelError
from panning.masks.masks import Masks, check_masks_fit
from panning.models import build_model, is_known


def described_network(
    file: str | Path,
    masks: Masks,
    name: str,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    *,
    allow_import: bool = True,
) -> tuple[nn.Module, tuple[int, ...], int]:
    """The network of a mask at its initial weights, the shape of one input and the number of classes.

    The network is built only after a check that the mask belongs to it: a file may name any number of classes.

    Args:
        name: of a model, or an import path, whose code is run.
        shape, classes: in place of what the mask's manifest says.
        allow_import: whether the name may be a path; never where a file says the name.

    Raises:
        MaskError: if the mask belongs to another network, or its manifest names what is no shape.
    """
    try:
        shape = shape or masks.input_shape
    except MaskError as error:
        raise MaskError(f"{file}: {error}") from None
    n_classes, seed = classes or masks.manifest.get("n_classes"), masks.manifest.get("seed")
    if shape is None or type(n_classes) is not int or n_classes < 1:
        raise MaskError(
            f"{file} does not say for which inputs and how many classes '{name}' is built, as masks of panning prune do: "
            "panning mask verify takes --input-shape C,H,W and --classes N."
        )
    build = partial(
        build_model,
        name,
        input_shape=shape,
        n_classes=n_classes,
        seed=seed if type(seed) is int else 0,
        allow_import=allow_import,
    )
    if ":" not in name or is_known(name):  # the user's own code may do anything with sizes
        try:
            with torch.device("meta"):
                check_masks_fit(build(), masks)
        except ModelError as error:
            raise ModelError(
                f"{file} is a mask for inputs {shape}, and the network must be one for such. {error}"
            ) from None
    model = build()
    check_masks_fit(model, masks)
    return model, shape, n_classes
