"""Operations that are run to see what they do with units: those that move entries, and those that keep units apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from panning.compaction.rule import Analysis, Rule
from panning.compaction.units import Units

#: Functions and methods whose result has entries of their operands and nothing else.
MOVES = frozenset({
    "view", "reshape", "flatten", "unflatten", "ravel", "permute", "transpose", "swapaxes", "swapdims", "movedim",
    "moveaxis", "t", "unbind", "split", "chunk", "tensor_split", "narrow", "select", "unsqueeze", "squeeze", "expand",
    "broadcast_to", "repeat", "repeat_interleave", "getitem", "stack", "cat", "concat", "roll", "flip", "tile", "hstack",
    "vstack",
})  # fmt: skip


def not_followed(*_: Any) -> None:
    """Stands in a graph for what is not followed."""


class _Related(Rule):
    """An operation with a relation between its own units and those of each operand: bool [own units, units]."""

    def operands(self, node: fx.Node) -> list[fx.Node]:
        return list(node.all_input_nodes)

    def relation(self, at: Analysis, node: fx.Node) -> tuple[int, list[Tensor]] | None:
        raise NotImplementedError

    def related(self, at: Analysis, node: fx.Node) -> tuple[int, list[Tensor]] | None:
        key = type(self).__name__
        if key not in node.meta:
            try:
                node.meta[key] = self.relation(at, node)
            except Exception:  # whatever an operation may raise that is run on other numbers
                node.meta[key] = None
        found: tuple[int, list[Tensor]] | None = node.meta[key]
        return found

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        return [relation[kept].any(0) for relation in self.related(at, node)[1]]  # type: ignore[index]

    def carried(self, at: Analysis, node: fx.Node, has: list[Tensor | None]) -> Tensor:
        axis, relations = self.related(at, node)  # type: ignore[misc]
        shape = at.shape(node)
        carried = torch.zeros(shape[axis], dtype=torch.bool)
        for operand, some, relation in zip(self.operands(node), has, relations, strict=True):
            if some is not None:
                carried |= relation[:, some].any(1)
            elif _spans(at.shape(operand), shape, axis):
                carried[:] = True
        return carried


class Moves(_Related):
    """Views, permutations, pieces and the like, found by moving the units' numbers.

    Where one axis is cut into several, as features into heads, the axis before the last of these has the units: heads.
    """

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        parts = [x for o in self.operands(node) if (x := at.units[o]) is not None]
        if not parts or (found := self.related(at, node)) is None:
            return None
        axis, relations = found
        constants, trained = (torch.cat([getattr(x, key) for x in parts]) for key in ("constant", "trained"))
        together = torch.cat(relations, 1)
        value = constants[together.int().argmax(1)]
        same = (~together | (constants == value.unsqueeze(1))).all(1) & together.any(1)
        return Units(axis, value.masked_fill(~same, torch.nan), (together & trained).any(1) & same)

    def relation(self, at: Analysis, node: fx.Node) -> tuple[int, list[Tensor]] | None:
        numbers, sizes, n = {}, [], 0
        for operand in self.operands(node):
            x, shape = at.units[operand], at.shape(operand)
            if x is None and 0 in shape:  # an empty beginning, as of a cache
                numbers[operand] = operand.meta["value"].long().cpu()
                sizes.append(0)
                continue
            if x is None:
                return None
            view = [-1 if axis == x.axis else 1 for axis in range(len(shape))]
            numbers[operand] = torch.arange(n, n + len(x)).view(view).expand(shape).contiguous()
            n += len(x)
            sizes.append(len(x))
        moved = run(node, numbers)
        if tuple(moved.shape) != at.shape(node):
            return None
        candidates = []
        for axis, size in enumerate(moved.shape):
            seen = torch.zeros(size, n, dtype=torch.bool)
            view = [-1 if i == axis else 1 for i in range(moved.dim())]
            seen[torch.arange(size).view(view).expand(moved.shape).flatten(), moved.flatten()] = True
            if not seen[:, seen.any(0)].all():
                candidates.append((axis, list(seen.split(sizes, 1))))
        if len(candidates) > 1:
            of_three = [len(relations[0]) == 3 for _, relations in candidates[-3:-1]]  # queries, keys and values
            return candidates[-3] if of_three == [False, True] else candidates[-2]
        return candidates[0] if candidates else None


class KeepsApart(_Related):
    """An operation in which no unit reads another, found by changing some units and looking which of its own change.

    An operand may have one unit for several of the operation's, one after the other, as shared keys for heads.
    """

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        if all(at.units[o] is None for o in self.operands(node)) or (found := self.related(at, node)) is None:
            return None
        return Units.live(found[0], at.shape(node)[found[0]])

    def relation(self, at: Analysis, node: fx.Node) -> tuple[int, list[Tensor]] | None:
        known = [(o, x) for o in self.operands(node) if (x := at.units[o]) is not None]
        shape = at.shape(node)
        n = max(len(x) for _, x in known)
        operand, x = next(pair for pair in known if len(pair[1]) == n)
        generator = torch.Generator().manual_seed(0)
        values = {o: _other(o.meta["value"], generator) if at.units[o] is not None else o.meta["value"]
                  for o in self.operands(node)}  # fmt: skip
        before = run(node, values)
        for axis in dict.fromkeys((x.axis, len(shape) - len(at.shape(operand)) + x.axis)):
            if n < 2 or not 0 <= axis < len(shape) or shape[axis] != n or before.shape != torch.Size(shape):
                continue
            relations = []
            for o in self.operands(node):
                own = at.units[o]
                if own is None:
                    relations.append(torch.zeros(n, 1, dtype=torch.bool))
                elif n % len(own) or not self._apart(node, values, before, axis, o, own, generator):
                    break
                else:
                    relations.append(torch.eye(len(own), dtype=torch.bool).repeat_interleave(n // len(own), 0))
            else:
                return axis, relations
        return None

    @staticmethod
    def _apart(
        node: fx.Node, values: Any, before: Tensor, axis: int, operand: fx.Node, x: Units, generator: Any
    ) -> bool:
        """Whether a change of some units, then of the others, changes these alone."""
        size = before.shape[axis] // len(x)
        some = torch.randperm(len(x), generator=generator) % 2 == 0
        for changes in (some, ~some):
            value = values[operand].clone()
            index = changes.nonzero().flatten().to(value.device)
            others = _other(value.index_select(x.axis, index), generator)
            after = run(node, {**values, operand: value.index_copy(x.axis, index, others)})
            stay = (~changes).repeat_interleave(size).nonzero().flatten().to(before.device)
            if not torch.equal(after.index_select(axis, stay), before.index_select(axis, stay)):
                return False
        return True


def run(node: fx.Node, values: dict[fx.Node, Tensor]) -> Any:
    """The operation of a node on other tensors: the one of its results that the node stands for."""
    args: Any = fx.node.map_arg(node.args, lambda operand: values[operand].clone())
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda operand: values[operand].clone())
    target: Any = node.target
    result = getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
    part = node.meta["part"]
    return result if part is None else result[part]


def _other(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return 1 - value if value.dtype != torch.bool else ~value
    return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)


def _spans(shape: tuple[int, ...], own: tuple[int, ...], axis: int) -> bool:
    """Whether an operand without units of its own says how many there are."""
    aligned = axis - len(own) + len(shape)
    return any(0 <= i < len(shape) and shape[i] == own[axis] > 1 for i in {aligned, axis})
