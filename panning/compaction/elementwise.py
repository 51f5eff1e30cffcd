"""Operations that treat every unit by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from panning.compaction.rule import Analysis, Rule
from panning.compaction.units import Units


class Activation(Rule):
    """A function that works on each element by itself."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        x = at.units[self.operands(node)[0]]
        if x is None:
            return None
        constants = torch.where(x.is_constant, x.constant, 0.0).requires_grad_()
        with torch.enable_grad():
            values = call_on(at, node, constants.clone())
            (slope,) = torch.autograd.grad(values.sum(), constants)
        # Where the slope is 0, no gradient comes through here; but it may come by another way, and switch a ReLU on.
        moves = x.trained & (slope != 0) if at.read_once(self.operands(node)) else x.trained
        return Units(x.axis, values.detach(), moves).only_where(x.is_constant)


class Pass(Rule):
    """Operations that hand each unit on as it is, constants included: identity, pooling without a border, casts."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        (operand,) = self.operands(node)
        x, shape = at.units[operand], at.shape(node)
        if x is None or len(shape) <= x.axis or shape[x.axis] != len(x):
            return None
        return x if len(operand.users) == 1 else replace(x, parameter=None)


class KeepsZero(Pass):
    """Operations that change constants other than 0: dropout, pooling with a border of zeros."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        x = super().units(at, node)
        return None if x is None else replace(x.only_where(x.constant == 0), parameter=None)


class WithNumber(Rule):
    """Arithmetic with numbers: x + 2, x * 0.5, x / 3, 1 - x and the like."""

    def operands(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.args if isinstance(arg, fx.Node)]

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        operand, *others = self.operands(node)
        x = at.units[operand]
        if x is None or others or node.kwargs or at.shape(node) != at.shape(operand):
            return None
        function: Any = node.target
        values = function(*[x.constant.clone() if isinstance(arg, fx.Node) else arg for arg in node.args])
        return Units(x.axis, values, x.trained).only_where(x.is_constant)


def call_on(at: Analysis, node: fx.Node, x: Tensor) -> Tensor:
    """The operation of a node, in evaluation, on another tensor."""
    function: Any = node.target
    if node.op == "call_module":
        result: Tensor = at.module(node)(x)
    elif node.op == "call_method":
        result = getattr(x, function)(*node.args[1:], **node.kwargs)
    else:
        result = function(x, *node.args[1:], **node.kwargs)
    return result
