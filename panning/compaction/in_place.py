"""A copy of a network with smaller layers, whose forward stays as it is.

Every tensor has the same units for all that make or read it: streams of tensors shrink together, or not at all. Python code
may depend on sizes that no run shows, so that every stream is tried: what changes an output or a gradient stays whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.compaction.agree import difference
from panning.compaction.analysis import find_constants, find_kept
from panning.compaction.follow import Followed, follow
from panning.compaction.layers import BatchNorm, Layer, is_linear
from panning.compaction.narrow import Entries, add_to_bias, narrowed
from panning.compaction.probing import Moves
from panning.compaction.rule import Analysis, at_least_one
from panning.compaction.table import MODULES
from panning.flow import Example
from panning.foundation.modes import as_it_was
from panning.foundation.seeding import isolated_torch_rng
from panning.models.parts import ported

#: Numbers of modules that follow the units of a tensor which they cut into heads or pieces.
SIZES = (
    "num_heads", "n_heads", "n_head", "num_attention_heads", "heads", "nheads", "num_key_value_heads", "num_kv_heads",
    "n_kv_heads", "all_head_size", "split_size", "attn_dim", "inner_dim", "attention_dim",
)  # fmt: skip

#: A layer gathers its inputs and scatters its units by itself where this leaves at most so much of its weight.
PORTS_LEAVE = 0.75

#: Tensors whose units go together.
Stream = list[fx.Node]


@dataclass
class Small:
    """A network made smaller: what its tensors hold of the original's, what was added to biases, what stayed and why."""

    model: nn.Module
    mapping: dict[str, tuple[str, Entries]]
    folded: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def shrunk(original: nn.Module, masks: Mapping[str, Tensor], fold: bool, example: Example) -> Small:
    """The smallest copy of a masked network that passes every comparison with it."""
    with torch.no_grad(), as_it_was(original), isolated_torch_rng(1):
        followed = follow(original.eval(), lambda module: type(module) in MODULES, example)
    at = Analysis(followed, masks, frozenset(followed.whole), fold, in_place=True)
    with torch.no_grad(), isolated_torch_rng(0), torch.device("cpu"):
        find_constants(at)
        find_kept(at)
    return _Trials(original, at, example).smallest(_reasons(at, followed))


class _Trials:
    def __init__(self, original: nn.Module, at: Analysis, example: Example) -> None:
        self.original, self.at, self.example = original, at, example
        self.small = Small(copy.deepcopy(original), _identity(original))
        self.notes: list[str] = []
        self.plain: list[Stream] = []
        self.ports = False

    def smallest(self, reasons: list[str]) -> Small:
        carried = find_carried(self.at, set())
        self.streams = [s for s in streams(self.at) if any(not carried[node].all() for node in s)]
        accepted = self.add([], self.streams)
        self.ports = True
        if (why := self.attempt(accepted)) is not None:
            self.notes.append(f"no layer gathers its inputs by itself: {why}")
        self.small.notes = self.notes + reasons
        return self.small

    def add(self, accepted: list[Stream], more: list[Stream]) -> list[Stream]:
        """Take as many streams on as agree, in halves where not all do."""
        if not more:
            return accepted
        why = self.attempt([*accepted, *more])
        if why is not None and len(more) == 1:
            self.plain += more  # once more, with all numbers of modules as they were
            why = self.attempt([*accepted, *more])
        if why is None:
            return [*accepted, *more]
        if len(more) == 1:
            self.notes.append(f"{_name_of(self.at, more[0])} stays as it is: {why}")
            return accepted
        half = len(more) // 2
        return self.add(self.add(accepted, more[:half]), more[half:])

    def attempt(self, chosen: list[Stream]) -> str | None:
        full = {node for stream in self.streams if not any(stream is s for s in chosen) for node in stream}
        carried = find_carried(self.at, full)
        sized = [node for s in chosen if not any(s is plain for plain in self.plain) for node in s]
        small = _made(self.original, self.at, carried, sized, self.ports)
        why = difference(self.original, small.model, self.example, small.mapping, self.at.masks, not self.at.fold)
        if why is None:
            self.small = small
        return why


def find_carried(at: Analysis, full: set[fx.Node]) -> dict[fx.Node, Tensor]:
    """The units that each tensor has: those that anything wants, and what comes with them; all in ``full``."""
    carried = {
        node: torch.ones(len(units), dtype=torch.bool) if node in full else at_least_one(at.kept[node])  # type: ignore[arg-type]
        for node, units in at.units.items()
        if units is not None
    }  # fmt: skip
    changed = True
    while changed:
        changed = False
        for node in [*carried, *reversed(carried)]:
            rule = at.rules[node]
            operands = rule.operands(node)
            has = [carried.get(operand) for operand in operands]
            own = rule.closure(at, node, carried[node] | rule.carried(at, node, has))
            for tensor, some in zip((node, *operands), (own, *rule.shares(at, node, own)), strict=True):
                if tensor in carried and bool((some & ~carried[tensor]).any()):
                    carried[tensor] = carried[tensor] | some
                    changed = True
    return carried


def streams(at: Analysis) -> list[Stream]:
    """The tensors with units, by what goes together."""
    home = {node: [node] for node, units in at.units.items() if units is not None}
    for node in list(home):
        if isinstance(at.rules[node], Layer) and getattr(at.module(node), "groups", 1) == 1:
            continue
        for operand in at.rules[node].operands(node):
            if operand in home and home[operand] is not home[node]:
                joined = home[operand] + home[node]
                for member in joined:
                    home[member] = joined
    return list({id(stream): stream for stream in home.values()}.values())


