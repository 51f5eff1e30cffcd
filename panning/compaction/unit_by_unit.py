"""Calls that are run to see whether they treat every unit by itself: sums, maxima, slices, permutations and the like."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx

from panning.compaction.elementwise import call_on
from panning.compaction.rule import Analysis, Rule
from panning.compaction.trace import same
from panning.compaction.units import Units
from panning.foundation.seeding import isolated_torch_rng


class UnitByUnit(Rule):
    """A function or method of one tensor that gives, for some of its units, the same units of its result.

    ``x.sum(1)`` and ``x[..., 0, :]`` of tokens, ``x.permute(0, 2, 3, 1)`` of images: run on random numbers, once with all
    units and then with parts of them, it shows on which axis of the result they lie. A call that mixes units does not come
    out so, nor one that names how many they are, as ``x.reshape(-1, 64)``.
    """

    def units(self, at: Analysis, node: fx.Node) -> Units | None:
        (operand,) = self.operands(node)
        x, shape = at.units[operand], at.shape(operand)
        if x is None or len(x) < 2 or not at.shape(node):
            return None
        call = partial(call_on, at, node)
        try:
            with isolated_torch_rng(0):
                axis = _axis_of_result(call, torch.randn(shape, dtype=torch.float64), x.axis)
                if axis is None:
                    return None
                view = [-1 if i == x.axis else 1 for i in range(len(shape))]

                def hands_on(values: Tensor) -> bool:
                    """Whether units that have one value everywhere come out with that value."""
                    result = call(values.view(view).expand(shape).clone()).movedim(axis, -1)
                    return result.dtype == values.dtype and same(result, values.expand(result.shape))

                if not hands_on(torch.randn(len(x), dtype=torch.float64)):
                    keeps_zeros = hands_on(torch.zeros(len(x), dtype=torch.float64))
                    x = replace(x.only_where((x.constant == 0) & keeps_zeros), parameter=None)
        except Exception:  # whatever a call raises that is given fewer units than it names
            return None
        moves = axis != x.axis or len(shape) != len(at.shape(node)) or len(operand.users) > 1
        return replace(x, axis=axis, parameter=None if moves else x.parameter)


def _axis_of_result(call: partial[Tensor], values: Tensor, axis: int) -> int | None:
    """Where the units of ``axis`` lie in the result; None if it is no axis, or not one alone."""
    whole, n = call(values), values.shape[axis]
    found = [i for i, size in enumerate(whole.shape) if size == n]
    some = torch.randperm(n) < n // 2
    for part in (some, ~some):
        index = part.nonzero().flatten()
        smaller = call(values.index_select(axis, index))
        found = [i for i in found if same(smaller, whole.index_select(i, index))]
    return found[0] if len(found) == 1 else None
