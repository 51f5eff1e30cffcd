"""The parts of torch that begin with an underscore and have no public counterpart; no other file names one.

A new torch may change them without a word: ``tests/test_private.py`` tells which one went.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._functorch import apis
from torch._functorch import vmap as functorch_vmap
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import _broadcast_to_and_flatten, tree_flatten, tree_unflatten
from torch.utils._pytree import tree_leaves as tree_leaves  # all tensors in whatever a network returns
from torch.utils._pytree import tree_map as tree_map

#: One call for a list of tensors, as torch's own optimizers step: [left *= right], [left := right].
multiply_each = torch._foreach_mul_
copy_each = torch._foreach_copy_


def has_bfloat16_kernels() -> bool:
    """Whether torch multiplies in bfloat16 by instructions of this processor (on x86: AVX-512 and later)."""
    return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Slots(NamedTuple):
    """The dicts of a module themselves: iterators leave out empty entries, and ``setattr`` does more than to write."""

    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    modules: dict[str, nn.Module | None]


def slots(module: nn.Module) -> Slots:
    return Slots(module._parameters, module._buffers, module._modules)


def is_passing(module: nn.Module, name: str) -> bool:
    """Whether a buffer of this module stays out of its ``state_dict``."""
    return name in module._non_persistent_buffers_set


def every_module(model: nn.Module) -> dict[nn.Module, str]:
    """Every module once, with its name, in the order of ``named_modules``, whose nested generators take far longer."""
    met: dict[nn.Module, str] = {}
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if module not in met:
            met[module] = name
            start = f"{name}." if name else ""
            inside = [(start + own, child) for own, child in module._modules.items() if child is not None]
            waiting += inside[::-1]
    return met


def slots_apart(module: nn.Module) -> nn.Module:
    """A copy that shares all entries of the slots, but not the slots."""
    copied = module.__new__(type(module))
    own = {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")}
    vars(copied).update(vars(module), **own)
    return copied


def forward_pre_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    return list(module._forward_pre_hooks.values())


def drop_forward_pre_hooks(module: nn.Module, goes: Callable[[Any], bool]) -> None:
    """Remove hooks whose handles nobody has: those of an earlier process, or of a copy."""
    for key in [key for key, hook in module._forward_pre_hooks.items() if goes(hook)]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook runs where the module is called or differentiated."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


#: What holds weights in a form of their kernel's.
PACKED_TYPE = torch.ScriptObject


def unpacked(packed: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in, ...] and bias [out] that a quantised layer's kernel holds, as real numbers."""
    weight, bias = packed.unpack()
    return weight.dequantize(), None if bias is None else bias.detach()


def unpacked_cell(cell: Any) -> list[Tensor]:
    """w_ih, w_hh, b_ih, b_hh of one layer and direction of a quantised recurrent layer; biases may be missing."""
    parts = [unpacked(packed) for packed in cell.__getstate__()[0][-1]]
    return [part for of_both in zip(*parts, strict=True) for part in of_both if part is not None]


def packed_in(module: nn.Module) -> list[Tensor]:
    """The weights that a quantised layer holds packed; none of any other module, and none of those inside of it."""
    # No other module is asked: spectral_norm takes a step whenever it is.
    if hasattr(module, "_packed_params") and callable(weight := getattr(module, "weight", None)):
        return [weight()]
    layers: Any = getattr(module, "_all_weight_values", ())
    of_cell = (getattr(module, name, None) for name in ("_packed_weight_ih", "_packed_weight_hh"))
    return [
        *(weight for layer in layers for weight in unpacked_cell(layer.param)[:2]),
        *(unpacked(packed)[0] for packed in of_cell if packed is not None),
    ]


def gradient_hooks(tensor: Tensor) -> list[Callable[..., Any]]:
    """Of ``register_hook`` and of ``register_post_accumulate_grad_hook``."""
    kinds = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)
    return [hook for hooks in kinds for hook in (hooks or {}).values()]


def pruned_by(hook: BasePruningMethod) -> str:
    """The name of the parameter that a hook of ``torch.nn.utils.prune`` computes."""
    return hook._tensor_name


def n_writes(tensor: Tensor) -> int:
    """Goes up with every change in place."""
    return tensor._version


def viewed(tensor: Tensor) -> Tensor | None:
    """The tensor that this one is a view of."""
    return tensor._base


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [axes, entries] and values [entries, ...], to write into; ``indices()`` takes coalesced tensors only."""
    return tensor._indices(), tensor._values()


def stored_record(path: Path, name: str) -> bytes:
    """One entry of an archive of ``torch.save``, as torch finds it: another reader of zips might find another one."""
    record: bytes = torch._C.PyTorchFileReader(str(path)).get_record(name)
    return record


#: How many modes stand between a call and torch; while a mode handles a function, it does not count.
n_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
#: What ``torch.no_grad`` and its like call.
set_grad_enabled = torch._C._set_grad_enabled
#: Whether the code runs inside of ``torch.func.grad``, ``vmap`` and the like.
transforms_are_active: Callable[[], bool] = torch._C._are_functorch_transforms_active

#: A context that is told every operation of torch, also those that its functions call within.
DispatchMode = TorchDispatchMode


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """What tells the memory of a tensor from that of others, as long as one of its tensors is there; and its bytes."""
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()


#: A tensor of a class of one's own with shape, strides and dtype, but without values.
without_values = Tensor._make_wrapper_subclass
#: In place of ``__torch_function__``: functions of such a tensor run as those of any other.
plain_functions = torch._C._disabled_torch_function_impl

#: What ``torch.ops.NAMESPACE.NAME`` is, and ``.OVERLOAD`` of it.
OPERATORS = (torch._ops.OpOverloadPacket, torch._ops.OpOverload)
#: What hides a part of a forward pass -> its owner and attribute. By names that a user's module has bound already, only
#: these places are still reached.
HIDING: dict[str, tuple[Any, str]] = {
    "reentrant": (torch.utils.checkpoint, "CheckpointFunction"),
    "enter": (torch.utils.checkpoint._checkpoint_hook, "__enter__"),
    "exit": (torch.utils.checkpoint._checkpoint_hook, "__exit__"),
    "function": (type(torch.autograd.Function), "__getattribute__"),
    "vmap": (apis, "vmap_impl"),
}


def batched_inputs(
    function: Callable[..., Any], in_dims: Any, args: tuple[Any, ...]
) -> tuple[int, list[int | None], list[Any], Callable[[list[Any]], Any]]:
    """Of a call under ``vmap``: its number of runs, the batch axis of every leaf, the leaves, and what builds arguments."""
    n, dims, leaves, spec = functorch_vmap._process_batched_inputs(in_dims, args, function)
    return n, dims, leaves, lambda parts: tree_unflatten(parts, spec)


def batched_outputs(results: list[Any], out_dims: Any, stack: Callable[[list[Any], int], Any]) -> Any:
    """What ``vmap`` returns, from what its function returned in each run.

    Raises:
        ValueError: if ``out_dims`` does not fit.
    """
    flat, spec = [tree_flatten(result)[0] for result in results], tree_flatten(results[0])[1]
    dims = _broadcast_to_and_flatten(out_dims, spec)
    if dims is None:
        raise ValueError(f"vmap: out_dims={out_dims} does not fit what the function returns.")
    columns = zip(zip(*flat, strict=True), dims, strict=True)
    return tree_unflatten([parts[0] if dim is None else stack(list(parts), dim) for parts, dim in columns], spec)
