"""Units (neurons, channels, heads) that can go only together, and the weights that go with them.

One run of the network says which operation reads which tensor (``follow``). Units of two tensors belong together where an
operation hands one on as the other: norms, activations, sums, products, concatenations, flattened maps, depthwise
convolutions. The inputs and outputs of the network stay, and so do all units of a tensor that an operation without a rule
reads, or a layer that is not pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from panning.compaction.analysis import find_constants
from panning.compaction.follow import follow
from panning.compaction.layers import Layer, is_transposed
from panning.compaction.rule import Analysis
from panning.compaction.table import MODULES
from panning.flow import Example, explained
from panning.foundation.modes import as_it_was
from panning.foundation.nests import map_tensors
from panning.foundation.seeding import isolated_torch_rng
from panning.masks.layout import Layout
from panning.scoring.problem import Problem

#: In place of a group: the unit stays.
STAYS = -1


@dataclass(frozen=True, eq=False)
class Side:
    """One axis of a prunable parameter.

    Attributes:
        groups: int [size of the axis]; the group of each unit, or ``STAYS``.
        reads: whether the units are those that the layer reads; else those that it makes.
    """

    parameter: str
    axis: int
    groups: Tensor
    reads: bool


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of units that can go, numbered from 0.

    Attributes:
        n: how many groups.
        sides: of the layers that make or read units of a group. A layer with groups of its own (a depthwise convolution)
            has one side, for what it makes goes together with what it reads.
    """

    layout: Layout
    n: int
    sides: tuple[Side, ...]

    def sums(self, values: Tensor, *, read_only: bool = False) -> Tensor:
        """[n]: the sum of a flat tensor's entries over the weights into and out of each group's units.

        Args:
            read_only: over the weights alone that read the units.
        """
        views, total = self.layout.views(values), values.new_zeros(self.n)
        for side in self.sides:
            if side.reads or not read_only:
                view, some = views[side.parameter], (side.groups != STAYS).to(values.device)
                by_unit = view.movedim(side.axis, 0).flatten(1).sum(1)
                total.index_add_(0, side.groups.to(values.device)[some], by_unit[some])
        return total

    def lowest(self, values: Tensor, of_rest: float) -> Tensor:
        """Flat [n_prunable]: for each weight the lowest of its groups' ``values`` [n]; ``of_rest`` for those of no group."""
        with_rest = torch.cat([values, values.new_tensor([of_rest])])  # STAYS is the last
        result = values.new_full((self.layout.n_prunable,), of_rest)
        views = self.layout.views(result)
        for side in self.sides:
            view = views[side.parameter].movedim(side.axis, 0)
            own = with_rest[side.groups.to(values.device)].view(-1, *[1] * (view.dim() - 1))
            view.copy_(torch.minimum(view, own))
        return result

    def made(self) -> dict[str, Tensor]:
        """By layer, the groups of the units that it makes, ``STAYS`` included."""
        return {side.parameter: side.groups for side in self.sides if not side.reads}


def groups_of(problem: Problem) -> Groups:
    """The groups of units that can go from the network of a problem.

    Raises:
        ForwardError: if the network does not run on the problem's inputs.
    """
    model, example = problem.model, problem.real_example
    inputs = map_tensors(lambda x: x.to(problem.weight.device), example.inputs)  # in the network's own precision
    with torch.no_grad(), as_it_was(model), isolated_torch_rng(0), explained(model, inputs):
        followed = follow(model.eval(), lambda module: type(module) in MODULES, Example(inputs, example.forward))
    at = Analysis(followed, {}, frozenset(followed.whole), in_place=True)
    with torch.no_grad(), isolated_torch_rng(0), torch.device("cpu"):
        find_constants(at)
        ids, stays = _joined(at, set(problem.layout.names))
    sides = [side for node in ids for side in _sides(at, node, ids) if side.parameter in problem.layout.names]
    present = torch.cat([side.groups for side in sides]).unique() if sides else torch.zeros(0, dtype=torch.long)
    present = present[(present != STAYS) & ~torch.isin(present, stays)]
    numbers = torch.full((sum(map(len, ids.values())) + 1,), STAYS)
    numbers[present] = torch.arange(len(present))
    found = [Side(side.parameter, side.axis, numbers[side.groups], side.reads) for side in sides]
    return Groups(problem.layout, len(present), tuple(side for side in found if bool((side.groups != STAYS).any())))


