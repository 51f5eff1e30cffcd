"""Masks that stay packed, one bit a weight, until a layer is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.masks.layout import Layout
from panning.masks.masks import Masks

#: The bits of a layer: uint8 [ceil(n / 8)], in the order of ``numpy.packbits``; the padding bits are 0.
Bits = NDArray[np.uint8]
#: The number of bits of a byte that are 1.
_N_ONES = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)


def unpacked(bits: Bits, size: int) -> NDArray[np.bool_]:
    """The entries of a layer of ``size`` weights, bool."""
    return np.unpackbits(bits, count=size).view(np.bool_)


def n_ones(bits: Bits) -> int:
    """The number of weights that are kept."""
    return int(np.take(_N_ONES, bits).sum(dtype=np.int64))


class PackedMasks(Masks):
    """Masks in an eighth of the memory. All that takes ``Masks`` takes these; a layer is unpacked whenever it is asked for.

    ``flat`` unpacks all layers, a byte a weight, each time: what asks layer by layer needs no such tensor.

    Examples:
        >>> import torch
        >>> import panning
        >>> from panning.masks.packed import PackedMasks
        >>> masks = PackedMasks.of(panning.Masks.from_tensors({"weight": torch.tensor([[1, 0], [1, 1]])}))
        >>> masks.n_kept, masks["weight"].tolist(), masks.bits[0].tolist()
        (3, [[True, False], [True, True]], [176])
    """

    layout: Layout
    bits: tuple[Bits, ...]
    manifest: dict[str, Any]

    def __init__(self, layout: Layout, bits: Sequence[Bits], manifest: dict[str, Any] | None = None) -> None:
        sizes = [-(-size // 8) for size in layout.sizes]
        if [part.shape for part in bits] != [(size,) for size in sizes] or any(part.dtype != np.uint8 for part in bits):
            raise MaskError(f"Packed masks of this layout are uint8 arrays of {sizes} bytes, one for each layer.")
        for name, value in {"layout": layout, "bits": tuple(bits), "manifest": manifest or {}}.items():
            object.__setattr__(self, name, value)  # frozen, as every mask is

    @classmethod
    def of(cls, masks: Masks) -> PackedMasks:
        """The same masks, packed."""
        if isinstance(masks, PackedMasks):
            return masks
        return cls(masks.layout, list(masks.packed_layers()), masks.manifest)

    @property
    def flat(self) -> Tensor:
        """bool [n_prunable], made anew."""
        parts = [unpacked(bits, size) for bits, size in zip(self.bits, self.layout.sizes, strict=True)]
        return torch.from_numpy(np.concatenate(parts))

    def __getitem__(self, name: str) -> Tensor:
        index = self._index(name)
        layer = unpacked(self.bits[index], self.layout.sizes[index])
        return torch.from_numpy(layer).view(self.layout.shapes[index])

    @property
    def n_kept(self) -> int:
        return sum(self.counts())

    def counts(self) -> list[int]:
        return [n_ones(part) for part in self.bits]

    def packed_layers(self) -> Iterator[Bits]:
        return iter(self.bits)

    def _with(self, layout: Layout, manifest: dict[str, Any]) -> Masks:
        return PackedMasks(layout, self.bits, manifest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedMasks):
            return super().__eq__(other)
        equal = (np.array_equal(mine, others) for mine, others in zip(self.bits, other.bits, strict=True))
        return self.layout == other.layout and all(equal)

    __hash__ = None  # as of all masks
