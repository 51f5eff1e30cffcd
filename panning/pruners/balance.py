"""Unit-balanced places: a layer's weights dealt out so that units have as equal numbers of them as can be, on both sides.

Every output unit gets floor(n / units) or ceil(n / units) of a layer's n weights, and every input unit likewise. An index
chooses among all such masks, one unit after the other: each takes its weights from the inputs that have fewest so far, of
these the inputs where the index is highest. Since a unit takes every input of the lower load before one of the higher, loads
never differ by more than one, whatever the index: the balance is exact and the preference greedy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panning.scoring.problem import Problem


def deal(scores: Tensor, n_kept: int, n_groups: int = 1) -> Tensor:
    """The balanced mask of a layer: exactly ``n_kept`` weights, units' numbers on each side differing by at most one.

    The units that get one more are those whose scores sum highest, spread evenly over groups; they choose first.

    Args:
        scores: [output units, input units, taps], higher is preferred; among equals the first.
        n_groups: of a grouped convolution, whose output units lie group after group and see inputs of their own.

    Returns:
        bool, of the same shape.

    Examples:
        >>> import torch
        >>> from panning.pruners.balance import deal
        >>> deal(torch.tensor([[9.0, 8.0, 7.0], [6.0, 1.0, 2.0]]).unsqueeze(2), 3).squeeze(2).int()
        tensor([[1, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
    """
    n_units, n_inputs, _ = scores.shape
    mask = torch.zeros_like(scores, dtype=torch.bool)
    best_taps = scores.argsort(dim=2, descending=True, stable=True)
    loads = torch.zeros(n_groups, n_inputs, dtype=torch.long)
    least, n_more = divmod(n_kept, n_units)
    for place, unit in enumerate(_turns(scores.sum((1, 2)), n_groups).tolist()):
        load = loads[unit * n_groups // n_units]
        everywhere, n_once = divmod(least + (place < n_more), n_inputs)
        mask[unit].scatter_(1, best_taps[unit, :, :everywhere], True)
        load += everywhere
        if n_once:
            tap = best_taps[unit, :, everywhere : everywhere + 1]
            order = scores[unit].gather(1, tap).squeeze(1).argsort(descending=True, stable=True)
            chosen = order[load[order].argsort(stable=True)][:n_once]
            mask[unit, chosen, tap[chosen, 0]] = True
            load[chosen] += 1
    return mask


def dealt(problem: Problem, number: int, scores: Tensor, count: int) -> Tensor:
    """The balanced mask of layer ``number``, flat, by the flat scores of its weights."""
    layout = problem.layout
    name, shape = layout.names[number], layout.shapes[number]
    taps, n_groups = problem.taps_and_groups(name, shape)
    by_units = problem.units_of(name, scores.view(shape).cpu())
    chosen = deal(by_units.reshape(len(by_units), -1, taps), count, n_groups)
    positions = problem.units_of(name, torch.arange(len(scores)).view(shape)).reshape(-1)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[positions] = chosen.reshape(-1)
    return mask.to(scores.device)


def _turns(sums: Tensor, n_groups: int) -> Tensor:
    """The units in the order in which they choose: the best of each group, the second of each, and so on."""
    by_group = sums.view(n_groups, -1)
    order = by_group.argsort(dim=1, descending=True, stable=True)
    return (order + torch.arange(n_groups).unsqueeze(1) * by_group.shape[1]).T.reshape(-1)
