"""Compaction: a masked network made physically smaller, exactly.

A unit (neuron, channel) goes if no output depends on it, or if it is zero and training keeps it so: the ReLU of a constant
that is not positive, for instance. Outputs, the gradients of the weights that are left, and so whole training runs are those
of the masked network. A constant that training moves stays: as a unit, or, where it is added to others (the shift of a
BatchNorm at the end of a residual branch), as a parameter of its own without the layers before it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.errors import MaskError, ModelError
from panning.export.analysis import find_constants, find_kept
from panning.export.rebuild import Entries, Rebuild, grid, take
from panning.export.rule import Analysis
from panning.export.trace import record_shapes, stays, trace
from panning.maskfile import fingerprint
from panning.masks import Masks, apply_masks, check_masks_fit
from panning.seeding import isolated_torch_rng


@dataclass(frozen=True, eq=False)
class CompactResult:
    """A compact network and how it came out of the original.

    Attributes:
        model: the small network, a graph module where the forward could be traced. The modules that are left have their
            names, and so have the entries of its ``state_dict``.
        masks: of the small network; None if no masked parameter is left.
        mapping: for every parameter and buffer of ``model``, the original's name and the entries that it holds.
        folded: what was added to a parameter of ``model`` because constants were folded into it.
        notes: what stayed as it was, and why.
        original: the masked original, for ``expand``.
    """

    model: nn.Module
    masks: Masks | None
    mapping: dict[str, tuple[str, Entries]]
    folded: dict[str, Tensor]
    notes: tuple[str, ...]
    original: nn.Module

    def expand(self) -> nn.Module:
        """The small network's present weights in the original architecture; what it lacks is as it was."""
        model = copy.deepcopy(self.original)
        tensors, small = _tensors(model), _tensors(self.model)
        with torch.no_grad():
            for name, (original, entries) in self.mapping.items():
                own = small[name] - self.folded[name].to(small[name].device) if name in self.folded else small[name]
                tensors[original][grid(entries, tensors[original])] = own.to(tensors[original].device)
        _same_modes(model, self.model)
        return model

    def narrow(self, name: str, tensor: Tensor) -> Tensor:
        """The entries of a tensor of an original parameter's shape that the small parameter ``name`` holds; a copy."""
        return take(tensor, self.mapping[name][1])

    def map_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer, small: torch.optim.Optimizer) -> None:
        """Hand the state of an optimizer of the original to one of the compact network, entry by entry.

        Args:
            model: what was compacted; its parameters are those of ``optimizer``.
            small: an optimizer of the same kind over parameters of ``self.model``; its state is replaced.
        """
        originals = dict(model.named_parameters())
        for name, parameter in self.model.named_parameters():
            if name not in self.mapping or originals[self.mapping[name][0]] not in optimizer.state:
                continue  # what folding added, or what was never stepped
            before = originals[self.mapping[name][0]]
            small.state[parameter] = {
                key: self.narrow(name, value) if isinstance(value, Tensor) and value.shape == before.shape
                else copy.deepcopy(value)
                for key, value in optimizer.state[before].items()
            }  # fmt: skip


def compact(
    model: nn.Module, masks: Masks, input_shape: Sequence[int] | None = None, *, fold: bool = False
) -> CompactResult:
    """A smaller network that computes what ``model`` computes under ``masks``; ``model`` is left as it is.

    Args:
        model: any network; what torch.fx cannot trace stays as it is, and ``notes`` says so.
        input_shape: of one input, without the batch; needed if the mask does not carry it.
        fold: smaller still, for a network that is not trained any more: what constant units contribute in evaluation goes
            into the next layer's bias. Trained further, these constants stay as they are.

    Raises:
        MaskError: if the mask belongs to another network, or the input shape is not known.
    """
    check_masks_fit(model, masks)
    shape = input_shape or masks.manifest.get("input_shape")
    if shape is None:
        raise MaskError("This mask does not say the network's input shape; pass input_shape=(channels, height, width).")
    original = copy.deepcopy(model)
    apply_masks(original, masks)
    reference = next(original.parameters())
    inputs = torch.zeros(2, *shape, dtype=reference.dtype, device=reference.device)
    with isolated_torch_rng(0):
        parts = _Parts(original, masks, fold, inputs)
        small = parts.compacted("", original)
    _same_modes(small, original)
    kept = {name: take(masks[origin], entries) for name, (origin, entries) in parts.mapping.items() if origin in masks}
    facts = {"input_shape": list(shape), "compact_of": fingerprint(masks.layout)}
    return CompactResult(
        small,
        Masks.from_tensors(kept, facts) if kept else None,
        parts.mapping,
        parts.folded,
        tuple(parts.notes),
        original,
    )


