"""Starts: what the kept weights are worth before the first training step.

A mask takes most of a unit's inputs away, and the dense initialisation was scaled for all of them. A row in ``STARTS``
draws or rescales the kept weights for the inputs that are left.

- ``gain``: each unit's kept weights, rescaled to a root mean square of g * sqrt(2 / kept inputs); signs and ratios stay.
- ``fan_in``: drawn anew from N(0, g^2 * 2 / kept inputs) (Evci et al., AAAI 2022, arXiv 2010.03533, section 3).
- ``isometry``: kept weights that bring A A^T near g^2 * 2 * I, A being a layer under its mask with its smaller side first
  (Lee et al., ICLR 2020, arXiv 1906.06307, eq. 12).
- ``supar``: hidden layers divided by the root of their density; their learning rates are to be divided by their density
  (Dey et al., NeurIPS 2024, arXiv 2405.15743, table 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from panning.foundation.errors import ConfigError, MaskError, NonFiniteError, UnknownNameError
from panning.foundation.registry import unknown_name_message
from panning.foundation.seeding import torch_generator
from panning.masks.layout import Kind, by_unit, from_units, prunable_parameters
from panning.masks.masks import Masks, check_masks_fit

#: ``isometry`` takes at most so many steps for a layer. It ends at this share of the target's norm, or where ten steps came
#: nearer by less than this share of the distance.
ISOMETRY_STEPS, ISOMETRY_NEAR, ISOMETRY_PROGRESS = 100, 1e-3, 1e-2
#: What recipes and grids call the weights as they are.
AS_DRAWN = "none"


@dataclass(frozen=True)
class Layer:
    """What a start knows of one masked parameter.

    Attributes:
        weights: float64 [output units, inputs of each], 0 where masked.
        mask: bool, alike.
        hidden: neither the first nor the last of all layers with weights, embeddings and what stays dense among them.
    """

    name: str
    weights: Tensor
    mask: Tensor
    hidden: bool
    gain: float
    generator: torch.Generator

    @property
    def kept_inputs(self) -> Tensor:
        """Kept weights of each unit, [output units, 1]; at least 1, so that a unit without any divides nothing by 0."""
        return self.mask.sum(1, keepdim=True).clamp(min=1)

    @property
    def density(self) -> float:
        return float(self.mask.sum()) / self.mask.numel()


def gained(layer: Layer) -> Tensor:
    """A unit whose kept weights are all 0 stays as it is."""
    size = (layer.weights.square().sum(1, keepdim=True) / layer.kept_inputs).sqrt()
    wanted = layer.gain * (2.0 / layer.kept_inputs).sqrt()
    return layer.weights * torch.where(size > 0, wanted / size, 1.0)


def drawn(layer: Layer) -> Tensor:
    noise = torch.randn(layer.weights.shape, generator=layer.generator, dtype=torch.float64)
    return noise * layer.gain * (2.0 / layer.kept_inputs).sqrt()


def has_pairs(layer: Layer) -> bool:
    """Whether a unit has two kept weights: those of one unit are turned against one another."""
    return int(layer.mask.sum(1).max()) > 1


def near_isometry(layer: Layer) -> Tensor:
    """Conjugate gradients from the weights that ``gain`` gives, each step as far as the distance falls.

    A step costs three products of the layer with itself: a quarter of a minute for a convolution of 512 by 512 channels on
    one core, in float32.
    """
    is_wide = layer.weights.shape[0] <= layer.weights.shape[1]
    wide, mask = (
        side.to(torch.float32) if is_wide else side.T.to(torch.float32) for side in (gained(layer), layer.mask)
    )
    target = 2.0 * layer.gain**2 * torch.eye(len(wide))
    apart, before, way, last = wide @ wide.T - target, math.inf, torch.zeros_like(wide), torch.ones_like(wide)
    for step in range(ISOMETRY_STEPS):
        if step % 10 == 0:
            if (distance := float(apart.norm())) < ISOMETRY_NEAR * float(target.norm()):
                break
            if before - distance < ISOMETRY_PROGRESS * distance:
                break
            before = distance
        slope = -(apart @ wide) * mask
        turn = float((slope * (slope - last)).sum() / last.square().sum().clamp(min=1e-30))  # Polak and Ribière's
        way, last = slope + max(0.0, turn) * way, slope
        first, second = (product := wide @ way.T) + product.T, way @ way.T
        wide = wide + _length(apart, first, second) * way
        apart = wide @ wide.T - target
    return (wide if is_wide else wide.T).double()


def _length(apart: Tensor, first: Tensor, second: Tensor) -> float:
    """The r at which the norm of apart + r * first + r^2 * second is least."""
    parts = torch.stack([part.flatten() for part in (apart, first, second)])
    (_, af, as_), (_, ff, fs), (_, _, ss) = (parts @ parts.T).tolist()
    slope = np.polynomial.Polynomial([2 * af, 2 * (ff + 2 * as_), 6 * fs, 4 * ss])
    ends = [float(root.real) for root in np.atleast_1d(slope.roots()) if abs(root.imag) <= 1e-9 * abs(root)]
    return min(ends, key=slope.integ(), default=0.0)


def over_density(layer: Layer) -> Tensor:
    return layer.weights * (layer.density**-0.5 if layer.hidden else 1.0)


@dataclass(frozen=True)
class StartRow:
    """One scheme.

    Attributes:
        weights: new weights of a layer, [output units, inputs of each]; what is masked becomes 0 afterwards.
        serves: whether the scheme can do anything for a layer; ``gain`` serves the others in its place.
        learning_rate: by what a layer's learning rate is to be multiplied.
        takes_gain: whether ``gain`` changes anything.
        own_masks: whether the scheme finds masks of its own (``panning.orthogonal``), which ``reinitialise`` does not.
    """

    label: str
    weights: Callable[[Layer], Tensor]
    serves: Callable[[Layer], bool] = lambda layer: True
    learning_rate: Callable[[Layer], float] = lambda layer: 1.0
    takes_gain: bool = True
    own_masks: bool = False


STARTS: dict[str, StartRow] = {
    "gain": StartRow("gain", gained),
    "fan_in": StartRow("fan-in draws", drawn),
    "isometry": StartRow("approximate isometry", near_isometry, has_pairs),
    "supar": StartRow(
        "SμPar",
        over_density,
        learning_rate=lambda layer: 1.0 / layer.density if layer.hidden else 1.0,
        takes_gain=False,
    ),
    "eoi": StartRow("EOI", gained, own_masks=True),
}


@dataclass(frozen=True)
class Started:
    """What ``reinitialise`` did.

    Attributes:
        learning_rates: name -> by what the scheme multiplies the layer's learning rate; layers without one are left out.
        at_gain: parameters that the scheme cannot serve, which ``gain`` has served in its place: under ``isometry`` those
            without a unit of two kept weights.
        untouched: masked parameters whose kept weights stay: those whose units the scheme cannot tell, as embeddings, and
            those that are 0 throughout, as a head that starts at 0, where the scheme rescales or turns what is there.
    """

    scheme: str
    learning_rates: dict[str, float] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()
    at_gain: tuple[str, ...] = ()

    def parameter_groups(self, model: nn.Module, lr: float) -> list[dict[str, object]]:
        """Groups for an optimizer: one for all parameters without a factor, one for each with."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        plain = [parameter for name, parameter in named.items() if name not in self.learning_rates]
        scaled = [
            {"params": [named[name]], "lr": lr * factor}
            for name, factor in self.learning_rates.items()
            if name in named
        ]
        return [{"params": plain, "lr": lr}, *scaled]


