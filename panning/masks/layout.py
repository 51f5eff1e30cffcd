"""Layout: names, shapes and offsets of the prunable parameters, in forward order.

Everything that is per weight (weights, scores, masks) is one flat tensor of ``n_prunable`` entries; ``views`` gives the
per-layer tensors of the same storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from panning.foundation.errors import ModelError
from panning.foundation.torch_private import forward_pre_hooks
from panning.foundation.wrappers import own_names, own_parameters


@dataclass(frozen=True)
class Kind:
    """Prunable parameters of one kind of module.

    Attributes:
        module: the type, subclasses included.
        parameters: their names in the module; a name that the module lacks is passed over.
        transposed: the first axis belongs to the input, as in transposed convolutions.
        by_default: whether these parameters are prunable where no include pattern names them.
    """

    module: type[nn.Module]
    parameters: tuple[str, ...] = ("weight",)
    transposed: bool = False
    by_default: bool = True


#: What can be pruned. Biases and norm parameters never are (every method agrees). Attention's output
#: projection is a Linear.
KINDS: tuple[Kind, ...] = (
    Kind(nn.Linear),
    Kind(nn.Conv1d),
    Kind(nn.Conv2d),
    Kind(nn.Conv3d),
    Kind(nn.ConvTranspose1d, transposed=True),
    Kind(nn.ConvTranspose2d, transposed=True),
    Kind(nn.ConvTranspose3d, transposed=True),
    Kind(nn.MultiheadAttention, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
    Kind(nn.Embedding, by_default=False, transposed=True),
)


def prunable_parameters(model: nn.Module) -> dict[str, tuple[Kind, nn.Module]]:
    """Every parameter that ``KINDS`` has a row for, by all its names, with its kind and its module."""
    # A weight that is computed (weight_norm, parametrizations) is no parameter and cannot be masked as one.
    registered = dict(model.named_parameters(remove_duplicate=False))
    own = own_names(model)
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kind = next((kind for kind in KINDS if isinstance(module, kind.module)), None)
        for parameter in kind.parameters if kind is not None else ():
            name = f"{prefix}.{parameter}" if prefix else parameter
            if name in registered:
                found[own[name]] = (kind, module)
    return found  # type: ignore[return-value]


def by_unit(weights: Tensor, kind: Kind, module: nn.Module) -> Tensor:
    """A parameter as [output units, weights into each]; a view or a copy."""
    if not kind.transposed:
        return weights.reshape(weights.shape[0], -1)
    n_groups = getattr(module, "groups", 1)
    n_in, n_out, *rest = weights.shape
    grouped = weights.reshape(n_groups, n_in // n_groups, n_out, *rest)
    return grouped.transpose(1, 2).reshape(n_groups * n_out, -1)


@dataclass(frozen=True)
class Layout:
    """Where each prunable parameter lies in a flat tensor.

    Attributes:
        names: ``state_dict`` names in forward (registration) order.
        shapes: the shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

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
        if torch.isfinite(flat.sum()):  # NaN and infinity survive a sum, which costs a tenth of looking at every entry
            return None
        return next((name for name, part in self.views(flat).items() if not torch.isfinite(part).all()), None)

    def counts(self, mask: Tensor) -> list[int]:
        """Number of True entries of a flat bool tensor in each parameter."""
        return [int(part.sum()) for part in mask.split(self.sizes)]


def prunable_layout(model: nn.Module, include: tuple[str, ...] | None = None, exclude: tuple[str, ...] = ()) -> Layout:
    """The layout of the prunable parameters of ``model``: those of ``KINDS``.

    A tensor that several modules share (tied weights) is one parameter with one mask, under its first name; patterns may
    name it by any of its names. A weight that is tied to an embedding is left out, as the embedding is.

    Args:
        include: shell-style patterns of ``state_dict`` names; only these are prunable. None means all, embeddings apart.
        exclude: patterns of names that stay dense.

    Raises:
        ModelError: if nothing is prunable, if a pattern matches nothing, if two parameters share memory without being
            one, or if the model is of a kind that cannot be run with other weights.
    """
    _check_modules(model)
    found = prunable_parameters(model)
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

    for pattern in (*(include or ()), *exclude):
        if not any(matches(key, (pattern,)) for key in names):
            known = ", ".join(name for some in names.values() for name in some)
            raise ModelError(f"Pattern '{pattern}' matches none of the prunable weights: {known}.")
    chosen = [
        key
        for key in names
        if (key not in opted_in if include is None else matches(key, include)) and not matches(key, exclude)
    ]
    if not chosen:
        raise ModelError(
            "The model has no prunable weight: no Linear, Conv or attention layer is left after include and exclude."
        )
    canonical = {id(tensor): name for name, tensor in own_parameters(model).items()}
    layout = {canonical[key]: registered[names[key][0]] for key in chosen}
    _check_memory(layout)
    return Layout(tuple(layout), tuple(tuple(tensor.shape) for tensor in layout.values()))


#: Classes that wrap or compile a network, and what to pass in place of each.
WRAPPERS: dict[type[nn.Module], str] = {
    torch.jit.ScriptModule: "the nn.Module that it was scripted or traced from",
    nn.DataParallel: "the network inside: model.module",
    nn.parallel.DistributedDataParallel: "the network inside: model.module",
}


def _check_modules(model: nn.Module) -> None:
    """Reject modules whose forward would ignore substituted weights or keep them afterwards."""
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
