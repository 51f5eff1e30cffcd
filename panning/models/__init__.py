"""Networks: one table of our own, torchvision's and timm's by name, a user's own as a factory or by import path."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from panning.foundation.errors import MissingExtraError, ModelError, UnknownNameError
from panning.foundation.own import PREFIX as OWN
from panning.foundation.registry import Table, nearest
from panning.foundation.seeding import derive_seed, isolated_torch_rng
from panning.models.check import check_model_fits
from panning.models.conv import Conv6
from panning.models.imported import Factory, build_imported, call_factory, factory_name, import_factory
from panning.models.lenet import LeNet5
from panning.models.libraries import LIBRARIES, build_from_library, is_bare_torchvision, is_of_library
from panning.models.mlp import MLP
from panning.models.own import OwnModel
from panning.models.resnet import ResNet
from panning.models.sized import FAMILIES, build_sized, is_sized, parse_sizes
from panning.models.vgg import VGG
from panning.models.wide_resnet import WideResNet

__all__ = [
    "MODELS",
    "Factory",
    "ModelRow",
    "OwnModel",
    "build_model",
    "check_model_fits",
    "factory_name",
    "import_factory",
    "is_bare_torchvision",
    "is_known",
    "is_of_library",
    "is_sized",
    "model_names",
    "one_name",
]

_RESNET = "He et al., CVPR 2016"
_WIDE = "Zagoruyko and Komodakis, BMVC 2016"
_VGG = "Simonyan and Zisserman, ICLR 2015"
_LENET = "LeCun et al., Proc. IEEE 1998"


@dataclass(frozen=True)
class ModelRow:
    """A network with a name.

    Attributes:
        factory: called with ``input_shape`` and ``n_classes`` or with nothing; draws from torch's global generator.
        label: its name in tables.
        source: the paper.
        natural_shape: the inputs it is mostly used with, (channels, height, width).
    """

    factory: Factory
    label: str
    source: str
    natural_shape: tuple[int, int, int]


_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)

_OWN: dict[str, ModelRow] = {
    "mlp": ModelRow(partial(MLP, hidden=(256, 128)), "MLP-256-128", "for the digits", (1, 8, 8)),
    "lenet300_100": ModelRow(partial(MLP, hidden=(300, 100)), "LeNet-300-100", _LENET, _GREY),
    "lenet5": ModelRow(LeNet5, "LeNet-5", _LENET, _GREY),
    "resnet20": ModelRow(partial(ResNet, widths=(16, 32, 64), n_blocks=3), "ResNet-20", _RESNET, _COLOUR),
    "resnet32": ModelRow(partial(ResNet, widths=(16, 32, 64), n_blocks=5), "ResNet-32", _RESNET, _COLOUR),
    "resnet56": ModelRow(partial(ResNet, widths=(16, 32, 64), n_blocks=9), "ResNet-56", _RESNET, _COLOUR),
    "resnet32x2": ModelRow(partial(ResNet, widths=(32, 64, 128), n_blocks=5), "ResNet-32 (2x wide)", _RESNET, _COLOUR),
    "resnet18": ModelRow(partial(ResNet, widths=(64, 128, 256, 512), n_blocks=2), "ResNet-18", _RESNET, _COLOUR),
    "wrn28_2": ModelRow(partial(WideResNet, depth=28, widen=2), "WRN-28-2", _WIDE, _COLOUR),
    "conv6": ModelRow(Conv6, "Conv-6", "Frankle and Carbin, ICLR 2019", _COLOUR),
    "vgg16": ModelRow(partial(VGG, n_convs=(2, 2, 3, 3, 3)), "VGG-16", _VGG, _COLOUR),
    "vgg19": ModelRow(partial(VGG, n_convs=(2, 2, 4, 4, 4)), "VGG-19", _VGG, _COLOUR),
}


def _added(found: Any, name: str, package: str) -> ModelRow | None:
    """The row of an installed package, which may be a bare factory."""
    with contextlib.suppress(MissingExtraError):
        if name in LIBRARIES["torchvision"].names():
            raise ModelError(f"'{name}' is one of torchvision's models; the package must call its own otherwise.")
    if isinstance(found, nn.Module) or not (isinstance(found, ModelRow) or callable(found)):
        return None
    return found if isinstance(found, ModelRow) else ModelRow(found, name, package, _COLOUR)


#: The networks, with those that installed packages add (entry points ``panning.models``).
MODELS = Table(_OWN, "panning.models", "a function or class that makes a torch.nn.Module, or a ModelRow", _added)


def model_names() -> list[str]:
    """The names in ``MODELS``; torchvision's and timm's names and, locally, import paths are allowed besides."""
    return list(MODELS)


def is_known(name: str) -> bool:
    """Whether a name is looked up in tables alone: of this package, of installed ones, of a library, or sizes in a name."""
    return name in MODELS or is_sized(name) or is_of_library(name) or is_bare_torchvision(name)


def one_name(name: str) -> str:
    """The name by which results are filed: sizes in their order, without what is so by default.

    Raises:
        ModelError: if a name that begins like ``mlp:WIDTHS`` says no sizes.
    """
    return parse_sizes(name).text if is_sized(name) else name


def build_model(
    model: str | Factory | OwnModel,
    *,
    input_shape: tuple[int, ...],
    n_classes: int,
    seed: int,
    allow_import: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Build and initialise a network on the CPU; equal arguments give equal weights, global random state stays.

    Args:
        model: a name in ``MODELS``; one that says its sizes, as 'mlp:256-128' (``panning.models.sized``);
            one of torchvision's classification models as 'torchvision:NAME', or as bare NAME where that is none of ours;
            one of timm's as 'timm:NAME'; with ``allow_import``, 'package.module:factory'; or the factory itself, a function
            or class that makes a network from ``input_shape`` and ``n_classes``, or from nothing; or what stands for a
            network of the caller's own in a task.
        input_shape: of one input; of an image (channels, height, width).
        dtype: of the inputs.
        allow_import: whether a name may import and run the user's code. Never for a name that comes from a file or
            over the network.

    Raises:
        UnknownNameError: with the nearest and all allowed names.
        ModelError: if the network cannot be built for these inputs.
    """
    if not input_shape or min(input_shape) < 1 or n_classes < 1:
        raise ModelError(
            f"A model needs a positive input_shape and n_classes, given {tuple(input_shape)} and {n_classes}."
        )
    shape = tuple(input_shape)
    factory: str | Factory | OwnModel = model
    if isinstance(model, str) and model in MODELS:
        if MODELS.origin(model) is None and len(shape) != 3:
            raise ModelError(f"'{model}' takes inputs (channels, height, width), given {shape}.")
        factory = MODELS[model].factory  # here: a package's first import must not draw from the generator below
    with isolated_torch_rng(derive_seed(seed, "init")):
        if isinstance(factory, str):
            built = _build_named(factory, shape, n_classes, allow_import)
        elif isinstance(factory, OwnModel):
            built = factory.build(shape, n_classes, seed)
        else:
            name = model if isinstance(model, str) else factory_name(factory)
            built = call_factory(factory, name, shape, n_classes)
    check_model_fits(built, shape, n_classes, dtype)
    return built


