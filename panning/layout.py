"""Layout: names, shapes and offsets of the prunable parameters, in forward order.

Everything that is per weight (weights, scores, masks) is one flat tensor of ``n_prunable`` entries; ``views`` gives the
per-layer tensors of the same storage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from panning.errors import ModelError

#: Modules whose ``weight`` is prunable. Biases and norm parameters never are (every method agrees, METHODS 0).
PRUNABLE_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layout:
    """Where each prunable parameter lies in a flat tensor.

    Attributes:
        names: ``state_dict`` names in forward (registration) order.
        shapes: the shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter starts in the flat tensor; one more entry than names, the last is ``n_prunable``."""
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        return tuple(offsets)

    @property
    def n_prunable(self) -> int:
        return self.offsets[-1]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Per-parameter views of a flat tensor [n_prunable]; differentiable."""
        parts = flat.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def slices(self) -> list[slice]:
        """The flat range of each parameter."""
        return [slice(start, stop) for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """One flat tensor [n_prunable] from named tensors; a copy."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def counts(self, mask: Tensor) -> list[int]:
        """Number of True entries of a flat bool tensor in each parameter."""
        return [int(part.sum()) for part in mask.split(self.sizes)]


def prunable_layout(model: nn.Module, include: tuple[str, ...] | None = None, exclude: tuple[str, ...] = ()) -> Layout:
    """The layout of every Linear and Conv weight of ``model``.

    Args:
        include: shell-style patterns of ``state_dict`` names; only these are prunable. None means all.
        exclude: patterns of names that stay dense.

    Raises:
        ModelError: if nothing is prunable, if a pattern matches nothing, or if two prunable parameters are one tensor.
    """
    found = {
        f"{prefix}.weight" if prefix else "weight": module.weight
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PRUNABLE_MODULES)
    }
    # A weight that is computed (weight_norm, parametrizations) is no parameter and cannot be masked as one.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    candidates = {name: weight for name, weight in found.items() if name in parameters}
    for pattern in (*(include or ()), *exclude):
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ModelError(f"Pattern '{pattern}' matches none of the prunable weights: {', '.join(candidates)}.")
    chosen = {
        name: weight
        for name, weight in candidates.items()
        if (include is None or any(fnmatchcase(name, p) for p in include))
        and not any(fnmatchcase(name, p) for p in exclude)
    }
    if not chosen:
        raise ModelError("The model has no prunable weight: no Linear or Conv layer is left after include and exclude.")
    by_tensor: dict[int, str] = {}
    for name, weight in chosen.items():
        if (first := by_tensor.setdefault(id(weight), name)) != name:
            raise ModelError(f"'{name}' and '{first}' are one tensor (tied weights); exclude one of them.")
    return Layout(tuple(chosen), tuple(tuple(weight.shape) for weight in chosen.values()))
