"""Linear layers, convolutions and batch norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.compaction.rule import Analysis, Rule, at_least_one
from panning.compaction.units import Units


class Layer(Rule):
    """Linear layers and convolutions."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        module: Any = at.module(node)
        (operand,) = self.operands(node)
        x, rank = at.units[operand], len(at.shape(operand))
        axis = rank - 1 if is_linear(module) else 1
        if not is_linear(module) and rank != module.weight.dim():  # no batch
            return None
        if x is not None and x.axis != axis:
            return None
        connections = self.connections(module, at.mask(node))
        sees = torch.ones(at.shape(operand)[axis], dtype=torch.bool) if x is None else ~self._told_apart(at, node, x)
        fed = _any(connections & sees.view(len(connections), 1, -1), 2).flatten()
        return _biases(at, node, axis, self.folded(at, node)).only_where(~fed)

    def closure(self, at: Analysis, node: fx.Node, wanted: Tensor) -> Tensor:
        n_groups = getattr(at.module(node), "groups", 1)
        if n_groups == 1:
            return at_least_one(wanted)
        some = at_least_one(wanted.view(n_groups, -1).any(1))
        return some.repeat_interleave(len(wanted) // n_groups)

    def wants(self, at: Analysis, node: fx.Node, kept: Tensor) -> list[Tensor]:
        connections = self.connections(at.module(node), at.mask(node))
        n_groups, _, n_in = connections.shape
        if n_groups > 1:
            return [kept.view(n_groups, -1).any(1).repeat_interleave(n_in)]
        (operand,) = self.operands(node)
        x = at.units[operand]
        used = connections[0, kept].any(0)
        return [at_least_one(used) if x is None else at_least_one(used & ~self._told_apart(at, node, x), x.is_constant)]

    def carried(self, at: Analysis, node: fx.Node, has: list[Tensor | None]) -> Tensor:
        """Groups go as a whole, inputs and outputs; apart from that a layer may read more than it needs."""
        carried = torch.zeros(len(at.units[node] or ()), dtype=torch.bool)
        n_groups = getattr(at.module(node), "groups", 1)
        if n_groups == 1:
            return carried
        (some,) = has
        groups = torch.ones(n_groups, dtype=torch.bool) if some is None else some.view(n_groups, -1).any(1)
        return groups.repeat_interleave(len(carried) // n_groups)

    def folded(self, at: Analysis, node: fx.Node, computed: Tensor | None = None) -> Tensor:
        """Sum what constant inputs, those in ``computed`` apart, add to each output; float64 [outputs]."""
        module: Any = at.module(node)
        x = at.units[self.operands(node)[0]]
        if x is None or not at.fold or is_transposed(module) or getattr(module, "groups", 1) > 1:
            n_outputs = at.shape(node)[-1 if is_linear(module) else 1]
            return torch.zeros(n_outputs, dtype=torch.float64)
        known = self._told_apart(at, node, x) & ~(torch.zeros_like(x.trained) if computed is None else computed)
        weight = module.weight.detach().to("cpu", torch.float64) * at.mask(node)
        return weight.reshape(*weight.shape[:2], -1).sum(2) @ x.constant.where(known, 0.0)

    @staticmethod
    def _told_apart(at: Analysis, node: fx.Node, x: Units) -> Tensor:
        """Inputs whose effect is known: none, or the same at every place, so that a bias can have it."""
        module: Any = at.module(node)
        if not at.fold or is_transposed(module) or getattr(module, "groups", 1) > 1:
            return x.stays_zero
        bordered = not is_linear(module) and module.padding not in ("valid", (0,) * len(module.kernel_size))
        return x.stays_zero if bordered else x.is_constant

    @staticmethod
    def connections(module: Any, mask: Tensor) -> Tensor:
        """bool [groups, outputs of a group, inputs of a group]: some weight between the two is kept."""
        n_groups = getattr(module, "groups", 1)
        some = mask.flatten(2).any(2) if mask.dim() > 2 else mask
        some = some.view(n_groups, -1, some.shape[1])
        return some.transpose(1, 2) if is_transposed(module) else some


def _biases(at: Analysis, node: fx.Node, axis: int, more: Tensor) -> Units:
    """The units of a module that are its bias, and what else is added to it."""
    bias: Any = at.module(node).bias
    if bias is None:
        return Units(axis, more, torch.zeros(len(more), dtype=torch.bool))
    values = bias.detach().to("cpu", torch.float64) + more
    return Units(axis, values, torch.full((len(more),), not at.fold), None if at.fold else f"{node.target}.bias")


def is_linear(module: Any) -> bool:
    return bool(module.weight.dim() == 2)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is [inputs, outputs, ...], as that of transformers' ``Conv1D`` is."""
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return transposed or type(module).__name__ in ("Conv1D", "PortedConv1D")


class BatchNorm(Rule):
    """A unit that stays zero is the bias after the norm; in evaluation, once its running mean is taken off."""

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        module: Any = at.module(node)
        x = at.units[self.operands(node)[0]]
        if x is None or x.axis != 1:
            return None
        mean, var, weight = (
            None if t is None else t.detach().to("cpu", torch.float64)
            for t in (module.running_mean, module.running_var, module.weight)
        )
        centred = torch.zeros(len(x), dtype=torch.float64) if mean is None else x.constant - mean
        if at.fold and var is not None:
            scaled = centred / (var + module.eps).sqrt()
            return _biases(at, node, 1, scaled if weight is None else scaled * weight).only_where(x.is_constant)
        return _biases(at, node, 1, torch.zeros_like(centred)).only_where(x.stays_zero & (centred == 0))


def _any(x: Tensor, dim: int) -> Tensor:
    return x.any(dim) if x.shape[dim] else torch.zeros(x.shape[:dim] + x.shape[dim + 1 :], dtype=torch.bool)
