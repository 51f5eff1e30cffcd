"""NPB: masks that balance nodes and paths (Pham et al., "Towards Data-Agnostic Pruning At Initialization: What Makes a Good
Sparse Mask?", NeurIPS 2023). It reads neither data nor weights.

ERK says how many weights a layer keeps. Layers follow in forward order; with P_i the paths that the masks before lead into
input channel i, M_ij weights in the kernel from channel i to unit j and n weights in all, a layer maximises

    a * A / (C_in + C_out) + (1 - a) * sum of P_i M_ij / B_max + b * K / n,   M_ij <= p,

where A is the number of channels and units with a kept weight, K that of kernels that are not empty, and B_max the largest
possible sum of paths. Places inside a kernel are drawn. At last, weights on no path give way to others in full kernels.

NOTE The paper solves integer programs. Columns are interchangeable, so that only the number of weights in each row counts,
whose gain is concave in steps: the best rows come from a sort, exactly. The groups of a grouped convolution are columns of
their own, and are filled by the same sort.

NOTE P counts the places that a kernel reads: at the rim and under strides fewer than the sum over the map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from panning import flow
from panning.alive.connectivity import Connectivity
from panning.foundation.seeding import torch_generator
from panning.masks.allocation import top_k
from panning.masks.layout import KINDS, by_unit, from_units, prunable_parameters, taps_and_groups
from panning.masks.masks import n_kept_at
from panning.pruners.quotas import QUOTAS
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.scoring.problem import Problem

#: What inputs are filled with, so that the numbers of paths of deep networks fit float64.
START = 2.0**-1000
#: So often weights on no path are replaced; the last ones may cut off others.
REFILLS = 3


@dataclass(frozen=True)
class Balance:
    """What a layer's mask is to balance.

    Attributes:
        alpha: how much nodes count beside paths.
        beta: how much kernels that are not empty count.
        cap: the most weights in a kernel.
    """

    alpha: float = 0.01
    beta: float = 1.0
    cap: int = 9


def row_counts(paths: Tensor, n_kept: int, n_units: int, balance: Balance) -> Tensor:
    """How many weights each input channel keeps in a best mask.

    Args:
        paths: into the channels, float64 [groups, channels of each].
        n_kept: at most groups * channels * n_units * cap.
        n_units: output units of each group.

    Returns:
        int64 [groups, channels].
    """
    if n_kept == 0:
        return torch.zeros(paths.shape, dtype=torch.long)
    n_groups, n_channels = paths.shape
    full = n_units * balance.cap
    best = paths.flatten().sort(descending=True).values
    n_full, rest = divmod(n_kept, full)
    most = float(best[:n_full].sum() * full + (best[n_full] * rest if rest else 0.0))
    per_node = balance.alpha / (paths.numel() + n_groups * n_units)
    # Three segments a row: its first weight, one weight in every other kernel, all others.
    gain = (1.0 - balance.alpha) * paths / most if most > 0 else torch.zeros_like(paths)
    gains = torch.stack([gain + balance.beta / n_kept + per_node, gain + balance.beta / n_kept, gain])
    sizes = torch.tensor([1, n_units - 1, full - n_units]).view(3, 1, 1).expand_as(gains)
    segments = []
    for group in range(n_groups):
        flat, size = gains[:, group].flatten(), sizes[:, group].flatten()
        order = flat.argsort(descending=True, stable=True)
        flat, size, row = flat[order], size[order].double(), (order % n_channels + group * n_channels).double()
        to_new_units = (n_units - (size.cumsum(0) - size)).clamp(min=0).minimum(size)
        segments += [torch.stack([flat + per_node, row, to_new_units]), torch.stack([flat, row, size - to_new_units])]
    gained, row, size = torch.cat(segments, 1)
    order = gained.argsort(descending=True, stable=True)
    taken = (n_kept - (size[order].cumsum(0) - size[order])).clamp(min=0).minimum(size[order])
    counts = torch.zeros(paths.numel(), dtype=torch.float64).index_add_(0, row[order].long(), taken)
    return counts.long().view_as(paths)


def balanced(paths: Tensor, n_kept: int, n_units: int, balance: Balance, columns: Tensor) -> Tensor:
    """A best mask's kept weights in each kernel: int32 [groups, output units, input channels].

    Each row's weights are dealt to one unit after the other, going on where the row before has stopped: so all units have
    some, if there are as many weights.

    Args:
        columns: the place of each output unit in the deal, [groups, units].
    """
    rows = row_counts(paths, n_kept, n_units, balance)
    first = (rows.cumsum(1) - rows).int()
    turn = (columns.int().unsqueeze(2) - first.unsqueeze(1)) % n_units
    return ((turn < (rows % n_units).unsqueeze(1)) + (rows // n_units).unsqueeze(1)).int()


@dataclass(frozen=True)
class NPB:
    """A pruner that balances nodes and paths in every layer. It has one round.

    Attributes:
        quotas: a row of ``QUOTAS``, which says how many weights a layer keeps.
    """

    quotas: str = "erk"
    balance: Balance = field(default_factory=Balance)
    n_rounds: int = 1
    indices: tuple[str, ...] = ()

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        counts = QUOTAS[self.quotas](problem.layout, n_kept_at(density, problem.layout.n_prunable))
        layers = Layers(problem, self.balance, dict(zip(problem.layout.names, counts, strict=True)))
        mask = refilled(problem, layers.mask().to(problem.weight.device))
        return PruneResult(problem.layout, mask, problem.noise + mask, ({"round": 1, "density": density},))


class Layers:
    """The masks of all layers, each made where a pass of ones through the network first comes to it."""

    def __init__(self, problem: Problem, balance: Balance, counts: dict[str, int]) -> None:
        self.problem = problem
        self.balance = balance
        self.counts = counts
        self.kinds = prunable_parameters(problem.model, problem.layout.found)
        self.noise = problem.layout.views(problem.noise)
        self.weights = {
            name: torch.ones(shape, dtype=torch.float64, device=problem.weight.device, requires_grad=True)
            for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True)
        }
        self.names = {id(weight): name for name, weight in self.weights.items()}
        self.masks: dict[str, Tensor] = {}

    def mask(self) -> Tensor:
        """The mask, flat bool."""
        problem = self.problem
        others = {name: torch.ones_like(p, dtype=torch.float64) for name, p in problem.other_parameters().items()}
        with torch.enable_grad():
            problem.example.paths(
                problem.model, {**others, **self.weights}, flow.counting(self._layer), torch.float64, START
            )
        for name, weight in self.weights.items():
            if name not in self.masks:  # no rule has seen it
                self._decide(name, torch.ones_like(weight))
        return problem.layout.flatten(self.masks)

    def _layer(self, function: Any, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        for leaf in _leaves(weight):
            if (name := self.names.get(id(leaf))) is not None and name not in self.masks:
                # By the gradient of the layer's sum every weight knows the paths that come to it, whatever its shape.
                total = function(x.detach(), weight, None, *args, **kwargs).sum()
                (paths,) = torch.autograd.grad(total, leaf, retain_graph=True)
                self._decide(name, paths)
        result: Tensor = function(x, weight, None, *args, **kwargs)
        return result

    def _decide(self, name: str, paths: Tensor) -> None:
        kind, module = self.kinds.get(name, (KINDS[0], self.problem.model))
        n_taps, n_groups = taps_and_groups(kind, module, paths.shape)
        kernels = by_unit(paths.cpu(), kind, module)
        kernels = kernels.reshape(n_groups, len(kernels) // n_groups, -1, n_taps)  # group, unit, channel, tap
        _, n_units, n_channels, _ = kernels.shape
        n_kept = self.counts[name]
        cap = max(min(self.balance.cap, n_taps), math.ceil(n_kept / (n_groups * n_units * n_channels)))
        balance = Balance(self.balance.alpha, self.balance.beta if n_taps > 1 else 0.0, cap)
        into = torch.nan_to_num(kernels.sum(3).amax(1))
        number = self.problem.layout.names.index(name)  # names change under wrappers
        generator = torch_generator(self.problem.seed, "npb", number)
        columns = torch.stack([torch.randperm(n_units, generator=generator) for _ in range(n_groups)])
        kept = balanced(into / into.max().clamp(min=1e-300), n_kept, n_units, balance, columns)
        chosen = torch.zeros(kernels.shape, dtype=torch.bool)
        filled = kept > 0
        noise = by_unit(self.noise[name].cpu(), kind, module).reshape(kernels.shape)[filled]
        chosen[filled] = noise.argsort(1).argsort(1) < kept[filled].unsqueeze(1)
        weight = self.weights[name]
        self.masks[name] = from_units(chosen.flatten(0, 1).flatten(1), weight, kind, module)
        weight.data.copy_(self.masks[name])


def _leaves(weight: Tensor) -> Iterator[Tensor]:
    """The parameters that a weight is made of."""
    if weight.is_leaf and weight.requires_grad:
        yield weight
    waiting: list[Any] = [weight.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        if (node := waiting.pop()) in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        waiting += [source for source, _ in node.next_functions]


def refilled(problem: Problem, mask: Tensor) -> Tensor:
    """As many weights, those on no path replaced.

    Others of the fullest kernels in their layer take their places, then those of the next layers, and in the end any weight
    that can be alive. What finds no place stays.
    """
    connectivity, layout = Connectivity.of(problem), problem.layout
    kernels, noise = Numbers.of(problem).kernels, problem.noise
    for _ in range(REFILLS):
        alive = connectivity.alive(mask)
        if not (n_dead := int(mask.sum()) - int(alive.sum())):
            break
        free = connectivity.connected(alive) & ~alive
        fullness = counted(kernels, alive)[kernels]
        new, carried = alive.clone(), 0
        for part in layout.slices():
            carried += int(mask[part].sum()) - int(alive[part].sum())
            open_here = free[part] & (fullness[part] > 0)
            n_here = min(carried, int(open_here.sum()))
            new[part] |= top_k((fullness[part] + noise[part]).masked_fill(~open_here, -torch.inf), n_here)
            carried -= n_here
        for places in (free & ~new, mask & ~new):  # between kernels, and in the last resort back
            n_here = min(carried, int(places.sum()))
            new |= top_k((fullness + noise).masked_fill(~places, -torch.inf), n_here, sizes=layout.sizes)
            carried -= n_here
        if torch.equal(new, mask) or connectivity.n_alive(new) <= int(mask.sum()) - n_dead:
            break
        mask = new
    return mask


@dataclass(frozen=True, eq=False)
class Numbers:
    """Which unit and which kernel each weight belongs to, flat int64, numbered over the whole network."""

    units: Tensor
    kernels: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Numbers:
        kinds = prunable_parameters(problem.model, problem.layout.found)
        units: dict[str, Tensor] = {}
        kernels: dict[str, Tensor] = {}
        n_units = n_kernels = 0
        for name, weight in problem.layout.views(problem.weight).items():
            kind, module = kinds.get(name, (KINDS[0], problem.model))
            rows = by_unit(torch.empty(weight.shape, device="meta"), kind, module).shape
            unit = torch.arange(rows[0]).view(-1, 1).expand(rows)
            kernel = (torch.arange(rows.numel()) // taps_and_groups(kind, module, weight.shape)[0]).view(rows)
            units[name] = from_units(unit + n_units, weight, kind, module)
            kernels[name] = from_units(kernel + n_kernels, weight, kind, module)
            n_units, n_kernels = n_units + len(unit), n_kernels + int(kernel.max()) + 1
        place = problem.weight.device
        return cls(problem.layout.flatten(units).to(place), problem.layout.flatten(kernels).to(place))


def counted(numbers: Tensor, chosen: Tensor) -> Tensor:
    """How many weights of each number are chosen, float64."""
    counts = torch.zeros(int(numbers.max()) + 1, dtype=torch.float64, device=chosen.device)
    return counts.index_add_(0, numbers, chosen.double())
