"""Compaction: a masked network made physically smaller, exactly.

A unit (neuron, channel) goes if no output depends on it, or if it is zero and training keeps it so: the ReLU of a constant
that is not positive, for instance. Outputs, the gradients of the weights that are left, and so whole training runs are those
of the masked network. A constant that training moves stays: as a unit, or, where it is added to others (the shift of a
BatchNorm at the end of a residual branch), as a parameter of its own without the layers before it.

NOTE Training means an optimizer under which a parameter without a gradient does not change its sign: SGD, Adam, AdamW. Adam
and RMSprop with ``weight_decay`` step by its sign instead, and may carry the negative bias of a ReLU that is off past zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.compaction.analysis import find_constants, find_kept
from panning.compaction.rebuild import Entries, Rebuild, grid, take
from panning.compaction.rule import Analysis
from panning.compaction.trace import record_shapes, same, stays, trace
from panning.foundation.errors import MaskError, ModelError
from panning.foundation.modes import as_it_was
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.torch_private import gradient_hooks, slots, slots_apart, tree_leaves
from panning.foundation.wrappers import unwrapped
from panning.masks.file import fingerprint
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks, apply_masks, fitted


@dataclass(frozen=True, eq=False)
class CompactResult:
    """A compact network, and how it came out of the original.

    Attributes:
        model: the small network, a graph module where the forward could be traced. The modules that are left keep their
            names, and so do the entries of the ``state_dict``.
        masks: of the small network; None if no masked parameter is left.
        mapping: for every parameter and buffer of ``model``, the original's name and the entries that it holds.
        folded: what was added to a parameter of ``model`` because constants were folded into it.
        notes: what stayed as it was, and why.
        original: the masked original, for ``expand``.
        input_shape: of one input.
        fold: constants were folded.
    """

    model: nn.Module
    masks: Masks | None
    mapping: dict[str, tuple[str, Entries]]
    folded: dict[str, Tensor]
    notes: tuple[str, ...]
    original: nn.Module
    input_shape: tuple[int, ...]
    fold: bool

    def expand(self) -> nn.Module:
        """The small network's present weights in the original architecture; all other weights are as they were."""
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


@torch.inference_mode(False)
def compact(
    model: nn.Module, masks: Masks, input_shape: Sequence[int] | None = None, *, fold: bool = False
) -> CompactResult:
    """Make a smaller network that computes what ``model`` computes under ``masks``; ``model`` is left as it is.

    Args:
        model: any network (of DistributedDataParallel or ``torch.compile`` what is inside); parts that torch.fx cannot
            trace stay as they are, and ``notes`` says so.
        input_shape: of one input, without the batch; needed if the mask does not carry it.
        fold: make a network that is not trained any more smaller still: what constant units contribute in evaluation goes
            into the next layer's bias. In further training these constants stay as they are.

    Raises:
        MaskError: if the mask belongs to another network, or the input shape is not known.
        ModelError: if the network does not run on one tensor of that shape, or cannot be run with other weights; if the
            outputs, which are compared at the end, are not the same.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import panning
        >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
        >>> first = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])  # the second unit has no input
        >>> masks = panning.Masks.from_tensors({"0.weight": first, "2.weight": torch.ones(2, 3)})
        >>> small = panning.compact(model, masks, input_shape=(4,))
        >>> small.model.get_submodule("0")
        Linear(in_features=4, out_features=2, bias=False)
        >>> inputs = torch.randn(5, 4)
        >>> torch.allclose(small.model(inputs), small.expand()(inputs), atol=1e-6)
        True
    """
    model = unwrapped(model)
    prunable_layout(model)  # refuses what cannot be run with other weights
    masks = fitted(model, masks, wrapped=True)
    _check_forwards(model)
    shape = input_shape or masks.input_shape
    if shape is None:
        raise MaskError("This mask does not say the network's input shape; pass input_shape=(channels, height, width).")
    if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ModelError(f"input_shape is {shape!r}, but must be positive integers, as (channels, height, width).")
    original = copy.deepcopy(model)
    apply_masks(original, masks)
    reference = next(original.parameters())
    with isolated_torch_rng(0):
        inputs = _inputs_of_parts(original, shape, reference)
        parts = _Parts(original, masks, fold, inputs)
        small = parts.compacted("", original)
        if parts.notes and not _agree(original, small, inputs[""]):
            parts = _Parts(original, masks, fold, inputs, look_inside=False)
            small = parts.compacted("", original)
            parts.notes.append("The parts of what stays as it is stay too: its forward reads their weights.")
        if not _agree(original, small, inputs[""]):
            raise ModelError(
                f"The compact form of {type(model).__name__} would compute something else than the masked network, so there "
                "is none. A forward that draws random numbers in evaluation is a reason: let it draw them in training only."
            )
    _same_modes(small, original)
    present = _tensors(small)  # what nothing needs in the end is gone
    mapping = {name: entry for name, entry in parts.mapping.items() if name in present}
    if hooked := [name for name, p in model.named_parameters() if gradient_hooks(p)]:
        parts.notes.append(
            f"Hooks of parameters are not copied, as that of {hooked[0]}: the small network is without them."
        )
    kept = {name: take(masks[origin], entries) for name, (origin, entries) in mapping.items() if origin in masks}
    facts = {"input_shape": list(shape), "compact_of": fingerprint(masks.layout)}
    return CompactResult(
        small, Masks.from_tensors(kept, facts) if kept else None, mapping, parts.folded, tuple(parts.notes), original,
        tuple(shape), fold,
    )  # fmt: skip


