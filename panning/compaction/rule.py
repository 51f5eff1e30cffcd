"""How an operation of a network treats units: which of its own are constant, which it wants of its operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from panning.compaction.units import Units


class Network(Protocol):
    """What the analysis needs of a network."""

    @property
    def graph(self) -> fx.Graph: ...
    def get_submodule(self, target: str) -> nn.Module: ...


@dataclass
class Analysis:
    """A traced network with its masks, and what the two passes find out node by node.

    Attributes:
        masks: of every masked parameter, by name.
        whole: names of the modules that stay as they are.
        fold: constants stay what they are now, as in evaluation, instead of being trained.
        in_place: the forward stays, so that every tensor has the same units for all that make or read it.
        rules: of the operations that know units; without one a tensor stays whole.
        units: None for a tensor that stays whole.
        kept: bool [units]; which units the compact network computes. None where units is None.
    """

    network: Network
    masks: Mapping[str, Tensor]
    whole: frozenset[str]
    fold: bool = False
    in_place: bool = False
    rules: dict[fx.Node, Rule] = field(default_factory=dict)
    units: dict[fx.Node, Units | None] = field(default_factory=dict)
    kept: dict[fx.Node, Tensor | None] = field(default_factory=dict)

    def read_once(self, operands: Sequence[fx.Node]) -> bool:
        """Whether nothing but the one node that has these operands reads them, or what makes their constants."""
        known = [x for x in (self.units[o] for o in operands) if x is not None]
        return all(len(o.users) == 1 for o in operands) and all(x.only_here for x in known)

    def module(self, node: fx.Node) -> nn.Module:
        return self.network.get_submodule(str(node.target))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        shape = node.meta["shape"]
        return shape if shape is not None else ()

    def mask(self, node: fx.Node) -> Tensor:
        """The mask of a layer's weight; all kept where it has none."""
        weight: Any = self.module(node).weight
        mask = self.masks.get(f"{node.target}.weight")
        return torch.ones(weight.shape, dtype=torch.bool) if mask is None else mask.to("cpu")


class Rule:
    """An operation on units; ``operands`` are the tensors it works on, in order."""

    def operands(self, node: fx.Node) -> list[fx.Node]:
        return [node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else []

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        """What is known of the result's units; None if the operation, as it is called here, has to stay whole."""
        raise NotImplementedError

    def closure(self, at: Analysis, node: fx.Node, wanted: Tensor) -> Tensor:
        """The units that have to be computed, where some come in groups."""
        return wanted

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        """The units it needs of each operand to compute the kept ones of its own."""
        return [kept for _ in self.operands(node)]

    def shares(self, at: Analysis, node: fx.Node, carried: Tensor) -> list[Tensor]:
        """The same where the forward stays: the units that each operand has to have if the result has these."""
        return self.wants(at, node, carried)

    def carried(self, at: Analysis, node: fx.Node, has: list[Tensor | None]) -> Tensor:
        """The units that the result has where the forward stays, and the operands have these; None is a whole operand."""
        n = at.shape(node)[at.units[node].axis]  # type: ignore[union-attr]
        whole = torch.ones(n, dtype=torch.bool)
        return torch.stack([whole if some is None else some for some in has]).any(0)


def at_least_one(units: Tensor, rather: Tensor | None = None) -> Tensor:
    """No layer is left without a unit, since torch's convolutions cannot be empty; ``rather`` one of the cheap ones."""
    if units.any():
        return units
    first = torch.zeros_like(units)
    first[int(rather.nonzero()[0]) if rather is not None and rather.any() else 0] = True
    return first
