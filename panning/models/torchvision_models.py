"""torchvision's classification networks by their names there, without pretrained weights.

torchvision is imported when such a name is met, not before: that takes longer than building most of our own networks.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from panning.foundation.errors import ModelError
from panning.foundation.extras import extra_packages

PREFIX = "torchvision:"

#: Training heads that a plain ``model(inputs)`` does not return, and a change of default that these two warn about.
_EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@extra_packages()
def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


@extra_packages()
def build_torchvision(name: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The torchvision model ``name``, which must be in ``torchvision_names()``, initialised as torchvision does.

    Raises:
        ModelError: if the inputs do not have 3 channels, or the model cannot be built for their size.
    """
    import torchvision

    if len(input_shape) != 3 or input_shape[0] != 3:
        raise ModelError(
            f"torchvision's '{name}' needs images of 3 channels, given inputs of shape {tuple(input_shape)}; "
            "use one of this package's own models."
        )
    arguments = dict(_EXTRA_ARGUMENTS.get(name, {}))
    if name.startswith("vit_"):
        arguments["image_size"] = input_shape[1]  # the only family whose parameters depend on it
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=n_classes, **arguments)
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:  # torchvision asserts sizes
        raise ModelError(f"torchvision's '{name}' cannot be built for inputs {tuple(input_shape)}: {error}") from error
    return model