def reinitialise(model: nn.Module, masks: Masks, scheme: str, *, gain: float = 1.0, seed: int = 0) -> Started:
    """Give the kept weights of ``model`` the start ``scheme``, in place; masked weights become 0.

    Call it once, before the first training step and before ``enforce_masks`` or ``move_masks``. Biases and norms stay.

    Args:
        scheme: a row of ``panning.masks.start.STARTS``: ``gain``, ``fan_in``, ``isometry`` or ``supar``; or ``none``, which
            leaves the kept weights as they are.
        gain: 1 is the scale of He et al. for the kept inputs.
        seed: of ``fan_in``'s draws; equal arguments give equal weights.

    Returns:
        the factors of the learning rates (``supar`` alone has some), which layers the scheme could not serve, and what was
        left as it was.

    Raises:
        PanningError: if there is no such scheme, the gain is no positive number, the mask belongs to another network, kept
            weights are not finite, or the scheme can serve no layer; the model is then untouched.

    Examples:
        >>> import torch
        >>> import panning
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> masks = panning.prune(model, input_shape=(100,), density=0.1, method="erk")
        >>> started = panning.reinitialise(model, masks, "gain")
        >>> unit = model[0].weight[0][masks["0.weight"][0]]
        >>> bool((unit.square().mean() * len(unit)).isclose(torch.tensor(2.0)))
        True
    """
    check_gain(gain)
    if scheme == AS_DRAWN:
        _check_no_gain(scheme, gain)
        put_start(parameters := check_masks_fit(model, masks), masks, {})
        return Started(scheme, untouched=tuple(parameters))
    if not isinstance(scheme, str) or scheme not in STARTS:
        raise UnknownNameError(unknown_name_message("start", scheme, [AS_DRAWN, *STARTS]))
    row = STARTS[scheme]
    if row.own_masks:
        raise ConfigError(
            f"Start '{scheme}' finds masks of its own: call panning.orthogonal(model, masks), which returns them."
        )
    if not row.takes_gain:
        _check_no_gain(scheme, gain)
    parameters = check_masks_fit(model, masks)
    layers = list(prunable_parameters(model, masks.layout.found))
    new: dict[str, Tensor] = {}
    rates: dict[str, float] = {}
    unserved: list[str] = []
    for name, (kind, module) in unit_kinds(model, masks).items():
        mask = by_unit(masks[name], kind, module)
        weights = by_unit(parameters[name].detach().cpu().double(), kind, module).masked_fill(~mask, 0.0)
        if not bool(weights.isfinite().all()):
            raise NonFiniteError(
                f"Layer '{name}' has kept weights that are NaN or infinite: nothing can start from them."
            )
        layer = Layer(
            name, weights, mask, name not in layers[:1] + layers[-1:], gain, torch_generator(seed, "start", name)
        )
        if not layer.mask.any():
            continue
        if not row.serves(layer):
            unserved.append(name)
        started = (row.weights if row.serves(layer) else gained)(layer) * layer.mask
        if started.any():
            new[name] = from_units(started, parameters[name], kind, module)
        if (factor := row.learning_rate(layer)) != 1.0:
            rates[name] = factor
    if unserved and len(unserved) == len(new):
        raise MaskError(
            f"{scheme} turns a unit's weights against one another, and no unit has two kept weights, neither of "
            f"'{unserved[0]}' nor of any other layer. Keep more weights, or start by gain or fan_in."
        )
    put_start(parameters, masks, new)
    return Started(scheme, rates, tuple(name for name in parameters if name not in new), tuple(unserved))


