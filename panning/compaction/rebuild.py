"""The graph of the small network, node by node, once it is known which units it computes."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.compaction.joins import Concatenation, Flatten, Sum, ZeroPad
from panning.compaction.layers import BatchNorm, Layer
from panning.compaction.narrow import Entries, add_to_bias, narrowed
from panning.compaction.pooling import relu_behind_pools
from panning.compaction.rule import Analysis
from panning.compaction.units import Units
from panning.models.parts import Gather, PartialSum


class Rebuild:
    """The graph of the small network, node by node."""

    def __init__(self, network: fx.GraphModule, at: Analysis, copies: dict[int, Any]) -> None:
        """
        Args:
            copies: what has been copied, by ids; tensors and modules under two names are copied once.
        """
        self.original, self.at, self.copies = network, at, copies
        self.graph = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self.mapping: dict[str, tuple[str, Entries]] = {}
        self.folded: dict[str, Tensor] = {}
        self.new: dict[fx.Node, fx.Node] = {}
        self.gathered: dict[tuple[fx.Node, int, bytes], fx.Node] = {}
        reference = next(chain(network.parameters(), network.buffers()), torch.empty(0))
        self.device, self.dtype = reference.device, reference.dtype

    def network(self, name: str) -> fx.GraphModule:
        for node in self.original.graph.nodes:
            kept = self.at.kept[node]
            if kept is None:
                self.new[node] = self._whole(node)
            elif kept.any():
                self.new[node] = self._small(node)
        model = fx.GraphModule(self.attributes, self.graph, name)
        model.graph.eliminate_dead_code()
        relu_behind_pools(model, self.at.whole)
        model.delete_all_unused_submodules()
        model.graph.lint()
        model.recompile()
        return model

    def _whole(self, node: fx.Node) -> fx.Node:
        if node.op == "call_module":
            self._keep_module(str(node.target))
        elif node.op == "get_attr":
            self._keep_attribute(str(node.target))
        return self.graph.node_copy(node, lambda operand: self.new[operand])

    def _small(self, node: fx.Node) -> fx.Node:
        rule, kept = self.at.rules[node], self.at.kept[node]
        assert kept is not None
        operands = rule.operands(node)
        wants = rule.wants(self.at, node, kept)
        axis = self.at.units[node].axis  # type: ignore[union-attr]
        if isinstance(rule, Flatten):
            return self._call(node, torch.flatten, self._units(operands[0], wants[0], axis), 1)
        if isinstance(rule, Sum):
            return self._sum(node, rule, operands, wants, kept, axis)
        axes = [axis if (x := self.at.units[o]) is None else x.axis for o in operands]  # x.mean(1) moves the units'
        parts = [self._units(o, s, a) if s.any() else None for o, s, a in zip(operands, wants, axes, strict=True)]
        if isinstance(rule, Concatenation):
            return self._call(node, torch.cat, [part for part in parts if part is not None], axis)
        given = dict(zip(operands, parts, strict=True))
        copied = self.graph.node_copy(node, lambda operand: given[operand] or self.new[operand])
        if node.op == "call_module":
            module, name = self.at.module(node), str(node.target)
            if isinstance(rule, Layer | BatchNorm):
                self.attributes[name] = small = self._narrowed(name, module, kept, wants[0])
                if isinstance(rule, Layer):
                    added = add_to_bias(small, rule.folded(self.at, node, wants[0])[kept])
                    if added is not None:
                        self.folded[f"{name}.bias"] = added
            else:
                self._keep_module(name)
        elif isinstance(rule, ZeroPad):
            self._pad_less(copied, node, rule, kept)
        return copied

    def _units(self, operand: fx.Node, some: Tensor, axis: int) -> fx.Node:
        """``some`` of all units of an operand, gathered if it has more than these."""
        has = self.at.kept[operand]
        if has is None:
            shape = self.at.shape(operand)
            if len(shape) <= axis or shape[axis] != len(some):  # one element where others have units
                return self.new[operand]
            has = torch.ones_like(some)
        if torch.equal(has, some):
            return self.new[operand]
        key = (operand, axis, some.numpy().tobytes())
        if key not in self.gathered:
            module = Gather(axis, some[has].nonzero().flatten().to(self.device))
            self.gathered[key] = self.graph.call_module(
                self._add(f"{operand.name}_gather", module), (self.new[operand],)
            )
        return self.gathered[key]

    def _sum(
        self, node: fx.Node, rule: Sum, operands: list[fx.Node], wants: list[Tensor], kept: Tensor, axis: int
    ) -> fx.Node:
        shifts: list[tuple[Any, Tensor]] = []
        for number, some in enumerate(rule.shifts(self.at, node, kept)):
            computed = self.at.kept[operands[number]]
            if computed is not None:  # in a group with others that are wanted
                wants[number] = wants[number] | (some & computed)
                some = some & ~computed
            if some.any():
                shifts.append((self.at.units[operands[number]], some))
        parts = [(self._units(o, some, axis), some) for o, some in zip(operands, wants, strict=True) if some.any()]
        if not shifts and all(torch.equal(some, kept) for _, some in parts):
            if len(parts) == 1:
                return parts[0][0]
            return self._call(node, torch.add, *(part for part, _ in parts))
        indices = [None if torch.equal(some, kept) else self._index(some[kept]) for _, some in parts]
        values = [(self._constants(x, some), self._index(some[kept])) for x, some in shifts]
        added = self._add(f"{node.name}_sum", PartialSum(axis, int(kept.sum()), indices, values))
        for number, (x, some) in enumerate(shifts):
            if not self.at.fold:
                self.mapping[f"{added}.shift{number}"] = (x.parameter, (self._index(some),))
        return self.graph.call_module(added, tuple(part for part, _ in parts))

    def _pad_less(self, copied: fx.Node, node: fx.Node, rule: ZeroPad, kept: Tensor) -> None:
        front, back = rule.new_units(self.at, node)
        rank = len(self.at.shape(rule.operands(node)[0]))
        pads: list[int] = list(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])  # type: ignore[arg-type]
        at = 2 * (rank - 2)  # the last axis first, the units' is the second
        if len(pads) > at:
            pads[at], pads[at + 1] = int(kept[:front].sum()), int(kept[len(kept) - back :].sum()) if back else 0
        if len(node.args) > 1:
            copied.update_arg(1, pads)
        else:
            copied.update_kwarg("pad", pads)

    def _narrowed(self, name: str, module: Any, kept: Tensor, inputs: Tensor) -> nn.Module:
        small, by_name = narrowed(module, kept, inputs)
        self.mapping.update({f"{name}.{key}": (f"{name}.{key}", entries) for key, entries in by_name.items()})
        return small

    def _keep_module(self, name: str) -> None:
        module = self.original.get_submodule(name)
        self.attributes[name] = copy.deepcopy(module, self.copies)
        named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        self.mapping.update({f"{name}.{key}": (f"{name}.{key}", ()) for key, _ in named})

    def _keep_attribute(self, name: str) -> None:
        owner, _, key = name.rpartition(".")
        value = getattr(self.original.get_submodule(owner), key)
        self.attributes[name] = copy.deepcopy(value, self.copies) if isinstance(value, Tensor) else value
        self.mapping[name] = (name, ())

    def _constants(self, x: Units, some: Tensor) -> Tensor:
        if self.at.fold:
            return x.constant[some].to(self.device, self.dtype)
        whole = self.original.get_parameter(str(x.parameter))
        return nn.Parameter(whole.detach()[self._index(some)], requires_grad=whole.requires_grad)

    def _index(self, some: Tensor) -> Tensor:
        return some.nonzero().flatten().to(self.device)

    def _add(self, name: str, module: nn.Module) -> str:
        while name in self.attributes or hasattr(self.original, name):
            name += "_"
        self.attributes[name] = module
        return name

    def _call(self, node: fx.Node, function: Any, *args: Any) -> fx.Node:
        return self.graph.create_node("call_function", function, args, {}, node.name)
