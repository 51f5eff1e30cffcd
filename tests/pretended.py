"""A device that is not there: tensors that say they lie on it, with their values on the CPU.

Everything is computed, by the CPU's kernels, so that results can be compared bit for bit; and everything that a real device
refuses is refused: tensors of two devices in one operation, a NumPy array of one that lies there, on MPS float64. What makes
the host wait for a device is counted. torch itself believes that the tensors lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

#: What reads a value, or a number of values, on the host.
WAITS = {
    "_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "is_nonzero",
}  # fmt: skip
#: What takes tensors of the CPU beside those of a device, the latter first: positions for an index, and copies.
MIXES = {"copy_", "_foreach_copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
#: What takes no single number of the CPU either.
JOINS = {"cat", "stack"}


class OnDevice(Tensor):
    """A tensor that says it lies on ``place``; ``values`` has what is in it."""

    values: Tensor
    place: torch.device
    waits: list[str]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type, values: Tensor, place: torch.device, waits: list[str]) -> OnDevice:
        if place.type == "mps" and values.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype
        )
        tensor.values, tensor.place, tensor.waits = values, place, waits
        return tensor

    @property
    def device(self) -> torch.device:
        return self.place

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnDevice(self.detach().values.clone(), self.place, self.waits)
            copied.requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if _is_parameter(self) else copied
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.place}, {self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        flat = tree_flatten(given)[0]
        first = next(one for one in flat if isinstance(one, OnDevice))
        name = func.overloadpacket.__name__
        _check_together(name, [one for one in flat if isinstance(one, Tensor)], first.place)
        if name in WAITS or (name.startswith("index") and _has_mask(flat)):
            first.waits.append(name)
        by_values = {id(one.values): one for one in flat if isinstance(one, OnDevice)}
        args, kwargs = tree_map_only(OnDevice, lambda one: one.values, given)
        result = func(*args, **kwargs)
        if name == "copy_" and not isinstance(flat[0], OnDevice):
            first.waits.append(name)
            return flat[0]

        def placed(tensor: Tensor) -> Tensor:
            known = by_values.get(id(tensor))
            return OnDevice(tensor, first.place, first.waits) if known is None else known

        plain = {id(one) for one in flat if isinstance(one, Tensor) and not isinstance(one, OnDevice)}
        return tree_map_only(Tensor, lambda one: one if id(one) in plain else placed(one), result)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def _has_mask(flat: list[Any]) -> bool:
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in flat[1:])


def _check_together(name: str, tensors: list[Tensor], place: torch.device) -> None:
    homes = {one.place if isinstance(one, OnDevice) else torch.device("cpu") for one in tensors}
    if len(homes) == 1 or (name in MIXES and isinstance(tensors[0], OnDevice)) or name == "copy_":
        return
    elsewhere = [one for one in tensors if not isinstance(one, OnDevice)]
    if torch._C._current_graph_task_id() != -1:  # zeros that torch itself makes while it differentiates
        elsewhere = [one for one in elsewhere if bool(one.any())]
    writes = name.endswith("_") and not isinstance(tensors[0], OnDevice)
    if len(homes) > 2 or writes or name in JOINS or any(one.dim() for one in elsewhere):
        raise RuntimeError(f"{name}: tensors on {', '.join(sorted(map(str, homes)))}")


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: torch.device, waits: list[str]) -> Tensor:
        ctx.back = tensor.place if isinstance(tensor, OnDevice) else torch.device("cpu")
        ctx.waits = waits
        values = tensor.values if isinstance(tensor, OnDevice) else tensor
        values = values.clone()
        return values if place.type == "cpu" else OnDevice(values, place, waits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Moved.apply(grads[0], ctx.back, ctx.waits), None, None


class _Pretended(TorchFunctionMode):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.place = torch.device(kind, 0)
        self.waits: list[str] = []

    def moved(self, tensor: Tensor, device: Any, *, waits: bool = True) -> Tensor:
        place = torch.device(device)
        place = self.place if place.type == self.place.type else place
        if tensor.device == place:
            return tensor
        if waits:
            self.waits.append("to")
        return _Moved.apply(tensor, place, self.waits)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], OnDevice):
            raise TypeError(f"can't convert {self.place} tensor to numpy")
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            self.waits.append("tolist")
            return args[0].values.tolist()
        if func in (Tensor.data_ptr, Tensor.untyped_storage) and isinstance(args[0], OnDevice):
            return func(args[0].values)
        if func is Tensor.cpu:
            return self.moved(args[0], "cpu")
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device, wants_grad = kwargs.pop("device"), kwargs.pop("requires_grad", False)
        if (generator := kwargs.get("generator")) is not None and generator.device.type != torch.device(device).type:
            raise RuntimeError(f"a generator on {generator.device} for a tensor on {device}")
        made = self.moved(func(*args, **kwargs), device, waits=func is torch.tensor)
        return made.requires_grad_() if wants_grad else made

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, waits = kwargs.pop("device", None), not kwargs.get("non_blocking", False)
        other = kwargs.pop("other", None)
        if args and isinstance(args[0], Tensor):
            other, *args = args
        elif args and isinstance(args[0], str | torch.device | None.__class__):
            device, *args = args
        if other is not None:
            device, args = other.device, [other.dtype, *args]
        if len(args) > 1 and isinstance(args[1], bool):
            waits = not args[1]
        tensor = (
            tensor if device is None or torch.device(device).type != "cpu" else self.moved(tensor, device, waits=waits)
        )
        dtype = next((one for one in (*args, kwargs.get("dtype")) if isinstance(one, torch.dtype)), tensor.dtype)
        tensor = Tensor.to(tensor, dtype=dtype, memory_format=kwargs.get("memory_format", torch.preserve_format))
        return tensor if device is None else self.moved(tensor, device, waits=waits)


@contextmanager
def pretended(kind: str) -> Iterator[list[str]]:
    """Within, ``kind`` (``cuda`` or ``mps``) is a device; gives the list of what made the host wait for it."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # which keeps them the same objects
    try:
        with _Pretended(kind) as mode:
            yield mode.waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
