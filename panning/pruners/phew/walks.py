"""Random walks over the units of a network, thousands at a time, by table look-ups (see ``pruners.phew``)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from panning.pruners.phew.unit_graph import UnitNode

#: The most sums that are kept of one layer in one direction.
TABLE_ENTRIES = 2**21

Steps = Iterator[tuple[Tensor, Tensor]]  # numbers of walks, and the flat position of a weight for each


def _uniform(n: int, generator: Generator) -> Tensor:
    # A little below 1, so that rounding never leads into the next row.
    return torch.rand(n, generator=generator, dtype=torch.float64) * (1.0 - 1e-9)


class _Draws:
    """A table that draws a column for each row of a matrix, with chances that are proportional to the weights' magnitudes.

    Where all weights of a row are zero, the allowed columns have equal chances. The sums of a row's chances rise from its
    number to the next, so that one search finds the columns of any number of rows. For wide layers the table stores one
    sum a block, and a search recomputes the sums inside the block where it ends.

    Args:
        weights: [matrices, rows, columns]; the rows of all matrices are numbered through.
        allowed: bool [matrices, columns].
    """

    def __init__(self, weights: Tensor, allowed: Tensor) -> None:
        self.weights, self.allowed = weights, allowed
        n_matrices, self.n_rows, self.n_columns = weights.shape
        n = n_matrices * self.n_rows
        self.block = min(self.n_columns, -(-weights.numel() // TABLE_ENTRIES))
        ends = torch.arange(self.block - 1, self.n_columns + self.block - 1, self.block).clamp(max=self.n_columns - 1)
        sums = torch.empty(n, ends.numel(), dtype=torch.float64)
        self.uniform = torch.empty(n, 1, dtype=torch.bool)
        for rows in torch.arange(n).split(max(1, TABLE_ENTRIES // self.n_columns)):
            chances, allowed = self._chances(rows, slice(None))
            self.uniform[rows] = uniform = ~chances.any(1, keepdim=True)
            sums[rows] = chances.add_(allowed & uniform).cumsum_(1)[:, ends]
        self.totals = sums[:, -1:].clamp(min=1e-300)
        self.rising = (sums / self.totals).add_(torch.arange(n).unsqueeze(1))
        self.sums = sums if self.block > 1 else None

    def __call__(self, rows: Tensor, generator: Generator) -> Tensor:
        sought = rows + _uniform(rows.numel(), generator)
        block = torch.searchsorted(self.rising.view(-1), sought, right=True) - rows * self.rising.shape[1]
        if self.sums is None:
            return block
        columns = block.unsqueeze(1) * self.block + torch.arange(self.block)
        chances, allowed = self._chances(rows.unsqueeze(1), columns.clamp(max=self.n_columns - 1))
        chances.add_(allowed & self.uniform[rows]).mul_(columns < self.n_columns)
        chances[:, 0] += torch.where(block > 0, self.sums[rows, block - 1], 0.0)
        rising = (chances.cumsum_(1) / self.totals[rows]).add_(rows.unsqueeze(1))
        return columns[:, 0] + (rising <= sought.unsqueeze(1)).sum(1)

    def _chances(self, rows: Tensor, columns: Tensor | slice) -> tuple[Tensor, Tensor]:
        """What columns of some rows weigh, float64 [rows, columns], and whether they are allowed."""
        matrix = rows // self.n_rows
        allowed = self.allowed[matrix, columns]
        return self.weights[matrix, rows % self.n_rows, columns].abs().double().mul_(allowed), allowed


class _Lists:
    """A table that draws a value of a list, uniformly; the lists are given as pairs (list, value)."""

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
        fed = torch.zeros(n_groups, n_inputs, dtype=torch.bool)
        fed.view(-1)[self.slots] = True
        # One tap's norm is its weight: the widest layers, which are linear, need no copy.
        one_tap = layer.taps.numel() == 1 and bool(layer.taps)
        norms = layer.weight[..., 0] if one_tap else (layer.weight.abs() * layer.taps).sum(-1)
        self.forward = _Draws(norms.transpose(1, 2), wanted.cpu().view(n_groups, n_outputs))
        self.backward = _Draws(norms, fed)

    def to_unit(self, slots: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Units of this node from slots, and the flat positions of the weights on the way, if they have any."""
        if self.layer is None:
            return slots, None
        _, n_outputs, n_inputs, _ = self.layer.weight.shape
        group, output = slots // n_inputs, self.forward(slots, generator)
        return group * n_outputs + output, self._tap(group, output, slots % n_inputs, generator)

    def to_slot(self, units: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Slots of this node from units, and the flat positions of the weights on the way, if they have any."""
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
        kernels = layer.weight[group, outputs, inputs].unsqueeze(0)
        taps = _Draws(kernels, layer.taps.unsqueeze(0))(torch.arange(kernels.shape[1]), generator)
        return layer.positions[group, outputs, inputs, taps]


class Walks:
    """A network's units as tables, from which batches of walks are drawn."""

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
