"""Tensors whose values are made when an operator of torch needs them, and are not kept.

A network of which a pass holds one layer's weights at a time: the parameters that it is run with are ``Lazy``. What autograd
keeps of them for the backward pass is the ``Lazy`` itself, so that a layer's values are made twice, once in each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from panning.foundation.torch_private import plain_functions, tree_map, without_values

#: Torch's own tensors begin at multiples of so many bytes. Kernels may sum in another order where a tensor does not.
ALIGNMENT = 64


class Lazy(Tensor):
    """A tensor of known shape and dtype; ``make`` gives its values, each time anew.

    A view of one (a transposed matrix, a chunk) is one, too. Every other operator gets the values.
    """

    make: Callable[[], Tensor]

    @staticmethod
    def __new__(cls: type[Lazy], make: Callable[[], Tensor], like: Tensor) -> Lazy:
        made: Lazy = without_values(cls, like.shape, strides=like.stride(), dtype=like.dtype)
        made.make = make
        return made

    __torch_function__ = plain_functions  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if func.is_view and isinstance(args[0], Lazy):
            return _viewed(func, args[0], args[1:], kwargs)
        return func(*tree_map(_values, args), **tree_map(_values, kwargs))


def lazy(make: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Lazy:
    """A leaf that gradients are taken at, contiguous, on the CPU.

    Args:
        make: gives values of this shape and dtype.

    Examples:
        >>> import torch
        >>> from panning.flow.lazy import lazy
        >>> weight = lazy(lambda: torch.ones(2, 3), (2, 3), torch.float32)
        >>> output = torch.nn.functional.linear(torch.arange(3.0), weight)
        >>> output.sum().backward()
        >>> output.tolist(), weight.grad.tolist()
        ([3.0, 3.0], [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    """
    return Lazy(make, torch.empty(shape, dtype=dtype, device="meta")).requires_grad_()  # type: ignore[return-value]


def take_gradients(
    backward: Callable[[list[Tensor]], None], leaves: Mapping[str, Lazy], take: Callable[[str, Tensor], None]
) -> None:
    """Run a backward pass, and hand over the gradient of each leaf when it is whole, which nothing then holds.

    Args:
        backward: gets the leaves.
        take: gets a name and the gradient, which it may write into; not called for what nothing depends on.
    """

    def hook_of(name: str) -> Callable[[Tensor], None]:
        def hook(leaf: Tensor) -> None:
            grad, leaf.grad = leaf.grad, None
            assert grad is not None
            take(name, grad)

        return hook

    for name, leaf in leaves.items():
        leaf.register_post_accumulate_grad_hook(hook_of(name))
    backward(list(leaves.values()))


def laid_at(values: Tensor, offset: int) -> Tensor:
    """``values``, or a copy of them that lies in memory as a part of a flat tensor does that begins at entry ``offset``.

    A kernel then gives the same numbers for it as for that part, to the last bit.
    """
    wanted = offset * values.element_size() % ALIGNMENT
    if values.is_contiguous() and values.data_ptr() % ALIGNMENT == wanted:
        return values
    room = torch.empty(values.numel() + ALIGNMENT // values.element_size(), dtype=values.dtype)
    start = (wanted - room.data_ptr()) % ALIGNMENT // values.element_size()
    return room[start : start + values.numel()].view(values.shape).copy_(values)


def _values(x: Any) -> Any:
    return x.make() if isinstance(x, Lazy) else x


def _viewed(func: Any, of: Lazy, args: Any, kwargs: dict[str, Any]) -> Any:
    shape = torch.empty_strided(of.shape, of.stride(), dtype=of.dtype, device="meta")
    found = func(shape, *args, **kwargs)
    if not isinstance(found, tuple | list):
        return Lazy(lambda: func(of.make(), *args, **kwargs), found)

    def part(number: int) -> Callable[[], Tensor]:
        return lambda: func(of.make(), *args, **kwargs)[number]

    return [Lazy(part(number), each) for number, each in enumerate(found)]