def _joined(at: Analysis, prunable: set[str]) -> tuple[dict[fx.Node, Tensor], Tensor]:
    """For each tensor with units the number of each unit's group, and the numbers of the groups that stay."""
    sizes = {node: len(units) for node, units in at.units.items() if units is not None}
    starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    own = {node: torch.arange(start, start + sizes[node]) for node, start in starts.items()}
    pairs, stays = [torch.zeros(2, 0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
    for node, units in at.units.items():
        readable = [operand for operand in node.all_input_nodes if operand in own]
        if units is None:
            stays += [own[operand] for operand in readable]
            continue
        if isinstance(at.rules[node], Layer) and f"{node.target}.weight" not in prunable:
            stays += [own[node], *(own[operand] for operand in readable)]
        nothing = _nothing(at, node)
        added = at.rules[node].carried(at, node, nothing)
        if any(some is None for some in nothing):  # an operand that stays whole has these units
            stays += [own[node][added], *(own[operand] for operand in readable if added.all())]
        handed_on = _handed_on(at, node, added)
        pairs += [torch.stack([own[node][mine], own[operand][theirs]]) for operand, mine, theirs in handed_on]
    labels = _components(torch.cat(pairs, 1), sum(sizes.values()))
    return {node: labels[numbers] for node, numbers in own.items()}, labels[torch.cat(stays)].unique()


def _components(pairs: Tensor, n: int) -> Tensor:
    """The lowest number of each number's component, where ``pairs`` [2, pairs] of numbers below ``n`` are joined."""
    labels, before = torch.arange(n), None
    while before is None or not torch.equal(labels, before):
        before = labels
        lowest = torch.minimum(*labels[pairs])
        labels = labels.clone()
        for side in pairs:
            labels.scatter_reduce_(0, side, lowest, "amin")
        labels = labels[labels]
    return labels


def _handed_on(at: Analysis, node: fx.Node, added: Tensor) -> Iterator[tuple[fx.Node, Tensor, Tensor]]:
    """Each operand whose units an operation hands on: own units and the operand's, pair by pair.

    Args:
        added: the units that the operation has of itself.
    """
    rule = at.rules[node]
    if isinstance(rule, Layer) and getattr(at.module(node), "groups", 1) == 1:
        return
    for place, operand in enumerate(rule.operands(node)):
        if (x := at.units[operand]) is not None:

            def reached(some: Tensor, place: int = place) -> Tensor:
                has = _nothing(at, node)
                has[place] = some
                return rule.carried(at, node, has) & ~added

            yield operand, *_pairs(reached, len(x))


def _nothing(at: Analysis, node: fx.Node) -> list[Tensor | None]:
    """For ``Rule.carried``: no unit of any operand that has units."""
    known = [at.units[operand] for operand in at.rules[node].operands(node)]
    return [None if x is None else torch.zeros(len(x), dtype=torch.bool) for x in known]


def _pairs(reached: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Own units and the units 0 to n - 1 that reach them: 2 log2(n) questions where each is reached by one, else n."""
    numbers = torch.arange(n)
    digits = range(max(1, (n - 1).bit_length()))
    ones, zeros = (torch.stack([reached((numbers >> digit & 1) == bit) for digit in digits]) for bit in (1, 0))
    if bool((ones & zeros).any()):
        own, theirs = torch.stack([reached(numbers == number) for number in range(n)], 1).nonzero().unbind(1)
        return own, theirs
    own = (ones | zeros)[0].nonzero().squeeze(1)
    return own, sum(ones[digit, own].long() << digit for digit in digits)  # type: ignore[return-value]


def _sides(at: Analysis, node: fx.Node, ids: dict[fx.Node, Tensor]) -> list[Side]:
    """The axes of a layer's weight, with the numbers of their groups; -1 for what has no units."""
    if not isinstance(at.rules.get(node), Layer):
        return []
    module, name = at.module(node), f"{node.target}.weight"
    (operand,) = at.rules[node].operands(node)
    width = at.shape(operand)[at.units[node].axis]  # type: ignore[union-attr]
    reads = ids.get(operand, torch.full((width,), STAYS))
    if getattr(module, "groups", 1) > 1:
        return [Side(name, 0, reads if is_transposed(module) else ids[node], False)]
    made, read = (1, 0) if is_transposed(module) else (0, 1)
    return [Side(name, made, ids[node], False), Side(name, read, reads, True)]