def _made(
    original: nn.Module, at: Analysis, carried: Mapping[fx.Node, Tensor], sized: Sequence[fx.Node], ports: bool
) -> Small:
    model = copy.deepcopy(original)
    made = Small(model, _identity(model))
    for node, kept in carried.items():
        rule = at.rules[node]
        if isinstance(rule, Layer | BatchNorm):
            (operand,) = rule.operands(node)
            n_inputs = at.shape(operand)[at.units[node].axis]  # type: ignore[union-attr]
            inputs = carried.get(operand, torch.ones(n_inputs, dtype=torch.bool))
            _shrink(made, at, node, kept, inputs, ports)
    for node in sized:
        _resize(model.get_submodule(node.meta["inside"]), at, node, carried)
    return made


def _shrink(made: Small, at: Analysis, node: fx.Node, kept: Tensor, inputs: Tensor, ports: bool) -> None:
    """Give a layer or norm the units and inputs that its tensors carry, and by ports fewer."""
    name, rule = str(node.target), at.rules[node]
    module: Any = made.model.get_submodule(name)
    computed, reads = _ported(at, node, kept, inputs) if ports else (kept, inputs)
    if computed.all() and reads.all() and not at.fold:
        return
    small, entries = narrowed(module, computed, reads)
    made.mapping.update({f"{name}.{key}": (f"{name}.{key}", value) for key, value in entries.items()})
    constants = rule.folded(at, node, reads) if isinstance(rule, Layer) else None
    if constants is not None and (added := add_to_bias(small, constants[computed])) is not None:
        made.folded[f"{name}.bias"] = added
    vars(module).update(vars(small))  # the same object, which others may know
    if torch.equal(computed, kept) and torch.equal(reads, inputs):
        return
    original: Any = at.module(node)
    rest, shift = kept & ~computed, None
    if rest.any() and (original.bias is not None or constants[rest].any()):  # type: ignore[index]
        bias = torch.zeros(len(kept)) if original.bias is None else original.bias.detach()
        at_rest = rest.nonzero().flatten().to(module.weight.device)
        added = constants[rest].to(module.weight.device, module.weight.dtype)  # type: ignore[index]
        trained = original.bias is not None and original.bias.requires_grad
        values = nn.Parameter(bias.to(added.device, added.dtype)[at_rest] + added, requires_grad=trained)
        shift = values, _places(rest, kept).to(added.device)
        if original.bias is not None:
            made.mapping[f"{name}.shift"] = (f"{name}.bias", (at_rest,))
            made.folded |= {f"{name}.shift": added} if added.any() else {}
    kind = ported(type(module))
    assert kind is not None  # else no port is opened
    module.__class__ = kind
    indices = [None if torch.equal(*pair) else _places(*pair).to(module.weight.device)
               for pair in ((reads, inputs), (computed, kept))]  # fmt: skip
    module.open_ports(-1 if is_linear(module) else 1, *indices, int(kept.sum()), shift)


def _ported(at: Analysis, node: fx.Node, kept: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The units that a layer computes and the inputs that it reads: those with a weight, where this pays."""
    module, rule = at.module(node), at.rules[node]
    if not isinstance(rule, Layer) or ported(type(module)) is None or getattr(module, "groups", 1) > 1:
        return kept, inputs
    reads = at_least_one(rule.wants(at, node, kept)[0] & inputs, inputs)
    computed = at_least_one(kept & rule.connections(module, at.mask(node))[0][:, reads].any(1), kept)
    left = int(computed.sum()) * int(reads.sum()) / (int(kept.sum()) * int(inputs.sum()))
    return (computed, reads) if left <= PORTS_LEAVE else (kept, inputs)


def _places(some: Tensor, among: Tensor) -> Tensor:
    return some[among].nonzero().flatten()


def _resize(module: nn.Module, at: Analysis, node: fx.Node, carried: Mapping[fx.Node, Tensor]) -> None:
    """Give the module that cuts a tensor the new numbers of heads and features."""
    if not isinstance(at.rules[node], Moves):
        return
    sizes = {len(carried[n]): int(carried[n].sum()) for n in (node, *at.rules[node].operands(node)) if n in carried}
    for key in SIZES:
        if (old := vars(module).get(key)) in sizes and isinstance(old, int):
            setattr(module, key, sizes[old])


def _identity(model: nn.Module) -> dict[str, tuple[str, Entries]]:
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return {name: (name, ()) for name in (*dict(parameters), *dict(buffers))}


def _name_of(at: Analysis, stream: Stream) -> str:
    layers = [str(node.target) for node in stream if node.op == "call_module" and isinstance(at.rules[node], Layer)]
    return " and ".join(dict.fromkeys(layers or [str(stream[0].meta["inside"])]))


def _reasons(at: Analysis, followed: Followed) -> list[str]:
    """Why layers keep units: what their module does, and which operations read all units of a tensor."""
    masked = {name.rpartition(".")[0] for name in at.masks}
    called = {str(node.target) for node in followed.graph.nodes if node.op == "call_module"}
    notes = [f"{name} stays as it is: {why}" for name, why in followed.whole.items() if name in masked]
    silent = sorted(name for name in masked if name not in called and name not in followed.whole)
    notes += [f"{name} stays as it is: nothing calls it as a layer" for name in silent]
    readers: dict[str, list[str]] = {}
    for node in followed.graph.nodes:
        if (
            at.units[node] is None
            and node.op != "output"
            and any(at.units[o] is not None for o in node.all_input_nodes)
        ):
            name = str(getattr(node.target, "__name__", node.target))
            readers.setdefault(name, []).append(node.meta["inside"])
    for name, places in readers.items():
        where = list(dict.fromkeys(places))
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        notes.append(f"{name} reads all units of a tensor, which so keeps them (in {where[0] or 'the forward'}{more})")
    return notes