class _Parts:
    """Compactor of a network: of the whole network or, where torch.fx cannot trace it, of the parts that torch.fx traces."""

    def __init__(
        self, original: nn.Module, masks: Masks, fold: bool, inputs: dict[str, Tensor], look_inside: bool = True
    ) -> None:
        self.masks, self.fold, self.inputs, self.look_inside = masks, fold, inputs, look_inside
        self.shared, self.names = _shared(original), set(_tensors(original))
        self.mapping: dict[str, tuple[str, Entries]] = {}
        self.folded: dict[str, Tensor] = {}
        self.notes: list[str] = []
        self._copies: dict[int, Any] = {}

    def compacted(self, name: str, module: nn.Module) -> nn.Module:
        try:
            network, opaque = trace(module)
            network.graph.eliminate_dead_code()
            record_shapes(network, module, self.inputs[name])
        except ModelError as error:
            self.notes.append(f"{name or 'the forward'} stays as it is: {error}")
            return self.inside(name, module)
        prefix = f"{name}." if name else ""
        self.notes += [f"{prefix}{part} stays as it is: {why}" for part, why in opaque.items()]
        masks = {key.removeprefix(prefix): mask for key, mask in self.masks.items() if key.startswith(prefix)}
        shared = {part.removeprefix(prefix) for part in self.shared}
        at = Analysis(network, masks, frozenset({*opaque, *shared, *_called_twice(network)}), self.fold)
        rebuild = Rebuild(at, lambda part, module: self.inside(prefix + part, module), self.copied)
        with torch.device("cpu"):  # whatever the default is: what is known of units lies there
            find_constants(at)
            find_kept(at)
            small = rebuild.network(type(module).__name__)
        self.mapping.update(
            {
                prefix + key: (prefix + origin, e)
                for key, (origin, e) in rebuild.mapping.items()
                if prefix + origin in self.names
            }
        )
        self.folded.update({f"{prefix}{key}": added for key, added in rebuild.folded.items()})
        return small

    def inside(self, name: str, module: nn.Module) -> nn.Module:
        """A copy of a module that stays as it is, with its children made smaller where that can be done."""
        small = self._copies[id(module)] = slots_apart(module)
        parameters, buffers, children = slots(small)
        for home in (parameters, buffers):
            for key, tensor in home.items():
                if tensor is not None:
                    home[key] = self.copied(tensor)  # type: ignore[assignment]
                    self.mapping[_join(name, key)] = (_join(name, key), ())
        for key, child in children.items():
            full = _join(name, key)
            if child is None:
                continue
            if self.look_inside and full in self.inputs and len(list(child.children())) > 0 and stays(child) is None:
                children[key] = self.compacted(full, child)
            else:
                children[key] = self.inside(full, child)
            self._copies[id(child)] = children[key]
        for key, value in vars(module).items():  # what refers to its tensors and modules elsewhere, as an LSTM does
            if vars(small)[key] is value:
                vars(small)[key] = copy.deepcopy(value, self._copies)
        return small

    def copied(self, tensor: Tensor) -> Tensor:
        """A copy, the same one for a tensor under two names."""
        return copy.deepcopy(tensor, self._copies)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _check_forwards(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(vars(module).get("forward"), FunctionType):
            where = f"'{name}'" if name else "the model"
            raise ModelError(
                f"The forward of {where} is a function put in its place, which would use the old weights in every copy. "
                "Pass the network as it was before torch.compile, and compile the small one; "
                "or give the module a class with this forward."
            )


def _agree(original: nn.Module, small: nn.Module, inputs: Tensor) -> bool:
    """Whether both compute the same, up to rounding, in evaluation, and have the same modes in training."""
    results, modes = [], []
    try:
        with as_it_was(original), as_it_was(small), torch.no_grad():
            for model in (original, small):
                modes.append({name: module.training for name, module in model.train().named_modules()})
                with isolated_torch_rng(1):
                    results.append(tree_leaves(model.eval()(inputs.clone())))
    except Exception:  # shapes that do not fit
        return False
    if any(mode != modes[1].get(name, mode) for name, mode in modes[0].items()):
        return False
    return len(results[0]) == len(results[1]) and all(map(same, *results))


def _inputs_of_parts(model: nn.Module, shape: Sequence[int], reference: Tensor) -> dict[str, Tensor]:
    """What is passed to the network (under its name, "") and to each module with children that is called once with a tensor.

    A network that does not run on numbers of ``reference``'s type is given indices, as those of tokens.
    """
    numbers = torch.randn(2, *shape, device="cpu").to(reference.device, reference.dtype)
    try:
        return _recorded(model, numbers)
    except Exception as error:  # whatever a forward may raise
        try:
            return _recorded(model, (numbers > 0).long())
        except Exception:
            raise ModelError(
                f"{type(model).__name__} does not run on a batch of shape {tuple(numbers.shape)} and {numbers.dtype} "
                f"({type(error).__name__}: {error}), nor on one of the integers 0 and 1. What is made smaller takes one "
                "tensor, of the weights' type or of indices; input_shape is the shape of one input, without the batch."
            ) from error


def _recorded(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    calls: dict[str, list[Tensor | None]] = {"": [inputs]}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            alone = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
            calls.setdefault(name, []).append(args[0].clone() if alone else None)

        return hook

    watched = [(name, module) for name, module in model.named_modules() if name and len(list(module.children())) > 0]
    hooks = [module.register_forward_pre_hook(record(name), with_kwargs=True) for name, module in watched]
    try:
        with torch.no_grad(), as_it_was(model):
            model.eval()(inputs.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen[0] for name, seen in calls.items() if len(seen) == 1 and seen[0] is not None}


def _shared(model: nn.Module) -> set[str]:
    """Names of the modules that have a parameter in common with another."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    return {owner for some in owners.values() if len(some) > 1 for owner in some}


def _called_twice(network: fx.GraphModule) -> set[str]:
    """Names of the modules whose parameters or buffers are used in two places of the graph."""
    used = [
        (str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0])
        for node in network.graph.nodes
        if node.op in ("call_module", "get_attr")
    ]
    return {name for name in used if used.count(name) > 1 and network.get_submodule(name).state_dict()}


def _same_modes(small: nn.Module, original: nn.Module) -> None:
    """Training or evaluation, module by module as in the original."""
    modules = dict(original.named_modules(remove_duplicate=False))
    for name, module in small.named_modules(remove_duplicate=False):
        while name not in modules:  # that of the module it was put into
            name = name.rpartition(".")[0]
        module.training = modules[name].training


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
