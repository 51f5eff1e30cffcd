"""Shapes that kernels can use: N of each M consecutive inputs (2:4), and blocks of outputs by inputs (4x1).

``n:m`` keeps exactly n of each m consecutive input channels of a unit, for a convolution at each tap; torch's
semi-structured kernels want this of a Linear (2:4 along the inputs of each output). ``rxc`` keeps or cuts whole blocks of r
consecutive output units by c consecutive input channels, at one tap. A layer is covered if its channels can be divided so;
weights of other layers are kept and cut one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from panning.foundation.errors import ConfigError, DensityError, MaskError, ModelError
from panning.masks.budgets import ranked_by_counts
from panning.masks.layout import Kind, Layout, by_unit, prunable_parameters, taps_and_groups
from panning.masks.masks import n_kept_at

EXAMPLES = "'2:4' (2 of each 4 consecutive inputs) or '4x1' (blocks of 4 outputs by 1 input)"


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        kept, of: n and m of ``n:m``; of blocks, 1 and 1.
        outputs, inputs: the sides of a block; of ``n:m``, 1 and m.
    """

    name: str
    kept: int
    of: int
    outputs: int
    inputs: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape that ``text`` names.

        Raises:
            ConfigError: if the text names none.
        """
        found = re.fullmatch(r"([1-9]\d{0,3})([:x])([1-9]\d{0,3})", text) if isinstance(text, str) else None
        if found is None:
            raise ConfigError(f"Shape {text!r} is none; write {EXAMPLES}.")
        first, second = int(found[1]), int(found[3])
        if found[2] == "x":
            return cls(text, 1, 1, first, second)
        if first >= second:
            raise ConfigError(f"Shape '{text}' keeps {first} of {second}; the first number is less than the second.")
        return cls(text, first, second, 1, second)

    @property
    def is_of_blocks(self) -> bool:
        return self.of == 1

    def groups(self, positions: Tensor, shape: tuple[int, ...], kind: Kind, module: nn.Module) -> Tensor | None:
        """Flat positions of a parameter as [groups or blocks, weights of each]; None if its channels cannot be divided.

        Args:
            positions: the flat positions, of the parameter's shape.
        """
        if not kind.by_default or (kind.inputs is not None and len(shape) > 2):
            return None  # an embedding is looked up: it has no inputs that are summed; taps are those of convolutions
        taps, n_groups = taps_and_groups(kind, module, shape)
        units = by_unit(positions, kind, module)  # [units, inputs * taps]
        n_units, n_inputs = units.shape[0], units.shape[1] // taps
        if n_units // n_groups % self.outputs or n_inputs % self.inputs:  # other groups read other inputs
            return None
        blocks = units.reshape(n_units // self.outputs, self.outputs, n_inputs // self.inputs, self.inputs, taps)
        return blocks.permute(0, 2, 4, 1, 3).reshape(-1, self.outputs * self.inputs)


def check_unrepaired(shape: str | None, all_alive: bool) -> None:
    """Raise MaskError if a mask of a shape is to be repaired weight by weight."""
    if shape is not None and all_alive:
        raise MaskError(
            f"all_alive moves single weights, which would break the shape '{shape}': leave one of them away."
        )


@dataclass(frozen=True)
class Shaped:
    """The layers of a network that a shape covers.

    Attributes:
        groups: name -> flat positions in the layout, [groups or blocks, weights of each].
    """

    shape: Shape
    layout: Layout
    groups: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, text: str) -> Shaped:
        """The layers of ``model`` that the shape ``text`` covers.

        Raises:
            ConfigError: if the text names no shape.
            ModelError: if the shape covers no layer.
        """
        shape, kinds = Shape.parse(text), prunable_parameters(model, layout.found)
        found: dict[str, Tensor] = {}
        for name, part, size in zip(layout.names, layout.slices(), layout.shapes, strict=True):
            positions = torch.arange(part.start, part.stop).view(size)
            if name in kinds and (groups := shape.groups(positions, size, *kinds[name])) is not None:
                found[name] = groups
        if not found:
            channels = ", ".join(
                f"{name} {tuple(size)}" for name, size in zip(layout.names, layout.shapes, strict=True)
            )
            raise ModelError(
                f"Shape '{text}' covers no layer: its channels must be multiples of {shape.outputs} outputs and "
                f"{shape.inputs} inputs, and these are {channels[:500]}."
            )
        return cls(shape, layout, found)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Layers whose weights are kept and cut one by one."""
        return tuple(name for name in self.layout.names if name not in self.groups)

    def facts(self) -> dict[str, object]:
        """For a mask's manifest."""
        return {"shape": self.shape.name} | ({"not_in_shape": list(self.uncovered)} if self.uncovered else {})

    @cached_property
    def _covered(self) -> Tensor:
        """bool [n_prunable]."""
        covered = torch.zeros(self.layout.n_prunable, dtype=torch.bool)
        for groups in self.groups.values():
            covered[groups.reshape(-1)] = True
        return covered

    def n_kept(self, density: float | None) -> int:
        """How many weights a mask of this shape keeps at ``density``; None keeps all of the layers that are not covered.

        Raises:
            DensityError: if the shape cannot have that density, with the densities that it can have.
        """
        n_single = int((~self._covered).sum())
        if self.shape.is_of_blocks:
            if density is None:
                raise DensityError(f"Shape '{self.shape.name}' says nothing of how much is kept: pass density.")
            return self._n_in_blocks(n_kept_at(density, self.layout.n_prunable), n_single)
        fixed = int(self._covered.sum()) // self.shape.of * self.shape.kept
        if density is None:
            return fixed + n_single
        wanted = n_kept_at(density, self.layout.n_prunable)
        if not fixed <= wanted <= fixed + n_single:
            low, high = (n / self.layout.n_prunable for n in (fixed, fixed + n_single))
            singles = f", and the {n_single} weights of the other layers are single" if n_single else ""
            raise DensityError(
                f"Shape '{self.shape.name}' keeps {fixed} weights of the layers that it covers{singles}: densities "
                f"from {low:.6g} to {high:.6g} can be had, given {density}. Leave density away for the largest."
            )
        return wanted

    def _n_in_blocks(self, wanted: int, n_single: int) -> int:
        size = self.shape.outputs * self.shape.inputs
        if (rest := wanted % size) > n_single:
            near = [n for n in (wanted - rest + n_single, wanted - rest + size) if 1 <= n <= self.layout.n_prunable]
            raise DensityError(
                f"Blocks of {size} weights and {n_single} single ones cannot make {wanted} weights; near densities that "
                f"can be had are {', '.join(f'{n / self.layout.n_prunable:.9g}' for n in near)}."
            )
        return wanted

    def near(self, n_kept: int) -> int:
        """The largest number of weights up to ``n_kept`` that whole blocks and single weights can make."""
        rest = n_kept % (self.shape.outputs * self.shape.inputs)
        return n_kept - max(0, rest - int((~self._covered).sum()))

    def pooled(self, values: Tensor) -> Tensor:
        """The mean magnitude of its block in place of every value, flat [n_prunable]; single weights keep their values."""
        blocks = torch.cat(list(self.groups.values())).to(values.device)
        pooled = values.clone()
        pooled[blocks] = values[blocks].abs().mean(1, keepdim=True).expand(blocks.shape)
        return pooled

    def mask(self, scores: Tensor, density: float | None, counts: Sequence[int] | None = None) -> Tensor:
        """The mask of this shape with the highest scores: ``n:m`` takes the best n of each group, blocks go by their mean.

        Args:
            scores: flat [n_prunable]; higher is kept, among equals the lower position.
            counts: how many weights each layer is to have, as near as whole groups allow; None: as many as its scores earn.

        Returns:
            flat bool, with exactly ``n_kept(density)`` weights.
        """
        n_kept = self.n_kept(density)
        shaped = torch.zeros(len(scores), dtype=torch.bool)
        if self.shape.is_of_blocks:
            return self._blocks(shaped, scores, n_kept, counts)
        for groups in self.groups.values():
            best = scores[groups].argsort(dim=1, descending=True, stable=True)[:, : self.shape.kept]
            shaped[groups.gather(1, best).reshape(-1)] = True
        single = (~self._covered).nonzero().squeeze(1)
        best = self._by_counts(scores[single], {}, counts).argsort(descending=True, stable=True)
        shaped[single[best[: n_kept - int(shaped.sum())]]] = True
        return shaped

    def _by_counts(self, values: Tensor, blocks: Mapping[str, Tensor], counts: Sequence[int] | None) -> Tensor:
        """Keys in place of the values of blocks and single weights, by which layers share as ``counts`` have it."""
        if counts is None or not len(values):
            return values
        wanted, size = dict(zip(self.layout.names, counts, strict=True)), self.shape.outputs * self.shape.inputs
        sizes = dict(zip(self.layout.names, self.layout.sizes, strict=True))
        parts = values.split([*(len(some) for some in blocks.values()), *(sizes[name] for name in self.uncovered)])
        shares = [*(wanted[name] / size for name in blocks), *(float(wanted[name]) for name in self.uncovered)]
        return torch.cat(ranked_by_counts([part.argsort(descending=True, stable=True) for part in parts], shares))

    def _blocks(self, shaped: Tensor, scores: Tensor, n_kept: int, counts: Sequence[int] | None) -> Tensor:
        """Whole blocks and single weights, the highest means first, until the budget is used up exactly."""
        size = self.shape.outputs * self.shape.inputs
        blocks = torch.cat(list(self.groups.values()))
        single = (~self._covered).nonzero().squeeze(1)
        values = self._by_counts(torch.cat([scores[blocks].mean(1), scores[single]]), self.groups, counts)
        ranked = values.argsort(descending=True, stable=True)
        end = torch.where(ranked < len(blocks), size, 1).cumsum(0)
        taken, then = ranked[end <= n_kept], ranked[end > n_kept]
        left = n_kept - int(end[end <= n_kept][-1:].sum())
        more = then[then >= len(blocks)][:left]
        if len(more) < left:  # too few single weights are left: the worst of those taken make room for a block
            ones = taken[taken >= len(blocks)]
            taken = torch.cat([taken[taken < len(blocks)], ones[: len(ones) - (size - left)]])
            more = then[then < len(blocks)][:1]
        items = torch.cat([taken, more])
        shaped[blocks[items[items < len(blocks)]].reshape(-1)] = True
        shaped[single[items[items >= len(blocks)] - len(blocks)]] = True
        return shaped