def _build_named(name: str, input_shape: tuple[int, ...], n_classes: int, allow_import: bool) -> nn.Module:
    if name.startswith(OWN):
        raise ModelError(f"'{name}' is a network of a Python process: only there can it be used, by passing it again.")
    if is_sized(name):
        return build_sized(name, input_shape, n_classes)
    prefix, colon, bare = name.partition(":") if ":" in name else ("torchvision", "", name)
    if prefix in LIBRARIES:
        if bare not in (known := LIBRARIES[prefix].names()):
            raise UnknownNameError(_unknown_message(name, nearest(bare, known if colon else [*MODELS, *known])))
        return build_from_library(prefix, bare, input_shape, n_classes)
    if not allow_import:
        raise ModelError(
            f"'{name}' is an import path. These run code, and are for the local command line alone (--model "
            "package.module:factory); files and requests must name a known model, and Python passes the function itself."
        )
    return build_imported(name, input_shape, n_classes)


#: The forms of names that say sizes, for messages.
_SIZED = ", ".join(f"{family}:WIDTHS" for family in FAMILIES)


def _unknown_message(name: str, near: str | None) -> str:
    """As ``registry.unknown_name_message``, without listing all names of torchvision and timm."""
    hint = f" Did you mean '{near}'?" if near else ""
    return (
        f"Unknown model '{name}'.{hint} Allowed: {', '.join(sorted(MODELS))}; a name that says its sizes ({_SIZED}); "
        "torchvision's classification models ('torchvision:NAME', or NAME alone where it is none of these); timm's "
        "('timm:NAME'); on the local command line also package.module:factory."
    )
