"""One layer or norm with some of its units and inputs, and which entries of the original it holds."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from panning.compaction.layers import is_transposed
from panning.foundation.torch_private import slots_apart

#: Which entries of an original tensor a compact one holds, an index for each of its first axes; none means all.
Entries = tuple[Tensor, ...]
#: What modules call the numbers of their inputs and outputs.
_SIZES = (("in_features", "out_features"), ("in_channels", "out_channels"), ("nx", "nf"), ("", "num_features"))


def narrowed(module: Any, kept: Tensor, inputs: Tensor) -> tuple[nn.Module, dict[str, Entries]]:
    """A copy of a layer or norm that has the units ``kept`` and reads ``inputs``; the entries of each of its tensors."""
    small: Any = slots_apart(module)
    device = next(chain(module.parameters(recurse=False), module.buffers(recurse=False)), torch.empty(0)).device
    rows, columns = (some.nonzero().flatten().to(device) for some in (kept, inputs))
    n_groups = getattr(module, "groups", 1)
    for ins, outs in _SIZES:
        if hasattr(module, outs):
            vars(small).update({outs: len(rows)} | ({ins: len(columns)} if ins else {}))
    if hasattr(module, "groups"):
        small.groups = int(kept.view(n_groups, -1).any(1).sum())
    by_name: dict[str, Entries] = {}
    for key, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        entries: Entries = (rows,) if tensor.dim() else ()
        if key == "weight" and tensor.dim() > 1:
            if n_groups == 1:
                entries = (columns, rows) if is_transposed(module) else (rows, columns)
            else:
                entries = (columns,) if is_transposed(module) else (rows,)
        by_name[key] = entries
        taken = take(tensor.detach(), entries)
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(small, key, nn.Parameter(taken, requires_grad=tensor.requires_grad) if is_parameter else taken)
    return small, by_name


def add_to_bias(small: Any, added: Tensor) -> Tensor | None:
    """Add constants to a layer's bias; one that it did not have is not trained. Returns what the layer's own bias got."""
    if not added.any():
        return None
    added = added.to(small.weight.device, small.weight.dtype)
    if small.bias is None:
        small.bias = nn.Parameter(added, requires_grad=False)
        return None
    with torch.no_grad():
        small.bias.add_(added)
    return added


def take(tensor: Tensor, entries: Entries) -> Tensor:
    """A copy of the block of ``tensor`` that has these entries."""
    for axis, index in enumerate(entries):
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor.clone()


def grid(entries: Entries, tensor: Tensor) -> Any:
    """An index of the block of ``tensor`` that has these entries."""
    if not entries:
        return ...
    n = len(entries)
    return tuple(
        index.to(tensor.device).view([-1 if axis == i else 1 for i in range(n)]) for axis, index in enumerate(entries)
    )
