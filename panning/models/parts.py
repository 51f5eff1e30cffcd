"""Modules between the layers of a compact network: they gather units, add parts, and follow the mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


def by_product(x: Tensor, axis: int) -> bool:
    """Whether units are taken and put by a matrix product: images in bfloat16 that lie channels last, on a processor.

    There a column of ones and zeros selects a unit in one product of matrices, where indexing takes a strided copy of each;
    a ResNet-20's compact step takes a tenth to a third less time. Each sum has one term that is not zero, so no bit differs.
    """
    last = x.dim() == 4 and axis == 1 and x.is_contiguous(memory_format=torch.channels_last)
    return last and x.dtype is torch.bfloat16 and x.device.type == "cpu"


def _selection(index: Tensor, n_units: int) -> Tensor:
    """bfloat16 [len(index), n_units]: in each row a one, at the unit that the index names."""
    return nn.functional.one_hot(index, n_units).to(torch.bfloat16)


def _rows(x: Tensor) -> Tensor:
    """Images that lie channels last as [pixels, units]; a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """``_rows`` undone: images of the size of ``like``."""
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


class Gather(nn.Module):
    """Some units of a tensor: x.index_select(axis, index)."""

    index: Tensor

    def __init__(self, axis: int, index: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if by_product(x, self.axis):
            return _images(_rows(x) @ _selection(self.index, x.shape[1]).t(), x)
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
            if index is None:
                continue
            if by_product(total, self.axis) and by_product(part, self.axis):
                added = torch.addmm(_rows(total), _rows(part), _selection(index, self.n_units))
                total = _images(added, total)
            else:
                total = total.index_add(self.axis, index, part.to(total.dtype))
        for number in range(self.n_shifts):
            values, index = getattr(self, f"shift{number}"), getattr(self, f"shift_index{number}")
            shift = values.new_zeros(self.n_units).index_put((index,), values)
            total = total + shift.to(total.dtype).view(-1, *[1] * (total.dim() - 1 - self.axis))
        return total

    def _zeros(self, part: Tensor) -> Tensor:
        shape = list(part.shape)
        shape[self.axis] = self.n_units
        last = self.axis == 1 and part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
        zeros = part.new_zeros(shape)
        return zeros.contiguous(memory_format=torch.channels_last) if last else zeros

    def extra_repr(self) -> str:
        return f"axis={self.axis}, n_units={self.n_units}, n_parts={self.n_parts}, n_shifts={self.n_shifts}"


class Ported(nn.Module):
    """A layer that gathers the inputs which it reads, and scatters the units which it computes among its others.

    The others are zero, or their biases: ``shift``, which is trained as they are.
    """

    reads: Tensor | None
    writes: Tensor | None
    shift_index: Tensor

    def open_ports(
        self, axis: int, reads: Tensor | None, writes: Tensor | None, n_units: int, shift: tuple[Tensor, Tensor] | None
    ) -> None:
        """
        Args:
            axis: of the units, from behind for a linear layer.
            reads: which inputs; None for all.
            writes: which of ``n_units`` units the layer computes; None for all.
            shift: values of other units, and which.
        """
        self.axis, self.n_units = axis, n_units
        self.register_buffer("reads", reads, persistent=False)
        self.register_buffer("writes", writes, persistent=False)
        self.register_parameter("shift", None)
        if shift is not None:
            self.shift = shift[0] if isinstance(shift[0], nn.Parameter) else nn.Parameter(shift[0], requires_grad=False)
            self.register_buffer("shift_index", shift[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.reads is not None:
            x = x.index_select(self.axis, self.reads)
        computed: Tensor = super().forward(x)
        if self.writes is None:
            return computed
        shape = list(computed.shape)
        shape[self.axis] = self.n_units
        units = computed.new_zeros(shape).index_add(self.axis, self.writes, computed)
        if self.shift is None:
            return units
        shift = self.shift.new_zeros(self.n_units).index_put((self.shift_index,), self.shift).to(units.dtype)
        return units + (shift if self.axis == -1 else shift.view(-1, *[1] * (units.dim() - 2)))

    def extra_repr(self) -> str:
        reads, writes = ("all" if index is None else len(index) for index in (self.reads, self.writes))
        return f"{super().extra_repr()}, reads={reads}, writes={writes}, n_units={self.n_units}"


class PortedLinear(Ported, nn.Linear): ...


class _Conv1D(nn.Module):
    """A linear layer whose weight is [inputs, outputs], as transformers' ``Conv1D`` has it."""

    nf: int
    nx: int
    weight: nn.Parameter
    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}"


class PortedConv1D(Ported, _Conv1D): ...


class PortedConv1d(Ported, nn.Conv1d): ...


class PortedConv2d(Ported, nn.Conv2d): ...


class PortedConv3d(Ported, nn.Conv3d): ...


#: By the exact type of a layer.
_PORTED: dict[str, type[Ported]] = {
    **{f"{kind.__module__}.{kind.__name__}": ported for kind, ported in (
        (nn.Linear, PortedLinear), (nn.Conv1d, PortedConv1d), (nn.Conv2d, PortedConv2d), (nn.Conv3d, PortedConv3d),
    )},
    "transformers.pytorch_utils.Conv1D": PortedConv1D,
}  # fmt: skip


def ported(kind: type[nn.Module]) -> type[Ported] | None:
    """The class of a layer of exactly this class that has ports; None if there is none."""
    return _PORTED.get(f"{kind.__module__}.{kind.__name__}")


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
