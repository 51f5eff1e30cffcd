"""Kernels whose work torch's counter does not know, or not in every version: rows for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Shape = Sequence[int]


def _product(left: Shape, right: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    return 2 * prod(out_shape) * left[-1]


def _added_product(added: Shape, left: Shape, right: Shape, *_: object, **__: object) -> int:
    return 2 * prod(left) * (right[-1] if len(right) > 1 else 1)


def _bilinear(first: Shape, weight: Shape, second: Shape, *_: object, **__: object) -> int:
    """One product after the other, as ``torch.einsum`` does it."""
    n_outputs, n_first, n_second = weight
    return 2 * first[0] * n_outputs * n_second * (n_first + 1)


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    """Operations of attention on [..., positions, features]; causal attention is counted as if it were not masked."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: Shape, weights: Sequence[Shape], *_: object, **__: object) -> int:
    """Each matrix once a step; vectors are biases."""
    return 2 * prod(inputs[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


#: Floating-point operations, two a multiply-add, from the shapes of a kernel's arguments.
FORMULAS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("mv", "dot", "vdot", "_int_mm", "_grouped_mm"), _product),
    **dict.fromkeys(("addmv", "addbmm"), _added_product),
    "_trilinear": _bilinear,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "mkldnn_rnn_layer": lambda inputs, *weights, **_: _recurrent(inputs, weights[:2]),
    "_cudnn_rnn": _recurrent,
    "miopen_rnn": _recurrent,
    "_lstm_mps": lambda inputs, state, weights, *_, **__: _recurrent(inputs, weights),
}


def rows() -> dict[Any, Callable[..., int]]:
    """The formulas by the operations of this torch; not every version has every kernel."""
    found = {getattr(torch.ops.aten, name, None): formula for name, formula in FORMULAS.items()}
    return {operation: formula for operation, formula in found.items() if operation is not None}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention and encoder layers as single products, so that a count does not depend on the kernel that a machine takes.

    A fused attention pads its features, and an encoder layer as one kernel has no shapes to count from.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
