"""Whether a network takes the data's inputs and gives one logit a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.foundation.modes import in_evaluation_mode
from panning.foundation.nests import logits_of
from panning.foundation.seeding import isolated_torch_rng


def check_model_fits(
    model: nn.Module, input_shape: tuple[int, ...], n_classes: int, dtype: torch.dtype = torch.float32
) -> None:
    """Pass a zero batch of 2 through ``model`` in eval mode; parameters, buffers, modes and random state stay.

    Args:
        input_shape: shape of one input, without the batch.
        dtype: of the inputs.

    Raises:
        ModelError: if that fails or does not give [2, n_classes].
    """
    parameter = next(model.parameters(), None)
    of_dtype = "" if dtype == torch.float32 else f" of {dtype}"
    inputs = torch.zeros(2, *input_shape, dtype=dtype, device=parameter.device if parameter is not None else None)
    try:
        with torch.no_grad(), isolated_torch_rng(0), in_evaluation_mode(model):
            outputs = logits_of(model(inputs))
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"The model fails on inputs of shape {tuple(input_shape)}{of_dtype}: {type(error).__name__}: {error}"
        ) from error
    found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != [2, n_classes]:
        raise ModelError(
            f"For 2 inputs of shape {tuple(input_shape)} the model gives {found}, but must give [2, {n_classes}]: "
            "one logit a class."
        )
