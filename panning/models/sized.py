"""Networks whose name says their sizes: ``mlp:256-128``, ``plain:16-32,layers=2,norm=batch``, ``residual:8-16-32,blocks=2``.

A name is a family, the widths, and what is not as by default. The same network has one name, which results are filed by.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field
from torch import nn

from panning.foundation.config import Config, parse_config
from panning.foundation.errors import ConfigError, ModelError
from panning.models.mlp import MLP
from panning.models.plain import Plain
from panning.models.resnet import ResNet


def _of_text(given: Any) -> Any:
    """``16-32-64`` as its numbers."""
    return given.split("-") if isinstance(given, str) else given


def _is_odd(side: int) -> int:
    if side % 2 == 0:
        raise ValueError("must be odd, so that the map keeps its size")
    return side


Width = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=1, le=32)]
Kernel = Annotated[int, Field(ge=1, le=15), AfterValidator(_is_odd)]
Widths = Annotated[tuple[Width, ...], BeforeValidator(_of_text), Field(max_length=32)]


class LayerSize(NamedTuple):
    """The size of a layer with weights.

    Attributes:
        fan_in: inputs of each unit.
        units: outputs, or channels of the output.
        uses: how often one image takes each weight.
    """

    fan_in: int
    units: int
    uses: int

    @property
    def n_weights(self) -> int:
        """The number of the layer's weights."""
        return self.fan_in * self.units


class Sizes(Config):
    """Base of the sizes of a network of one family.

    Attributes:
        widths: units of each hidden layer, or channels of each stage.
        norm: ``batch`` has a BatchNorm after each layer but the last.
    """

    family: ClassVar[str]
    #: In tables, and in which number of dimensions its inputs come; None takes any.
    label: ClassVar[str]
    n_dimensions: ClassVar[int | None] = 3

    widths: Annotated[Widths, Field(min_length=1)]
    norm: Literal["none", "batch"] = "none"

    @property
    def text(self) -> str:
        """The network's name."""
        said = [f"{self.family}:{_written(self.widths)}"]
        for name, field in type(self).model_fields.items():
            if name != "widths" and (value := getattr(self, name)) != field.default:
                said.append(f"{name}={_written(value)}")
        return ",".join(said)

    @abstractmethod
    def layers_on(self, input_shape: tuple[int, ...], n_classes: int) -> list[LayerSize]:
        """The sizes of the layers that have weights, from input to output."""

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """The network, drawn from torch's global generator."""


class MLPSizes(Sizes):
    """Linear layers with ReLU."""

    family, label, n_dimensions = "mlp", "MLP", None

    def layers_on(self, input_shape: tuple[int, ...], n_classes: int) -> list[LayerSize]:
        return _linear([math.prod(input_shape), *self.widths, n_classes])

    def build(self, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        return MLP(input_shape, n_classes, self.widths, self.norm == "batch")


class PlainSizes(Sizes):
    """Stages of convolutions, each with a pool behind it (``Plain``).

    Attributes:
        layers: convolutions of each stage.
        kernel: side of each.
        hidden: units of each linear layer between the last map and the classifier.
    """

    family, label = "plain", "Plain"

    layers: Count = 1
    kernel: Kernel = 3
    hidden: Widths = ()

    def layers_on(self, input_shape: tuple[int, ...], n_classes: int) -> list[LayerSize]:
        n_inputs, height, width = input_shape
        found: list[LayerSize] = []
        for n_channels in self.widths:
            for _ in range(self.layers):
                found.append(LayerSize(self.kernel**2 * n_inputs, n_channels, height * width))
                n_inputs = n_channels
            if min(height, width) >= 2:
                height, width = height // 2, width // 2
        return found + _linear([n_inputs * (height * width if self.hidden else 1), *self.hidden, n_classes])

    def build(self, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        channels, height, width = input_shape
        shape = (channels, height, width)
        return Plain(shape, n_classes, self.widths, self.layers, self.kernel, self.hidden, self.norm == "batch")


class ResidualSizes(Sizes):
    """Stages of basic blocks; every stage but the first halves the map (``ResNet``).

    Attributes:
        blocks: of each stage, with two convolutions each.
        kernel: side of each.
    """

    family, label = "residual", "Residual"

    blocks: Count = 1
    kernel: Kernel = 3

    def layers_on(self, input_shape: tuple[int, ...], n_classes: int) -> list[LayerSize]:
        n_inputs, height, width = input_shape
        before = self.widths[0]
        found = [LayerSize(self.kernel**2 * n_inputs, before, height * width)]
        for number, n_channels in enumerate(self.widths):
            if number > 0:
                height, width = -(-height // 2), -(-width // 2)
                found.append(LayerSize(before, n_channels, height * width))
            for _ in range(self.blocks):
                found += [LayerSize(self.kernel**2 * n, n_channels, height * width) for n in (before, n_channels)]
                before = n_channels
        return found + _linear([before, n_classes])

    def build(self, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        channels, height, width = input_shape
        return ResNet((channels, height, width), n_classes, self.widths, self.blocks, self.kernel, self.norm == "batch")


def _linear(widths: Sequence[int]) -> list[LayerSize]:
    return [LayerSize(n_inputs, n_outputs, 1) for n_inputs, n_outputs in pairwise(widths)]


FAMILIES: dict[str, type[Sizes]] = {kind.family: kind for kind in (MLPSizes, PlainSizes, ResidualSizes)}


def _written(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def is_sized(name: str) -> bool:
    """Whether ``name`` begins like ``mlp:WIDTHS``."""
    family, colon, _ = name.partition(":")
    return bool(colon) and family in FAMILIES


def parse_sizes(name: str) -> Sizes:
    """The sizes that a name says.

    >>> from panning.models.sized import parse_sizes
    >>> sizes = parse_sizes("residual:8-16,norm=batch,blocks=2")
    >>> sizes.widths, sizes.blocks, sizes.text
    ((8, 16), 2, 'residual:8-16,norm=batch,blocks=2')
    >>> parse_sizes("mlp:256-128,norm=none").text
    'mlp:256-128'

    Raises:
        ModelError: if it is not of this form.
    """
    family, _, rest = name.partition(":")
    widths, *options = rest.split(",")
    pairs = [option.partition("=")[::2] for option in options]
    if len({key for key, _ in pairs} - {"widths"}) < len(pairs):
        raise ModelError(f"Model '{name}' says something twice, or its widths behind the colon and again.")
    values: dict[str, Any] = {"widths": widths, **dict(pairs)}
    try:
        return parse_config(FAMILIES[family], values, f"model '{name}'")
    except ConfigError as error:
        wrong = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ModelError(
            f"Model '{name}': {wrong}. The form is FAMILY:WIDTHS,KEY=VALUE, like plain:16-32,layers=2,norm=batch."
        ) from None


def build_sized(name: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The network that a name says; it draws from torch's global generator.

    Raises:
        ModelError: if the name is not of this form, or the network takes no such inputs.
    """
    sizes = parse_sizes(name)
    if sizes.n_dimensions not in (None, len(input_shape)):
        raise ModelError(f"'{name}' takes inputs (channels, height, width), given {input_shape}.")
    return sizes.build(input_shape, n_classes)
