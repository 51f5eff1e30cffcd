"""Gates: the masks of parameters as integers, by which gradients, weights and states are cleared of what is masked.

Clearing multiplies the bits of a number, read as an integer, by 0 or 1. Unlike a product of floats this makes zeros of NaN
and infinity too, none of them negative, and a foreach kernel takes all tensors at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panning.foundation.torch_private import multiply_each, sparse_parts

#: An integer type for each size of an element in bytes.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Gate:
    """The mask of one parameter as integers, 1 = kept, made once for each device, size and order in memory it meets."""

    def __init__(self, mask: Tensor) -> None:
        self.is_open = False
        self.change(mask)

    def change(self, mask: Tensor) -> None:
        self.mask = mask
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def like(self, bits: Tensor) -> Tensor:
        """The mask with the device, type and strides of ``bits``, which lets foreach kernels take them together."""
        key = (bits.device, bits.dtype, bits.stride())
        if key not in self._made:
            self._made[key] = torch.empty_like(bits).copy_(self.mask)
        return self._made[key]

    def on_gradient(self, parameter: Tensor) -> None:
        """The hook that follows the accumulation of a gradient."""
        if not self.is_open:
            self.clear_grad(parameter)

    def clear_grad(self, parameter: Tensor) -> None:
        """Zero the masked gradient of ``parameter``."""
        grad = parameter.grad
        if grad is None:
            return
        if is_plain(grad):
            clear([(grad, self)])
        elif grad.layout == torch.sparse_coo:
            self.clear_sparse(grad)
        else:  # create_graph=True: what is derived from this gradient must see the zeros
            grad.masked_fill_(~self.mask.to(grad.device), 0.0)

    def clear_sparse(self, tensor: Tensor) -> None:
        """Zero the masked places of an embedding's gradient or momentum: values [n_rows, ...] at indices [1, n_rows]."""
        indices, values = sparse_parts(tensor)
        values.masked_fill_(~self.mask.to(tensor.device)[tuple(indices)], 0.0)


def is_plain(grad: Tensor) -> bool:
    """Whether a gradient is dense and no part of a graph, so that its bits may be changed."""
    return _is_strided(grad) and not grad.requires_grad


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def clear(tensors: Sequence[tuple[Tensor, Gate]]) -> None:
    """Zero the masked places of all these at once."""
    # Not ``detach``, which shares the count of writes: a backward that still needs the weights of another optimizer, as
    # where each parameter is stepped by a hook of its own, would take zeros on zeros for a change.
    strided = [
        (tensor.data.view(INTEGERS[tensor.element_size()]), gate) for tensor, gate in tensors if _is_strided(tensor)
    ]
    if strided:
        multiply_each([bits for bits, _ in strided], [gate.like(bits) for bits, gate in strided])
    for tensor, gate in tensors:
        if not _is_strided(tensor):
            gate.clear_sparse(tensor)
