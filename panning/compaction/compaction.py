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
from dataclasses import dataclass, field
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.compaction.agree import computes_the_same
from panning.compaction.analysis import find_constants, find_kept
from panning.compaction.in_place import Small, shrunk
from panning.compaction.inputs import example_of_shape, given_example, shape_of
from panning.compaction.narrow import Entries, grid, take
from panning.compaction.rebuild import Rebuild
from panning.compaction.rule import Analysis
from panning.compaction.trace import record_shapes, trace
from panning.flow import Example, Forward, call
from panning.foundation.errors import MaskError, ModelError
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.torch_private import gradient_hooks
from panning.foundation.wrappers import unwrapped
from panning.masks.file import fingerprint
from panning.masks.layout import check_runnable
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
        input_shape: of one input; empty if the network takes more than a tensor.
        fold: constants were folded.
        density: of the mask in the original network.
    """

    model: nn.Module
    masks: Masks | None
    mapping: dict[str, tuple[str, Entries]] = field(repr=False)
    folded: dict[str, Tensor] = field(repr=False)
    notes: tuple[str, ...]
    original: nn.Module = field(repr=False)
    input_shape: tuple[int, ...]
    fold: bool
    density: float

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
    model: nn.Module,
    masks: Masks,
    input_shape: Sequence[int] | None = None,
    *,
    example_inputs: Any = None,
    forward: Forward | None = None,
    fold: bool = False,
) -> CompactResult:
    """Make a smaller network that computes what ``model`` computes under ``masks``; ``model`` is left as it is.

    Args:
        model: any network (of DistributedDataParallel or ``torch.compile`` what is inside). One that torch.fx cannot trace
            keeps its class and its forward, and gets smaller layers where this changes nothing; ``notes`` says what
            stayed, and why.
        input_shape: of one input, without the batch; needed if the mask does not carry it and there are no example inputs.
        example_inputs: what the network is called with, for one that takes more than a tensor: a tensor with its batch, a
            tuple of positional inputs, or a dict of keyword inputs.
        forward: how the network is called with ``example_inputs``, if in another way: a function of the network and these.
        fold: make a network that is not trained any more smaller still: what constant units contribute in evaluation goes
            into the next layer's bias. In further training these constants stay as they are.

    Raises:
        MaskError: if the mask belongs to another network, or the input shape is not known.
        ModelError: if the network does not run on these inputs, or cannot be run with other weights; if the
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
    check_runnable(model)
    masks = fitted(model, masks, wrapped=True)
    _check_forwards(model)
    original = copy.deepcopy(model)
    apply_masks(original, masks)
    with isolated_torch_rng(0):
        example = _example(original, masks, input_shape, example_inputs, forward)
        small = _smallest(original, masks, fold, example)
        if not computes_the_same(original, small.model, example):
            raise ModelError(
                f"The compact form of {type(model).__name__} would compute something else than the masked network, so there "
                "is none. A forward that draws random numbers in evaluation is a reason: let it draw them in training only."
            )
    _same_modes(small.model, original)
    if hooked := [name for name, p in model.named_parameters() if gradient_hooks(p)]:
        small.notes.append(
            f"Hooks of parameters are not copied, as that of {hooked[0]}: the small network is without them."
        )
    kept = {name: take(masks[origin], entries) for name, (origin, entries) in small.mapping.items() if origin in masks}
    shape = shape_of(example)
    facts: dict[str, Any] = {"input_shape": list(shape)} if shape else {}
    facts |= {"compact_of": fingerprint(masks.layout), "original_density": masks.density}
    return CompactResult(
        small.model, Masks.from_tensors(kept, facts) if kept else None, small.mapping, small.folded, tuple(small.notes),
        original, shape, fold, masks.density,
    )  # fmt: skip


def _example(model: nn.Module, masks: Masks, input_shape: Any, example_inputs: Any, forward: Forward | None) -> Example:
    if example_inputs is not None:
        if isinstance(example_inputs, tuple | list) and len(example_inputs) == 1 and forward is None:
            (example_inputs,) = example_inputs
        return given_example(model, Example(example_inputs, forward or call))
    shape = input_shape or masks.input_shape
    if shape is None:
        raise MaskError(
            "This mask does not say the network's input shape; pass input_shape=(channels, height, width) or example_inputs."
        )
    if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ModelError(f"input_shape is {shape!r}, but must be positive integers, as (channels, height, width).")
    return example_of_shape(model, shape)


def _smallest(original: nn.Module, masks: Masks, fold: bool, example: Example) -> Small:
    """A smaller graph; where torch.fx leaves parts as they are, a copy with smaller layers, if this has fewer parameters."""
    try:
        rebuilt = _rebuilt(original, masks, fold, example)
    except ModelError as error:
        small = shrunk(original, masks, fold, example)
        small.notes.insert(0, f"the forward stays as it is: {error}")
        return small
    if not rebuilt.notes:
        return rebuilt
    small = shrunk(original, masks, fold, example)
    small.notes[:0] = [f"the forward stays as it is: {note}" for note in rebuilt.notes]
    return min(rebuilt, small, key=lambda found: sum(p.numel() for p in found.model.parameters()))


def _rebuilt(original: nn.Module, masks: Masks, fold: bool, example: Example) -> Small:
    """The network as a smaller graph.

    Raises:
        ModelError: if torch.fx cannot trace the forward, or the graph computes something else.
    """
    if not isinstance(example.inputs, Tensor) or example.forward is not call:
        raise ModelError("torch.fx is given networks with one tensor as their input.")
    network, opaque = trace(original)
    network.graph.eliminate_dead_code()
    record_shapes(network, original, example.inputs)
    copies: dict[int, Any] = {}
    at = Analysis(network, masks, frozenset({*opaque, *_shared(original), *_called_twice(network)}), fold)
    rebuild = Rebuild(network, at, copies)
    with torch.device("cpu"):  # whatever the default is: what is known of units lies there
        find_constants(at)
        find_kept(at)
        model = rebuild.network(type(original).__name__)
    if not computes_the_same(original, model, example):
        raise ModelError("The graph of the small network computes something else.")
    present, names = _tensors(model), _tensors(original)  # what nothing needs in the end is gone
    mapping = {name: entry for name, entry in rebuild.mapping.items() if name in present and entry[0] in names}
    return Small(model, mapping, rebuild.folded, [f"{part} stays as it is: {why}" for part, why in opaque.items()])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _check_forwards(model: nn.Module) -> None:
    for name, module in model.named_modules():
        of = f"'{name}'" if name else "the model"
        for key, value in vars(module).items():
            if isinstance(value, FunctionType) and (hasattr(type(module), key) or _holds_a_module(value)):
                raise ModelError(
                    f"The {key} of {of} is a function put in its place, which would use the old weights in every copy. "
                    "Pass the network as it was before torch.compile, and compile the small one; "
                    f"or give the module a class with this {key}."
                )


def _holds_a_module(function: FunctionType) -> bool:
    cells = (cell.cell_contents for cell in function.__closure__ or () if cell != CellType())
    return any(isinstance(getattr(held, "__self__", held), nn.Module | nn.Parameter) for held in cells)


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
