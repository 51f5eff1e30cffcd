"""Operations that bring units together or renumber them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from panning.compaction.rule import Analysis, Rule, at_least_one
from panning.compaction.units import Units


class Flatten(Rule):
    """[batch, units, ...] -> [batch, units * rest]: every unit becomes a block."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        (operand,) = self.operands(node)
        x, before, after = at.units[operand], at.shape(operand), at.shape(node)
        if x is None or x.axis != 1 or len(before) < 2 or after != (before[0], math.prod(before[1:])):
            return None
        n = math.prod(before[2:])
        return Units(1, x.constant.repeat_interleave(n), x.trained.repeat_interleave(n))

    def closure(self, at: Analysis, node: fx.Node, wanted: Tensor) -> Tensor:
        return self._blocks(at, node, wanted).repeat_interleave(self._block_size(at, node))

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        return [self._blocks(at, node, kept)]

    def carried(self, at: Analysis, node: fx.Node, has: list[Tensor | None]) -> Tensor:
        return super().carried(
            at, node, [x if x is None else x.repeat_interleave(self._block_size(at, node)) for x in has]
        )

    def _block_size(self, at: Analysis, node: fx.Node) -> int:
        return math.prod(at.shape(self.operands(node)[0])[2:])

    def _blocks(self, at: Analysis, node: fx.Node, units: Tensor) -> Tensor:
        return at_least_one(units.view(-1, self._block_size(at, node)).any(1))


