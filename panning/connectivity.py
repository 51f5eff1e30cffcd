"""Connectivity: which kept weights are alive (METHODS B2).

A weight is alive if it is kept, some unmasked path leads from the input to it, and some unmasked path from it to the
output. Computed exactly by booleans: one forward and one backward pass of a single all-ones input through the network's
own graph with masks as weights, where every product is cut to 0 or 1 in both directions. Residual sums, concatenations,
flatten, grouped convolutions, padding and small maps are then what they are in the network; nothing over- or underflows
at any depth. Biases keep nothing alive; max-pooling counts every tap that could win.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panning import flow
from panning.errors import DensityError, MaskError, ModelError
from panning.layout import KINDS, Layout, by_unit, prunable_parameters
from panning.masks import Masks, check_masks_fit
from panning.problem import Problem

#: In ``smallest_alive``, how much less a path counts for being one layer longer, in powers of two.
LONGER_BY_BITS = 40


@dataclass(frozen=True, eq=False)
class Connectivity:
    """The alive test of one network, ready for any number of masks."""

    model: nn.Module
    layout: Layout
    input_shape: tuple[int, ...]

    @classmethod
    def of(cls, problem: Problem) -> Connectivity:
        return cls(problem.model, problem.layout, problem.input_shape)

    def connected(self, mask: Tensor) -> Tensor:
        """Flat bool: where a kept weight would be alive, given all *other* kept weights.

        True also for a masked weight between a unit that the input reaches and one that reaches the output: keeping it
        as well makes exactly this one more weight alive.
        """
        with torch.enable_grad():  # callers may ask inside an evaluation loop
            return self._connected(mask)

    def _connected(self, mask: Tensor) -> Tensor:
        gates = mask.to(torch.float32).requires_grad_()
        others = _ones(self.model, self.layout, torch.float32)
        ones = torch.ones(1, *self.input_shape, dtype=torch.float32, device=mask.device, requires_grad=True).clone()
        parameters = {**others, **self.layout.views(gates)}
        output = flow.run(self.model, parameters, ones, flow.BOOLEAN, torch.float32)
        # A weight that no output depends on is dead, like those of a head that is used in training only.
        (grad,) = torch.autograd.grad(output.sum(), gates, materialize_grads=True)
        return grad > 0.5

    def alive(self, mask: Tensor) -> Tensor:
        """Flat bool: the alive weights of ``mask``."""
        return self.connected(mask) & mask

    def n_alive(self, mask: Tensor) -> int:
        return int(self.alive(mask).sum())

    def smallest_alive(self) -> int:
        """The fewest prunable weights that connect the input with the output; 0 where a path goes around all of them.

        With every weight a tiny e over its fan-in, the output sums e^length over all paths, and what the sum's derivative
        says of the mean length is that of the shortest ones.

        Raises:
            ModelError: if no prunable weight lies on any path.
        """
        bits = min(LONGER_BY_BITS, 1450 // len(self.layout.names))  # what all layers together have in a float64
        start = 2.0 ** min(490, bits * len(self.layout.names) // 3)
        tiny = [2.0**-bits / max(1, math.prod(shape[1:])) for shape in self.layout.shapes]
        flat = self.layout.per_layer(tiny, torch.float64).to(next(self.model.parameters()).device)
        with torch.enable_grad():
            flat.requires_grad_()
            others = _ones(self.model, self.layout, torch.float64)
            ones = torch.ones(1, *self.input_shape, dtype=torch.float64, device=flat.device, requires_grad=True)
            parameters = {**others, **self.layout.views(flat)}
            # Both directions start large, since they shrink by e at every layer.
            try:
                output = flow.run(self.model, parameters, ones * start, flow.SHORTEST, torch.float64)
            except RuntimeError:  # code that makes float32 tensors of its own: a bound that refuses nothing
                return 1
            seed = torch.full_like(output, start)
            (grad,) = torch.autograd.grad(output, flat, seed, materialize_grads=True)
        if not grad.any():
            raise ModelError(
                "No prunable weight of this network lies on a path from the input to the output that panning can follow: "
                "the README names the layers that it knows."
            )
        total = float((output.detach() * seed).sum())
        mean = float((flat.detach() * grad).sum()) / total if total > 0 else math.nan
        return round(mean) if math.isfinite(mean) else 1  # beyond float64: a bound that refuses nothing

    def check_reachable(self, n_kept: int) -> None:
        """Raise DensityError if fewer weights are asked for than any path through the network needs."""
        if n_kept < (smallest := self.smallest_alive()):
            raise DensityError(
                f"{n_kept} weights cannot connect the input with the output of this network: a path needs {smallest}. "
                f"The smallest density is {smallest / self.layout.n_prunable:.3g}."
            )


def _ones(model: nn.Module, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Ones for every parameter that is not masked: it cuts nothing, and flows drop what it adds."""
    masked = set(layout.names)
    return {name: torch.ones_like(p, dtype=dtype) for name, p in model.named_parameters() if name not in masked}


def alive_flat(model: nn.Module, masks: Masks, input_shape: tuple[int, ...] | None = None) -> Tensor:
    """The alive weights of ``masks``, flat bool [n_prunable].

    Raises:
        MaskError: if the mask belongs to another network, or neither it nor the caller gives the input shape.
    """
    check_masks_fit(model, masks)
    shape = input_shape or masks.manifest.get("input_shape")
    if shape is None:
        raise MaskError("This mask does not say the network's input shape; pass input_shape=(channels, height, width).")
    device = next(model.parameters()).device
    return Connectivity(model, masks.layout, tuple(shape)).alive(masks.flat.to(device)).to(masks.flat.device)


@dataclass(frozen=True)
class MaskReport:
    """What is shown beside every mask.

    Attributes:
        n_dead_units: output units (neurons, channels) of masked layers without an alive weight into them.
        collapsed_layers: layers without an alive weight.
    """

    n_kept: int
    density: float
    effective_density: float
    n_dead_units: int
    collapsed_layers: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What a mask's manifest says about it."""
        return {
            "effective_density": self.effective_density,
            "n_dead_units": self.n_dead_units,
            "collapsed_layers": list(self.collapsed_layers),
        }


def report(connectivity: Connectivity, mask: Tensor) -> MaskReport:
    """Density, effective density, dead units and collapsed layers of a flat mask."""
    layout = connectivity.layout
    alive = connectivity.alive(mask)
    kinds = prunable_parameters(connectivity.model)
    n_dead, collapsed = 0, []
    for name, part in layout.views(alive).items():
        n_dead += int((~by_unit(part, *kinds.get(name, (KINDS[0], connectivity.model))).any(1)).sum())
        if not part.any():
            collapsed.append(name)
    n_kept = int(mask.sum())
    effective = int(alive.sum()) / layout.n_prunable
    return MaskReport(n_kept, n_kept / layout.n_prunable, effective, n_dead, tuple(collapsed))
