"""Random walks over the units of a network, thousands at a time, by table look-ups (see ``pruners.phew``)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from panning.pruners.units import UnitNode

Steps = Iterator[tuple[Tensor, Tensor]]  # numbers of walks, and the flat position of a weight for each


def _uniform(n: int, generator: Generator) -> Tensor:
    # A little below 1, so that rounding never leads into the next row.
    return torch.rand(n, generator=generator, dtype=torch.float64) * (1.0 - 1e-9)


class _Draws:
    """Draws a column of a matrix, in each row by its weights; uniformly among the allowed where these are all zero."""

    def __init__(self, weights: Tensor, allowed: Tensor) -> None:
        chances = weights.to(torch.float64, copy=True, memory_format=torch.contiguous_format).mul_(allowed)
        chances += allowed * (chances.sum(1, keepdim=True) == 0)
        rising = chances.cumsum_(1)
        rising /= rising[:, -1:].clamp(min=1e-300)
        # Row r rises from r to r + 1: one search finds the columns of any number of rows.
        self.rising = rising.add_(torch.arange(rising.shape[0]).unsqueeze(1))

    def __call__(self, rows: Tensor, generator: Generator) -> Tensor:
        found = torch.searchsorted(self.rising.view(-1), rows + _uniform(rows.numel(), generator), right=True)
        return found - rows * self.rising.shape[1]


class _Lists:
    """Draws a value of a list, uniformly; the lists are given as pairs (list, value)."""

    def __init__(self, lists: Tensor, values: Tensor, n_lists: int) -> None:
        self.values = values[lists.argsort(stable=True)]
        self.counts = lists.bincount(minlength=n_lists)
        self.starts = self.counts.cumsum(0) - self.counts

    def __call__(self, lists: Tensor, generator: Generator) -> Tensor:
        places = (_uniform(lists.numel(), generator) * self.counts[lists]).long()
        return self.values[self.starts[lists] + places]


class _Crossing:
    """The steps through one node that stay on walks to the output."""

    def __init__(self, node: UnitNode, useful: Tensor) -> None:
        self.start, self.layer = node.start, node.layer
        wanted = useful[node.start : node.start + node.n_units]
        kept = node.slots_to(wanted)[node.slots]
        self.units, self.slots = node.units[kept].cpu(), node.slots[kept].cpu()
        if self.layer is None:
            self.sources = _Lists(self.slots, self.units, node.n_units)
            return
        layer = self.layer = self.layer.cpu()
        n_groups, n_outputs, n_inputs, _ = layer.weight.shape
        self.sources = _Lists(self.slots, self.units, n_groups * n_inputs)
        fed = torch.zeros(n_groups, 1, n_inputs, dtype=torch.bool)
        fed.view(-1)[self.slots] = True
        norms = (layer.weight.abs() * layer.taps).sum(-1)
        wanted = wanted.cpu().view(n_groups, 1, n_outputs).expand(-1, n_inputs, -1)
        self.forward = _Draws(norms.transpose(1, 2).flatten(0, 1), wanted.flatten(0, 1))
        self.backward = _Draws(norms.flatten(0, 1), fed.expand(-1, n_outputs, -1).flatten(0, 1))

    def to_unit(self, slots: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Units of this node from slots, and the flat positions of the weights on the way, if they have any."""
        if self.layer is None:
            return slots, None
        _, n_outputs, n_inputs, _ = self.layer.weight.shape
        group, output = slots // n_inputs, self.forward(slots, generator)
        return group * n_outputs + output, self._tap(group, output, slots % n_inputs, generator)

    def to_slot(self, units: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """The same the other way."""
        if self.layer is None:
            return units, None
        _, n_outputs, n_inputs, _ = self.layer.weight.shape
        group, inputs = units // n_outputs, self.backward(units, generator)
        return group * n_inputs + inputs, self._tap(group, units % n_outputs, inputs, generator)

    def _tap(self, group: Tensor, outputs: Tensor, inputs: Tensor, generator: Generator) -> Tensor | None:
        layer = self.layer
        if layer is None or layer.positions is None:
            return None
        if layer.taps.numel() == 1:
            return layer.positions[group, outputs, inputs, 0]
        kernels = layer.weight[group, outputs, inputs].abs()
        taps = _Draws(kernels, layer.taps.expand_as(kernels))(torch.arange(kernels.shape[0]), generator)
        return layer.positions[group, outputs, inputs, taps]


class Walks:
    """Draws batches of walks."""

    def __init__(self, nodes: list[UnitNode], useful: Tensor) -> None:
        self.nodes = [_Crossing(node, useful) for node in nodes]
        self.starts = torch.tensor([node.start for node in nodes])
        self.n_outputs = nodes[-1].n_units
        sizes = torch.tensor([1] + [node.n_units for node in nodes])  # unit 0 is none
        self.node_of = torch.arange(-1, len(nodes)).repeat_interleave(sizes)
        # Where a unit leads: first to which node, then to which of its slots (those of a flattened map are its places).
        unit = torch.cat([node.units for node in self.nodes])
        slot = torch.cat([node.slots for node in self.nodes])
        number = torch.cat([torch.full_like(node.units, i) for i, node in enumerate(self.nodes)])
        branches, branch = torch.unique(unit * len(nodes) + number, return_inverse=True)
        self.branches = _Lists(branches // len(nodes), torch.arange(branches.numel()), useful.numel())
        self.branch_slots = _Lists(branch, slot, branches.numel())
        self.branch_node = branches % len(nodes)
        inputs = [torch.arange(node.start, node.start + node.n_units) for node in nodes if not node.units.numel()]
        self.inputs = torch.cat(inputs)[useful.cpu()[torch.cat(inputs)]]

    def batch(self, first: int, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The steps of walks first .. first + n - 1 (both even): numbers of walks, ascending, and flat positions."""
        turns = torch.arange(first // 2, (first + n) // 2)
        steps = [(turns[:0], turns[:0])]
        steps += [(first + 2 * walks, position) for walks, position in self._forward(turns, generator)]
        steps += [(first + 2 * walks + 1, position) for walks, position in self._backward(turns, generator)]
        walk, position = (torch.cat(part) for part in zip(*steps, strict=True))
        order = walk.argsort(stable=True)
        return walk[order], position[order]

    def _forward(self, turns: Tensor, generator: Generator) -> Steps:
        at, slot = self._next(self.inputs[turns % self.inputs.numel()], generator)
        for number, node in enumerate(self.nodes[:-1]):
            if (walks := (at == number).nonzero().flatten()).numel():
                unit, position = node.to_unit(slot[walks], generator)
                if position is not None:
                    yield walks, position
                at[walks], slot[walks] = self._next(node.start + unit, generator)

    def _next(self, units: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        branch = self.branches(units, generator)
        return self.branch_node[branch], self.branch_slots(branch, generator)

    def _backward(self, turns: Tensor, generator: Generator) -> Steps:
        at = torch.full_like(turns, len(self.nodes) - 1)
        unit = turns % self.n_outputs
        for number, node in reversed(list(enumerate(self.nodes))):
            walks = (at == number).nonzero().flatten()
            if walks.numel() and node.units.numel():  # a node of the input leads nowhere
                slot, position = node.to_slot(unit[walks], generator)
                if position is not None:
                    yield walks, position
                source = node.sources(slot, generator)
                at[walks] = self.node_of[source]
                unit[walks] = source - self.starts[at[walks]]
