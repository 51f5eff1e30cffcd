"""A network's weights and passes, a layer at a time: what scores a layer is made where it is needed and let go."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from panning import flow
from panning.flow.lazy import Lazy, laid_at, lazy, take_gradients
from panning.flow.recompute import recomputing
from panning.foundation.errors import NonFiniteError
from panning.foundation.wrappers import own_parameters
from panning.masks.packed import Bits, n_ones, unpacked
from panning.masks.selection import all_finite
from panning.scoring.problem import Problem, Scoring, at_least_float32, magnitude_of
from panning.scoring.signals.path import SCALES
from panning.scoring.signals.site import Site

#: Takes the number of a layer and the gradient of its weights, flat, to write into.
Take = Callable[[int, Tensor], None]


class TooLarge(NonFiniteError):
    """A path gradient that is not finite at one scale; another may do."""


@dataclass(eq=False)
class Layers:
    """The weights of a problem under a mask.

    Attributes:
        bits: of the mask, packed, for each layer; None: all weights are kept.
    """

    problem: Problem
    bits: Sequence[Bits] | None = None

    def __post_init__(self) -> None:
        named = own_parameters(self.problem.model)  # now: during a pass the network holds lazy ones
        self._parameters = [named[name].detach() for name in self.problem.layout.names]

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """Of all weights as they are scored: what joining them would give."""
        if self.problem.initial is not None:
            return self.problem.initial.dtype
        each = (at_least_float32(magnitude_of(parameter[:0])).dtype for parameter in self._parameters)
        return functools.reduce(torch.promote_types, each)

    def weight(self, layer: int) -> Tensor:
        """The dense weights of a layer, flat, as they are scored; not to be written into."""
        if self.problem.initial is not None:
            return self.problem.initial[self.problem.layout.slices()[layer]]
        return at_least_float32(magnitude_of(self._parameters[layer])).to(self.dtype).reshape(-1)

    def first_non_finite(self) -> str | None:
        """The first layer with a NaN or infinite weight; None if there is none."""
        for layer, name in enumerate(self.problem.layout.names):
            if not all_finite(self.weight(layer)):
                return name
        return None

    def kept(self, layer: int) -> Tensor | None:
        """The mask of a layer, flat uint8; None where all is kept."""
        size = self.problem.layout.sizes[layer]
        if self.bits is None or n_ones(self.bits[layer]) == size:
            return None
        return torch.from_numpy(unpacked(self.bits[layer], size)).view(torch.uint8)

    def masked(self, layer: int) -> Tensor:
        """w * m, flat."""
        kept = self.kept(layer)
        return self.weight(layer) if kept is None else self.weight(layer) * kept

    def absolute(self, layer: int) -> Tensor:
        """|w| m in float64, flat."""
        positive = self.weight(layer).double().abs()
        return positive if (kept := self.kept(layer)) is None else positive.mul_(kept)

    def ones(self, layer: int) -> Tensor:
        """The mask as zeros and ones in float32, flat."""
        kept = self.kept(layer)
        return torch.ones(self.problem.layout.sizes[layer]) if kept is None else kept.float()

    def leaves(self, make: Callable[[int], Tensor], dtype: torch.dtype) -> dict[str, Lazy]:
        """The parameters that a pass is run with; gradients are taken at them.

        Args:
            make: gives a layer's values, flat.
        """
        layout = self.problem.layout

        def values(number: int) -> Tensor:
            return laid_at(make(number), layout.offsets[number]).view(layout.shapes[number])

        return {
            name: lazy(functools.partial(values, number), shape, dtype)
            for number, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True))
        }

    @property
    def density(self) -> float:
        sizes = self.problem.layout.sizes
        return 1.0 if self.bits is None else sum(map(n_ones, self.bits)) / sum(sizes)

    def each(self, take: Take) -> Callable[[str, Tensor], None]:
        """``take`` by a layer's name."""
        number_of = {name: number for number, name in enumerate(self.problem.layout.names)}
        return lambda name, grad: take(number_of[name], grad.reshape(-1))


@dataclass(frozen=True, eq=False)
class LayerSite(Site):
    """A ``Site`` whose network is run with lazy weights."""

    layers: Layers = field(kw_only=True)

    @classmethod
    def of(cls, layers: Layers, round_number: int, scoring: Scoring) -> LayerSite:
        return cls(layers.problem, torch.empty(0, dtype=torch.bool), round_number, scoring, layers=layers)

    @property
    def density(self) -> float:
        return self.layers.density

    def outputs(self, effective: Any, inputs: Any, others: Any = None, extra: Any = None) -> Any:
        """As of a ``Site``; ``effective`` has a tensor for each layer."""
        problem, dtype = self.problem, self.layers.dtype
        others = problem.other_parameters() if others is None else others
        rules, parameters = self.rules(extra), {**others, **effective}
        with recomputing(problem.model, parameters, rules, dtype):
            return flow.run(problem.model, parameters, inputs, rules, dtype, problem.forward)


def loss_gradients(site: LayerSite, take: Take) -> None:
    """dL/du of each layer (``signals.loss``), as they appear."""
    layers = site.layers
    leaves = layers.leaves(layers.masked, layers.dtype)
    loss: Any = site.loss(leaves, site.batch)  # type: ignore[arg-type]  # what ``outputs`` above takes
    if loss.requires_grad:
        take_gradients(lambda at: flow.backward(loss, at), leaves, layers.each(take))


def path_gradients(site: LayerSite, take: Take, *, squared: bool = False, scale: int = 0) -> None:
    """dR/d|u|, or d/d(u^2) of the sum over paths of squared weights (``signals.path``), as they appear.

    Args:
        scale: place in ``SCALES``.

    Raises:
        TooLarge: if a gradient is not finite at this scale; what was taken before is void.
    """
    problem, layers, linear = site.problem, site.layers, site.scoring.linear_paths

    def positive(layer: int) -> Tensor:
        found = layers.absolute(layer)
        return found.square_() if squared else found

    def checked(layer: int, grad: Tensor) -> None:
        if not all_finite(grad):
            raise TooLarge(
                f"The signal 'path_grad' is NaN or infinite in layer '{problem.layout.names[layer]}' at density "
                f"{layers.density:.3g}."
            )
        take(layer, grad)

    leaves = layers.leaves(positive, torch.float64)
    others = {name: parameter.abs().double() for name, parameter in problem.other_parameters().items()}
    rules = flow.POSITIVE_LINEAR if linear else flow.TWICE_DIFFERENTIABLE
    factor = 2.0 ** -SCALES[scale]
    outputs = problem.example.paths(problem.model, {**others, **leaves}, rules, torch.float64, factor)
    if outputs:
        starts = [torch.full_like(output, factor) for output in outputs]
        take_gradients(lambda at: flow.backward(outputs, at, starts), leaves, layers.each(checked))
