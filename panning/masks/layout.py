"""Layout: names, shapes and offsets of the prunable parameters, in forward order.

Everything that is per weight (weights, scores, masks) is one flat tensor of ``n_prunable`` entries; ``views`` gives the
per-layer tensors of the same storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from panning.flow import Example
from panning.foundation.errors import ModelError
from panning.foundation.torch_private import forward_pre_hooks
from panning.foundation.wrappers import own_parameters
from panning.masks.kinds import KINDS as KINDS  # names of this module too
from panning.masks.kinds import Kind as Kind
from panning.masks.kinds import by_unit as by_unit
from panning.masks.kinds import from_units as from_units
from panning.masks.kinds import prunable_parameters as prunable_parameters
from panning.masks.kinds import taps_and_groups as taps_and_groups
from panning.masks.selection import all_finite, n_true
from panning.masks.uses import packed_weights, uses_of


@dataclass(frozen=True)
class Dense:
    """Weights that stay dense.

    Attributes:
        n_weights: how many.
        reason: why they cannot be masked.
    """

    n_weights: int
    reason: str


@dataclass(frozen=True)
class Layout:
    """Where each prunable parameter lies in a flat tensor.

    Attributes:
        names: ``state_dict`` names in forward (registration) order.
        shapes: the shape of each.
        found: the kinds of parameters that no table covers, as a forward pass uses them.
        dense: what stays dense though it makes weights, with the reason.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    found: Mapping[str, Kind] = field(default_factory=dict, compare=False, repr=False)
    dense: Mapping[str, Dense] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter starts in the flat tensor; one more entry than names, the last is ``n_prunable``."""
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        return tuple(offsets)

    @property
    def n_prunable(self) -> int:
        return self.offsets[-1]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Per-parameter views of a flat tensor [n_prunable]; differentiable."""
        parts = flat.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def slices(self) -> list[slice]:
        """The flat range of each parameter."""
        return [slice(start, stop) for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """One flat tensor [n_prunable] from named tensors; a copy."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def per_layer(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """A flat tensor with one value for all weights of a parameter."""
        return torch.cat([torch.full((n,), value, dtype=dtype) for n, value in zip(self.sizes, values, strict=True)])

    def first_non_finite(self, flat: Tensor) -> str | None:
        """The first parameter with a NaN or infinite entry; None if there is none."""
        if all_finite(flat):
            return None
        return next((name for name, part in self.views(flat).items() if not torch.isfinite(part).all()), None)

    def counts(self, mask: Tensor) -> list[int]:
        """Number of True entries of a flat bool tensor in each parameter."""
        return [n_true(part) for part in mask.split(self.sizes)]


def first_layout(model: nn.Module) -> Layout | None:
    """The first parameter of real numbers alone: enough for a problem that only says what the network is run on."""
    for name, parameter in own_parameters(model).items():
        if isinstance(parameter, UninitializedParameter):
            return None  # a lazy layer's
        if parameter.is_floating_point() and parameter.numel():
            return Layout((name,), (tuple(parameter.shape),))
    return None


def prunable_layout(
    model: nn.Module,
    include: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    example: Example | None = None,
) -> Layout:
    """The layout of the prunable parameters of ``model``: those of ``KINDS``, and those that a forward pass uses as weights.

    A tensor that several modules share (tied weights) is one parameter with one mask, under its first name; patterns may
    name it by any of its names. A weight that is tied to an embedding is left out, as the embedding is.

    Args:
        include: shell-style patterns of ``state_dict`` names; only these are prunable. None means all, embeddings apart.
        exclude: patterns of names that stay dense.
        example: what the network is run on, for parameters that no kind covers; None: they stay dense.

    Raises:
        ModelError: if nothing is prunable, if a pattern matches nothing, if two parameters share memory without being
            one, or if the model is of a kind that cannot be run with other weights.
    """
    check_runnable(model)
    uses = uses_of(model, example)
    found = prunable_parameters(model, uses.kinds)
    registered = own_parameters(model, remove_duplicate=False)
    found = {name: row for name, row in found.items() if registered[name].numel()}
    names: dict[int, list[str]] = {}
    opted_in: set[int] = set()
    for name, (kind, _) in found.items():
        names.setdefault(id(registered[name]), []).append(name)
        if not kind.by_default:
            opted_in.add(id(registered[name]))

    def matches(key: int, patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names[key] for pattern in patterns)

    dense = {name: Dense(registered[name].numel(), why) for name, why in uses.dense.items()}
    dense |= {name: Dense(n, "its weight is packed and no parameter") for name, n in packed_weights(model).items()}
    for pattern in (*(include or ()), *exclude):
        if not any(matches(key, (pattern,)) for key in names):
            if hit := [name for name in dense if fnmatchcase(name, pattern)]:
                if pattern in exclude:
                    continue
                raise ModelError(f"Pattern '{pattern}' names {told_dense({name: dense[name] for name in hit})}")
            known = ", ".join(name for some in names.values() for name in some)
            raise ModelError(f"Pattern '{pattern}' matches none of the prunable weights: {known}.")
    chosen = [
        key
        for key in names
        if (key not in opted_in if include is None else matches(key, include)) and not matches(key, exclude)
    ]
    if not chosen:
        unseen = f" What the forward uses was not seen, for it failed: {uses.failure}" if uses.failure else ""
        raise ModelError(_nothing_prunable(model, len(names), dense) + unseen)
    canonical = {id(tensor): name for name, tensor in own_parameters(model).items()}
    layout = {canonical[key]: registered[names[key][0]] for key in chosen}
    _check_memory(layout)
    left = {n: d for n, d in dense.items() if include is None and not any(fnmatchcase(n, p) for p in exclude)}
    return Layout(tuple(layout), tuple(tuple(tensor.shape) for tensor in layout.values()), uses.kinds, left)


#: A word of the reason why weights stay dense -> what to do; the last one fits every reason.
WAYS_OUT = {
    "parametrization": "make a parametrized weight plain before you prune "
    "(torch.nn.utils.parametrize.remove_parametrizations)",
    "packed": "prune the network before you quantise it",
    "": "name the parameters of a layer class of your own by panning.register_kind",
}


def told_dense(dense: Mapping[str, Dense]) -> str:
    """A sentence's end about parameters that stay dense: how many weights, which, why, and the way out."""
    shown = [f"'{name}' ({entry.reason})" for name, entry in list(dense.items())[:6]]
    more = f" and {len(dense) - 6} more" if len(dense) > 6 else ""
    reasons = " ".join(entry.reason for entry in dense.values())
    way_out = next(way_out for word, way_out in WAYS_OUT.items() if word in reasons)
    n = sum(entry.n_weights for entry in dense.values())
    return f"{n} weights that cannot be masked: {', '.join(shown)}{more}. To prune them, {way_out}."


def _nothing_prunable(model: nn.Module, n_covered: int, dense: Mapping[str, Dense]) -> str:
    if n_covered:
        return "The model has no prunable weight: no layer is left after include and exclude."
    if dense:
        return f"The model has no prunable weight. It has {told_dense(dense)}"
    found = ", ".join(f"{name} {tuple(p.shape)}" for name, p in list(own_parameters(model).items())[:8])
    return (
        "The model has no prunable weight: no Linear, Conv or attention layer, and no parameter that is known to multiply "
        f"activations. Its parameters: {found or 'none'}. panning.register_kind makes those of a class of your own prunable."
    )


#: Classes that wrap or compile a network, and what to pass in place of each.
WRAPPERS: dict[type[nn.Module], str] = {
    torch.jit.ScriptModule: "the nn.Module that it was scripted or traced from",
    nn.DataParallel: "the network inside: model.module",
    nn.parallel.DistributedDataParallel: "the network inside: model.module",
}


def check_runnable(model: nn.Module) -> None:
    """Reject modules whose forward would ignore substituted weights or keep them afterwards.

    Raises:
        ModelError: with the module, and what to do.
    """
    for name, module in model.named_modules():
        where = f"The module '{name}'" if name else "The model"
        for wrapper, instead in WRAPPERS.items():
            if isinstance(module, wrapper):
                raise ModelError(
                    f"{where} is a {wrapper.__name__}, which runs with its own weights only. Pass {instead}."
                )
        for hook in forward_pre_hooks(module):  # torch.nn.utils.weight_norm, spectral_norm and prune
            if type(hook).__module__.startswith("torch.nn.utils."):
                raise ModelError(
                    f"{where} has a weight that a hook of {type(hook).__module__} computes and leaves behind. Use the norm "
                    f"of the same name in torch.nn.utils.parametrizations, or make the weight a parameter again with "
                    f"remove_weight_norm, remove_spectral_norm or prune.remove."
                )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ModelError(f"'{name}' of a lazy layer has no shape yet: pass one batch through the model first.")
        if parameter.is_meta:
            raise ModelError(
                f"'{name}' is on the meta device and has no values: build the model on a real device, or call "
                f"model.to_empty(device='cpu') and load or initialise its weights."
            )


def _check_memory(tensors: Mapping[str, Tensor]) -> None:
    """Reject parameters that share memory: the same weights would get two masks."""
    by_memory: dict[tuple[Any, int], str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and (first := by_memory.setdefault((tensor.device, tensor.data_ptr()), name)) != name:
            raise ModelError(
                f"'{name}' and '{first}' share memory without being one parameter: tie the parameter itself "
                f"(b.weight = a.weight), or exclude one of them."
            )
