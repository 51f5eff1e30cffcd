"""Modules between the layers of a compact network: they gather units, add parts, and follow the mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


class Gather(nn.Module):
    """Some units of a tensor: x.index_select(axis, index)."""

    index: Tensor

    def __init__(self, axis: int, index: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.axis, self.index)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, n_units={len(self.index)}"


class PartialSum(nn.Module):
    """The sum of tensors that each have some of its units, and of constants that are trained.

    Args:
        axis: of the units.
        n_units: of the sum.
        indices: where each part's units lie in the sum; None for a part that has them all.
        shifts: for each constant part, its values and where they lie; parameters are trained.
    """

    def __init__(
        self, axis: int, n_units: int, indices: Sequence[Tensor | None], shifts: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> None:
        super().__init__()
        self.axis, self.n_units = axis, n_units
        self.n_parts, self.n_shifts = len(indices), len(shifts)
        for number, index in enumerate(indices):
            self.register_buffer(f"index{number}", index, persistent=False)
        for number, (values, index) in enumerate(shifts):
            if isinstance(values, nn.Parameter):
                self.register_parameter(f"shift{number}", values)
            else:
                self.register_buffer(f"shift{number}", values)
            self.register_buffer(f"shift_index{number}", index, persistent=False)

    def forward(self, *parts: Tensor) -> Tensor:
        indices = [getattr(self, f"index{number}") for number in range(self.n_parts)]
        whole = [part for part, index in zip(parts, indices, strict=True) if index is None]
        total = sum(whole[1:], whole[0]) if whole else self._zeros(parts[0])
        total = total.to(reduce(torch.promote_types, [part.dtype for part in parts]))  # as a plain sum's type
        for part, index in zip(parts, indices, strict=True):
            if index is not None:
                total = total.index_add(self.axis, index, part.to(total.dtype))
        for number in range(self.n_shifts):
            values, index = getattr(self, f"shift{number}"), getattr(self, f"shift_index{number}")
            shift = values.new_zeros(self.n_units).index_put((index,), values)
            total = total + shift.to(total.dtype).view(-1, *[1] * (total.dim() - 1 - self.axis))
        return total

    def _zeros(self, part: Tensor) -> Tensor:
        shape = list(part.shape)
        shape[self.axis] = self.n_units
        return part.new_zeros(shape)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, n_units={self.n_units}, n_parts={self.n_parts}, n_shifts={self.n_shifts}"


class ByMode(nn.Module):
    """A function some of whose arguments are whether the network is being trained, like F.dropout."""

    def __init__(self, function: Callable[..., Any], positions: Sequence[int], keywords: Sequence[str]) -> None:
        super().__init__()
        self.function, self.positions, self.keywords = function, tuple(positions), tuple(keywords)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [self.training if i in self.positions else arg for i, arg in enumerate(args)]
        return self.function(*given, **{**kwargs, **dict.fromkeys(self.keywords, self.training)})

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))
