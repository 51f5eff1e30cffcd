"""Networks of torchvision and timm by their names there (``torchvision:NAME``, ``timm:NAME``), without pretrained weights.

A library is imported when one of its names is met, not before: that takes longer than building most of our own networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from panning.foundation.errors import MissingExtraError, ModelError
from panning.foundation.extras import extra_packages

#: Training heads that a plain ``model(inputs)`` does not return, and a change of default that these two warn about.
_EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@extra_packages()
def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


@extra_packages()
def _torchvision(name: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    import torchvision

    if input_shape[0] != 3:
        raise ValueError("it needs images of 3 channels")
    arguments = dict(_EXTRA_ARGUMENTS.get(name, {}))
    if name.startswith("vit_"):
        arguments["image_size"] = input_shape[1]  # the only family whose parameters depend on it
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=n_classes, **arguments)
    return model


@extra_packages()
def _timm_names() -> list[str]:
    import timm

    names: list[str] = timm.list_models()
    return names


@extra_packages()
def _timm(name: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    import timm

    said = timm.models.get_pretrained_cfg(name)
    # Networks with an embedding for each place of the image are made for its size.
    size = {"img_size": input_shape[1:]} if said is not None and said.fixed_input_size else {}
    model: nn.Module = timm.create_model(name, pretrained=False, in_chans=input_shape[0], num_classes=n_classes, **size)
    return model


@dataclass(frozen=True)
class Library:
    """A package that has networks by name.

    Attributes:
        names: gives those that classify images.
        build: makes one for inputs (channels, height, width) and a number of classes, initialised as the package does.
    """

    names: Callable[[], list[str]]
    build: Callable[[str, tuple[int, ...], int], nn.Module]


LIBRARIES: Mapping[str, Library] = {
    "torchvision": Library(_torchvision_names, _torchvision),
    "timm": Library(_timm_names, _timm),
}


def is_of_library(name: str) -> bool:
    """Whether ``name`` begins like ``timm:NAME``."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix in LIBRARIES


def is_bare_torchvision(name: str) -> bool:
    """Whether ``name`` is one of torchvision's without its prefix; torchvision is imported for it."""
    try:
        return name in LIBRARIES["torchvision"].names()
    except MissingExtraError:
        return False


def build_from_library(prefix: str, name: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A network of a library, which must be among its names.

    Raises:
        ModelError: if it cannot be built for these inputs.
    """
    try:
        if len(input_shape) != 3:
            raise ValueError("it takes images (channels, height, width)")
        return LIBRARIES[prefix].build(name, input_shape, n_classes)
    except (
        AssertionError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:  # sizes are asserted
        raise ModelError(
            f"{prefix}'s '{name}' cannot be built for inputs {tuple(input_shape)}: {error}; use one of this package's own "
            "models, or resize the images."
        ) from error
