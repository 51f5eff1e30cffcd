"""Connectivity: which kept weights are alive (METHODS B2).

A weight is alive if it is kept, some unmasked path leads from the input to it, and some unmasked path from it to the
output. Computed exactly by booleans: one forward and one backward pass of a single all-ones input through the network's
own graph with masks as weights, where every product is cut to 0 or 1 in both directions. Residual sums, concatenations,
flatten, grouped convolutions, padding and small maps are then what they are in the network; nothing over- or underflows
at any depth. Biases keep nothing alive; max-pooling counts every tap that could win.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panning import flow
from panning.errors import DensityError, MaskError
from panning.layout import Layout
from panning.masks import Masks, check_masks_fit
from panning.problem import Problem


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
        masked = set(self.layout.names)
        others = {
            name: torch.ones_like(p, dtype=torch.float32)
            for name, p in self.model.named_parameters()
            if name not in masked
        }
        ones = torch.ones(1, *self.input_shape, device=mask.device)
        parameters = {**others, **self.layout.views(gates)}
        output = flow.run(self.model, parameters, ones, flow.BOOLEAN, torch.float32)
        (grad,) = torch.autograd.grad(output.sum(), gates)
        return grad > 0.5

    def alive(self, mask: Tensor) -> Tensor:
        """Flat bool: the alive weights of ``mask``."""
        return self.connected(mask) & mask

    def n_alive(self, mask: Tensor) -> int:
        return int(self.alive(mask).sum())

    def smallest_alive(self) -> int:
        """The fewest weights that connect the input with the output: one per layer that no path can go around.

        Layers are left out one at a time, those with many weights first (a block's convolutions before its shortcut);
        on chains and residual networks what remains is the shortest path.
        """
        device = next(self.model.parameters()).device
        needed = torch.ones(self.layout.n_prunable, dtype=torch.bool, device=device)
        parts = self.layout.slices()
        kept_layers = 0
        for index in sorted(range(len(parts)), key=lambda i: -self.layout.sizes[i]):
            trial = needed.clone()
            trial[parts[index]] = False
            if self.n_alive(trial):
                needed = trial
            else:
                kept_layers += 1
        return kept_layers

    def check_reachable(self, n_kept: int) -> None:
        """Raise DensityError if fewer weights are asked for than any path through the network needs."""
        if n_kept >= len(self.layout.names):  # no path is longer than the network has layers
            return
        if n_kept < (smallest := self.smallest_alive()):
            raise DensityError(
                f"{n_kept} weights cannot connect the input with the output of this network: a path needs {smallest}. "
                f"The smallest density is {smallest / self.layout.n_prunable:.3g}."
            )


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
    """What is shown beside every mask."""

    n_kept: int
    density: float
    effective_density: float
    collapsed_layers: tuple[str, ...]


def report(connectivity: Connectivity, mask: Tensor) -> MaskReport:
    """Density, effective density, and the layers without an alive weight."""
    layout = connectivity.layout
    alive = connectivity.alive(mask)
    n_kept = int(mask.sum())
    collapsed = [name for name, count in zip(layout.names, layout.counts(alive), strict=True) if count == 0]
    return MaskReport(n_kept, n_kept / layout.n_prunable, int(alive.sum()) / layout.n_prunable, tuple(collapsed))