class _Parts:
    """Compacts a network, or those of its parts that can be traced where it cannot be as a whole."""

    def __init__(self, original: nn.Module, masks: Masks, fold: bool, inputs: Tensor) -> None:
        self.masks, self.fold = masks, fold
        self.inputs = _inputs_of_parts(original, inputs)
        self.shared = _shared(original)
        self.mapping: dict[str, tuple[str, Entries]] = {}
        self.folded: dict[str, Tensor] = {}
        self.notes: list[str] = []
        self._copies: dict[int, Any] = {}

    def compacted(self, name: str, module: nn.Module) -> nn.Module:
        try:
            network, opaque = trace(module)
        except ModelError as error:
            self.notes.append(f"{name or 'the forward'} stays as it is: {error}")
            return self.inside(name, module)
        prefix = f"{name}." if name else ""
        self.notes += [f"{prefix}{part} stays as it is: {why}" for part, why in opaque.items()]
        network.graph.eliminate_dead_code()
        record_shapes(network, self.inputs[name])
        masks = {key.removeprefix(prefix): mask for key, mask in self.masks.items() if key.startswith(prefix)}
        shared = {part.removeprefix(prefix) for part in self.shared}
        at = Analysis(network, masks, frozenset({*opaque, *shared, *_called_twice(network)}), self.fold)
        find_constants(at)
        find_kept(at)
        rebuild = Rebuild(at, lambda part, module: self.inside(prefix + part, module), self.copied)
        small = rebuild.network(type(module).__name__)
        self.mapping.update({f"{prefix}{key}": (prefix + origin, e) for key, (origin, e) in rebuild.mapping.items()})
        self.folded.update({f"{prefix}{key}": added for key, added in rebuild.folded.items()})
        return small

    def inside(self, name: str, module: nn.Module) -> nn.Module:
        """A copy of a module that stays as it is, with those of its children made smaller that can be."""
        small = copy.copy(module)
        small._parameters, small._buffers, small._modules = {}, {}, {}
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            home: Any = small._parameters if key in module._parameters else small._buffers
            home[key] = None if tensor is None else self.copied(tensor)
            if tensor is not None:
                self.mapping[_join(name, key)] = (_join(name, key), ())
        for key, child in module._modules.items():
            full = _join(name, key)
            if child is None:
                small._modules[key] = None
            elif full in self.inputs and len(list(child.children())) > 0 and stays(child) is None:
                small._modules[key] = self.compacted(full, child)
            else:
                small._modules[key] = self.inside(full, child)
        return small

    def copied(self, tensor: Tensor) -> Tensor:
        """A copy, the same one for a tensor under two names."""
        return copy.deepcopy(tensor, self._copies)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _inputs_of_parts(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Zeros of the shape of what is passed to each module with children, those that are called once with one tensor."""
    calls: dict[str, list[Tensor | None]] = {"": [inputs]}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            alone = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
            calls.setdefault(name, []).append(torch.zeros_like(args[0]) if alone else None)

        return hook

    watched = [(name, module) for name, module in model.named_modules() if name and len(list(module.children())) > 0]
    hooks = [module.register_forward_pre_hook(record(name), with_kwargs=True) for name, module in watched]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {name: seen[0] for name, seen in calls.items() if len(seen) == 1 and seen[0] is not None}


def _shared(model: nn.Module) -> set[str]:
    """Names of the modules that have a parameter in common with another."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    return {owner for some in owners.values() if len(some) > 1 for owner in some}


def _called_twice(network: fx.GraphModule) -> set[str]:
    """Names of the modules whose parameters are used in two places of the graph."""
    used = [
        (str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0])
        for node in network.graph.nodes
        if node.op in ("call_module", "get_attr")
    ]
    return {name for name in used if used.count(name) > 1 and list(network.get_submodule(name).parameters())}


def _same_modes(small: nn.Module, original: nn.Module) -> None:
    """Training or evaluation, module by module as in the original."""
    modules = dict(original.named_modules(remove_duplicate=False))
    for name, module in small.named_modules(remove_duplicate=False):
        module.training = modules[name].training if name in modules else original.training


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
