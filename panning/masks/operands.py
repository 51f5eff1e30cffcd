"""What multiplies: for each function, which of its operands may be a weight, and the axes that the product sums over."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow import functions

#: What an operand of a product contributes: its number among the arguments, and the axes that the product sums over.
Operands = Callable[[tuple[Any, ...]], Iterator[tuple[int, tuple[int, ...]]]]


def _layer(args: tuple[Any, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(x, weight [out, in, ...], ...)"""
    if len(args) > 1 and isinstance(args[1], Tensor):
        yield 1, tuple(range(1, args[1].dim()))


def _transposed(args: tuple[Any, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(x, weight [in, out, ...], ...)"""
    if len(args) > 1 and isinstance(args[1], Tensor):
        yield 1, (0, *range(2, args[1].dim()))


def _matrices(first: int) -> Operands:
    def operands(args: tuple[Any, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        if len(args) > first + 1 and isinstance(args[first + 1], Tensor):
            yield first, (-1,)
            yield first + 1, (-2,) if args[first + 1].dim() > 1 else (0,)

    return operands


def _einsum(args: tuple[Any, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    equation = args[0]
    if not isinstance(equation, str):
        return
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(letter for letter in sorted(set(left) - {","}) if left.count(letter) == 1)
    for number, term in enumerate(terms):
        others = "".join(terms[:number] + terms[number + 1 :])
        if "..." not in term:
            yield number + 1, tuple(i for i, x in enumerate(term) if x in others and x not in right)


def _bilinear(args: tuple[Any, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    yield 2, (1, 2)


def _table(args: tuple[Any, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    yield 1, (0,)


PRODUCTS: dict[Any, Operands] = {
    F.linear: _layer,
    **{function: _transposed if "transpose" in function.__name__ else _layer for function in functions.CONVOLUTIONS},
    **dict.fromkeys((*functions.MATRIX_PRODUCTS, operator.matmul, Tensor.__matmul__), _matrices(0)),
    Tensor.__rmatmul__: lambda args: ((1 - number, axes) for number, axes in _matrices(0)((args[1], args[0]))),
    **{
        function: _matrices(1)
        for function in functions.FUSED
        if function.__name__ in ("addmm", "addmv", "baddbmm", "addbmm")
    },
    torch.einsum: _einsum,
    **dict.fromkeys((F.bilinear, torch.bilinear), _bilinear),
    F.embedding: _table,
}
#: What gives the values of a tensor, in the same positions, as another tensor or of another dtype.
COPIES = (torch.clone, Tensor.clone, Tensor.contiguous, Tensor.to, *functions.CASTS)
#: What puts a parameter beside activations or looks something up in it.
LOOKED_UP = (
    *functions.CONCATENATIONS, *functions.RESHAPES, torch.gather, Tensor.gather, torch.index_select, Tensor.index_select,
    Tensor.__setitem__, Tensor.copy_,
)  # fmt: skip