class Sum(Rule):
    """a + b of one shape. A part that adds nothing to a unit need not have it; a constant can be added by itself."""

    def operands(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.args if isinstance(arg, fx.Node)]

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        operands = self.operands(node)
        known = [x for x in (at.units[o] for o in operands) if x is not None]
        if len(operands) != 2 or node.kwargs or any(at.shape(o) != at.shape(node) for o in operands):
            return None
        if not known or any(x.axis != known[0].axis for x in known):
            return None
        if len(known) < 2:
            return Units.live(known[0].axis, len(known[0]))
        a, b = known
        return Units(a.axis, a.constant + b.constant, a.trained | b.trained).only_where(a.is_constant & b.is_constant)

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        adds = [kept & self._adds(at, operand, len(kept)) for operand in self.operands(node)]
        wanted = [a & ~s for a, s in zip(adds, self._by_itself(at, node, kept), strict=True)]
        wanted[0] = wanted[0] | (kept & ~torch.stack(adds).any(0))  # zeros that something further on insists on
        if not torch.stack(wanted).any():  # some tensor has to say the shape
            wanted[0] = kept & (kept.cumsum(0) == 1)
        return wanted

    def shares(self, at: Analysis, node: fx.Node, carried: Tensor) -> list[Tensor]:
        return [carried for _ in self.operands(node)]

    def shifts(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        """The kept units, for each operand, that are added as constants instead."""
        wanted, known = self.wants(at, node, kept), self._by_itself(at, node, kept)
        return [k & ~w for k, w in zip(known, wanted, strict=True)]

    @staticmethod
    def _adds(at: Analysis, operand: fx.Node, n: int) -> Tensor:
        x = at.units[operand]
        return torch.ones(n, dtype=torch.bool) if x is None else ~x.stays_zero

    def _by_itself(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        """For each operand, the kept units that are entries of a parameter which nothing else needs."""
        result = []
        for operand in self.operands(node):
            x = at.units[operand]
            by_itself = torch.zeros_like(kept)
            if at.in_place:
                pass
            elif x is not None and at.fold:
                by_itself = x.is_constant & ~x.stays_zero
            elif x is not None and list(operand.users) == [node] and self.operands(node).count(operand) == 1:
                by_itself = x.is_parameter
            result.append(kept & by_itself)
        return result


class Product(Rule):
    """a * b; one may have a single element where the other has spatial ones, or no units of its own."""

    def operands(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.args if isinstance(arg, fx.Node)]

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        operands = self.operands(node)
        shape = at.shape(node)
        known = [x for x in (at.units[o] for o in operands) if x is not None]
        if not known or node.kwargs or any(len(at.shape(o)) != len(shape) for o in operands):
            return None
        axis, n = known[0].axis, len(known[0])
        if shape[axis] != n or any(x.axis != axis or len(x) != n for x in known):
            return None
        if any(at.shape(o)[axis] != n for o in operands):
            return None
        stays_zero = torch.stack([x.stays_zero for x in known]).any(0)
        zeros = Units(axis, torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool))
        return zeros.only_where(stays_zero)


class Concatenation(Rule):
    """Units one after the other."""

    def operands(self, node: fx.Node) -> list[fx.Node]:
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors", ())
        listed = isinstance(parts, list | tuple) and all(isinstance(part, fx.Node) for part in parts)
        return list(parts) if listed else []  # the parts of a split are one node

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        operands = self.operands(node)
        dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        rank = len(at.shape(node))
        if not operands or not isinstance(dim, int) or any(len(at.shape(o)) != rank for o in operands):
            return None
        axis = dim % rank
        parts = [at.units[o] or Units.live(axis, at.shape(o)[axis]) for o in operands]
        if any(x.axis != axis for x in parts) or all(at.units[o] is None for o in operands):
            return None
        return Units(axis, torch.cat([x.constant for x in parts]), torch.cat([x.trained for x in parts]))

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        axis = at.units[node].axis  # type: ignore[union-attr]
        return list(kept.split([at.shape(o)[axis] for o in self.operands(node)]))

    def carried(self, at: Analysis, node: fx.Node, has: list[Tensor | None]) -> Tensor:
        axis = at.units[node].axis  # type: ignore[union-attr]
        sizes = [at.shape(o)[axis] for o in self.operands(node)]
        return torch.cat([torch.ones(n, dtype=torch.bool) if x is None else x for n, x in zip(sizes, has, strict=True)])


class ZeroPad(Rule):
    """F.pad with zeros: space keeps zeros zero, new units are zero."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        (operand,) = self.operands(node)
        x = at.units[operand]
        front, back = self.new_units(at, node)
        if x is None or x.axis != 1 or (front, back) == (-1, -1):
            return None
        x = x.only_where(x.constant == 0)
        zeros = [torch.zeros(n, dtype=torch.float64) for n in (front, back)]
        never = [torch.zeros(n, dtype=torch.bool) for n in (front, back)]
        return Units(1, torch.cat([zeros[0], x.constant, zeros[1]]), torch.cat([never[0], x.trained, never[1]]))

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        front, back = self.new_units(at, node)
        return [at_least_one(kept[front : len(kept) - back])]

    def closure(self, at: Analysis, node: fx.Node, wanted: Tensor) -> Tensor:
        front, back = self.new_units(at, node)
        inner = at_least_one(wanted[front : len(wanted) - back])
        return torch.cat([wanted[:front], inner, wanted[len(wanted) - back :]])

    def carried(self, at: Analysis, node: fx.Node, has: list[Tensor | None]) -> Tensor:
        (some,), (front, back) = has, self.new_units(at, node)
        assert some is not None
        return torch.cat([torch.ones(front, dtype=torch.bool), some, torch.ones(back, dtype=torch.bool)])

    def new_units(self, at: Analysis, node: fx.Node) -> tuple[int, int]:
        """Units before and behind the operand's; (-1, -1) for a padding that is not of this kind."""
        pads: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        rank = len(at.shape(self.operands(node)[0]))
        if mode != "constant" or value not in (None, 0, 0.0) or not all(isinstance(p, int) and p >= 0 for p in pads):
            return -1, -1
        pairs = [*zip(pads[::2], pads[1::2], strict=True)]  # the last axis first
        by_axis = dict(zip(range(rank - 1, -1, -1), pairs, strict=False))
        return by_axis.get(1, (0, 0)) if by_axis.get(0, (0, 0)) == (0, 0) else (-1, -1)