def check_gain(gain: float) -> None:
    """Raise ConfigError if ``gain`` is no positive number."""
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0.0 < gain < math.inf:
        raise ConfigError(f"gain is {gain!r}, but must be a number above 0; 1 is the scale of He et al.")


def _check_no_gain(scheme: str, gain: float) -> None:
    if gain != 1.0:
        raise ConfigError(f"Start '{scheme}' has no gain, given {gain}; leave gain away.")


def unit_kinds(model: nn.Module, masks: Masks) -> dict[str, tuple[Kind, nn.Module]]:
    """The masked parameters whose output units are known, each with its kind and module."""
    parameters, kinds = check_masks_fit(model, masks), prunable_parameters(model, masks.layout.found)
    named = {name: kinds[name] for name in parameters if name in kinds and not parameters[name].is_complex()}
    return {name: (kind, module) for name, (kind, module) in named.items() if kind.by_default}


def put_start(parameters: Mapping[str, nn.Parameter], masks: Masks, new: Mapping[str, Tensor]) -> None:
    """Write ``new`` values into parameters; the others lose what ``masks`` mask.

    Raises:
        NonFiniteError: before anything is written, if a parameter's precision does not hold its values.
    """
    for name, values in new.items():
        if not bool(values.to(parameters[name].dtype).isfinite().all()):
            raise NonFiniteError(
                f"The start of layer '{name}' has weights up to {float(values.abs().max()):.3g}, more than its "
                f"{str(parameters[name].dtype).removeprefix('torch.')} holds: take a smaller gain."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in new:
                parameter.copy_(new[name])
            else:
                parameter.masked_fill_(~masks[name].to(parameter.device), 0.0)
