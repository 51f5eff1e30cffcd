"""A network from a file is first run on tensors without numbers, under bounds: what it would take is seen, and not taken."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from panning.foundation.errors import ModelError
from panning.foundation.torch_private import DispatchMode, storage_of
from panning.models.graph import MAX_VALUES

#: What one result may hold on the example's inputs, and all that are held at once, in bytes.
MAX_STEP_BYTES = 2**32
MAX_HELD_BYTES = 2**36
#: Operations of torch in one forward pass; a recurrent layer has some for every step of its sequence.
MAX_OPERATIONS = 200_000
#: Pieces that a tensor is taken apart into at once.
MAX_PIECES = 2**16
#: What the writer of a file can do.
SMALLER = "written with a smaller example, it may fit"


class Rehearsal(DispatchMode):
    """A context in which operations run on the meta device alone, and not beyond the bounds.

    It sees what functions of torch call within, and so what they hold in between.

    Raises:
        ModelError: by what runs in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_operations = 0
        self._n_tensors: Counter[int] = Counter()
        self._held = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._n_operations += 1
        if self._n_operations > MAX_OPERATIONS:
            raise ModelError(f"its forward has more than {MAX_OPERATIONS} operations.")
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            raise ModelError(f"a step asks for the device {kwargs['device']}; it must take that of its input.")
        if (n := _n_pieces(func, args)) > MAX_PIECES:
            raise ModelError(f"a step makes {n} tensors, more than {MAX_PIECES}.")
        result = func(*args, **kwargs)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return result

    def _hold(self, tensor: Tensor) -> None:
        if tensor.numel() * tensor.element_size() > MAX_STEP_BYTES:
            raise ModelError(f"a step makes {tensor.numel()} numbers, more than {MAX_STEP_BYTES} bytes; {SMALLER}.")
        storage, n_bytes = storage_of(tensor)
        self._held += n_bytes if not self._n_tensors[storage] else 0
        self._n_tensors[storage] += 1
        weakref.finalize(tensor, self._let_go, storage, n_bytes).atexit = False
        if self._held > MAX_HELD_BYTES:
            raise ModelError(f"its steps hold {self._held} bytes at once, more than {MAX_HELD_BYTES}; {SMALLER}.")

    def _let_go(self, storage: int, n_bytes: int) -> None:
        self._n_tensors[storage] -= 1
        if not self._n_tensors[storage]:
            del self._n_tensors[storage]
            self._held -= n_bytes


def _n_pieces(func: Any, args: Any) -> int:
    if func is torch.ops.aten.unbind.int:
        return int(args[0].shape[args[1] if len(args) > 1 else 0])
    if func is torch.ops.aten.split.Tensor:
        return int(args[0].shape[args[2] if len(args) > 2 else 0] // max(args[1], 1))
    return 0


def check_flat(result: Any) -> None:
    """Refuse a result whose lists hold each other: each step could double what the one before it gave."""
    for n, _ in enumerate(_values(result)):
        if n >= MAX_VALUES:
            raise ModelError(f"a step gives more than {MAX_VALUES} values.")


def _values(result: Any) -> Iterator[Any]:
    waiting = [result]
    while waiting:
        yield (one := waiting.pop())
        if isinstance(one, tuple | list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
