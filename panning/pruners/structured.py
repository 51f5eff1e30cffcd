"""Structured pruning before training: whole units (neurons, channels, heads) go, and ``compact`` takes all of them out.

A gate c_u = 1 multiplies unit u wherever it is read. The gate's gradient is the signed sum of w dL/dw over the weights that
read the unit, so that SNIP's pass gives all of them. SNAP (Verdenius et al. 2020, arXiv 2006.00896) ranks units by the size
of this gradient, 3SP (van Amersfoort et al. 2020, arXiv 2007.00389) by the same for each multiply-add that goes with it.
PreCrop (Cai et al. 2022, arXiv 2203.02549) takes the layers' densities from another method, and any channels.

Units that share an index go together (``panning.compaction.together``). A weight ranks as the worse of the two units that it
connects, so that the best weights are those of whole units. What is left of an exact budget goes to single weights of the
next unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from panning.compaction.cost import multiply_adds
from panning.compaction.together import STAYS, Groups, groups_of
from panning.foundation.errors import DensityError, ModelError
from panning.foundation.progress import Listener, silent
from panning.foundation.seeding import torch_generator
from panning.masks.allocation import allocate
from panning.masks.masks import n_kept_at
from panning.pruners.doubts import equals
from panning.pruners.quotas import RandomQuotas
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.pruners.score_rounds import ScoreRounds
from panning.pruners.told import of_quotas, tell_round
from panning.scoring.indices import snip_signed
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

#: A score [groups] of each group of units, of the signals at a mask and the density of the round; higher is kept. The
#: listener hears of work that takes long.
UnitScore = Callable[[Signals, Groups, float, Listener], Tensor]


def snap(signals: Signals, groups: Groups, density: float, listen: Listener = silent) -> Tensor:
    """|dL/dc_u|: what the loss feels of a unit's gate."""
    return groups.sums(snip_signed(signals).double(), read_only=True).abs()


def three_sp(signals: Signals, groups: Groups, density: float, listen: Listener = silent) -> Tensor:
    """|dL/dc_u| for each multiply-add of the weights into and out of the unit, in the dense network."""
    model, layout = signals.problem.model, signals.problem.layout
    n_ops = multiply_adds(model, signals.problem.real_example, layout).by_layer
    each = layout.per_layer([n / size for n, size in zip(n_ops, layout.sizes, strict=True)], torch.double)
    return snap(signals, groups, density, listen) / groups.sums(each.to(signals.mask.device)).clamp(min=1.0)


@dataclass(frozen=True)
class Shares:
    """A score that keeps of each layer's units the share that another method's mask has of the layer's weights.

    Units are drawn by lot. A layer with the share a of its inputs and b of its outputs has the density a b, so that a unit's
    share is the root of the mean density of the weights into and out of it; one factor for all then meets the budget.

    Attributes:
        quotas: the other method.
        label: what listeners are told that it is.
    """

    quotas: ScoreRounds | RandomQuotas
    label: str

    def __call__(self, signals: Signals, groups: Groups, density: float, listen: Listener = silent) -> Tensor:
        problem, layout = signals.problem, signals.problem.layout
        rounds = Rounds(listen=of_quotas(listen, self.label))
        counts = layout.counts(self.quotas(problem, density, rounds).mask)
        each = layout.per_layer([n / size for n, size in zip(counts, layout.sizes, strict=True)], torch.double)
        shares = (groups.sums(each) / groups.sums(torch.ones_like(each))).sqrt()
        lots = torch.rand(groups.n, generator=torch_generator(problem.seed, "units"), dtype=torch.double)
        families = families_of(groups)
        order, place = families.sorted(lots)
        scores = torch.empty_like(lots)
        scores[order] = shares[order] * families.sizes[order] / (place + 0.5)
        return scores


@dataclass(frozen=True)
class KeepUnits:
    """A pruner that ranks units by a score; the best unit of each layer comes before all others.

    Attributes:
        score: of each group of units.
        indices: what the score reads, which says whether the method needs data.
        ranks_once: the score does not depend on the density.
    """

    score: UnitScore
    n_rounds: int = 1
    indices: tuple[str, ...] = ("snip",)
    ranks_once: bool = True

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        groups, targets = groups_of(problem), rounds.targets(self.n_rounds, "halving", density)
        if not groups.n:
            raise ModelError(
                "No unit of this network can go: those of every layer are inputs or outputs, belong to a layer that is not "
                "pruned, or are read by an operation that panning cannot take apart (docs/compact.md). Take a method that "
                "cuts single weights."
            )
        ranks, left = torch.zeros(groups.n, dtype=torch.double), torch.ones(groups.n, dtype=torch.bool)
        mask = torch.ones_like(problem.weight, dtype=torch.bool)
        signals, history = Signals(problem, mask), []
        for number, target in enumerate(targets):
            signals = signals.at(mask, number)
            scores = self.score(signals, groups, target, rounds.listen).cpu() * (-1.0 if rounds.inverted else 1.0)
            ranks = _ranks(groups, scores, left, ranks, rounds.round_to)
            weights = groups.lowest(ranks.to(mask.device), groups.n)
            least = _least_rank(weights, n_kept_at(target, len(mask)), groups.n)
            before, left, mask = left, ranks >= least, weights >= least
            equal = equals(scores[before], left[before])
            n_equal = 0 if equal is None else int((equal & left[before]).sum())
            history.append({"round": number + 1, "density": target, "units": int(left.sum()), "equal_units": n_equal})
            tell_round(rounds.listen, problem, mask, number + 1, len(targets), {"density": target})
        size = problem.weight.abs().double()
        scores = weights + 0.5 * size / size.max().clamp(min=torch.finfo(size.dtype).tiny)
        return PruneResult(
            problem.layout, _exactly(scores, n_kept_at(density, len(mask)), groups), scores, tuple(history),
            of_units=True, ranks_once=self.ranks_once and len(targets) == 1,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Families:
    """Groups that have equally many units in every layer, so that any of them may stand for another.

    Attributes:
        of: int [groups]; each group's family.
        sizes: [groups]; how many groups its family has.
        widths: int [groups]; the most units that divide those of the group in every layer.
    """

    of: Tensor
    sizes: Tensor
    widths: Tensor

    def sorted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The groups family by family, the highest value first, and the place of each among its own."""
        order = values.argsort(descending=True, stable=True)
        order = order[self.of[order].argsort(stable=True)]
        _, counts = self.of[order].unique_consecutive(return_counts=True)
        return order, torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def families_of(groups: Groups) -> Families:
    made = [torch.bincount(units + 1, minlength=groups.n + 1)[1:] for units in groups.made().values()]
    kinds, of = torch.stack(made).unique(dim=1, return_inverse=True)
    return Families(of, torch.bincount(of)[of], reduce(torch.gcd, kinds)[of])


def _ranks(groups: Groups, scores: Tensor, left: Tensor, before: Tensor, round_to: int) -> Tensor:
    """[groups]: whole numbers, the higher the better; those that went before are below all that are left.

    The best unit of each layer has the highest rank, the number of groups. Units that are kept or cut in blocks share one.
    """
    order = torch.where(left, scores, before).argsort(stable=True)
    order = order[left[order].long().argsort(stable=True)]
    ranks = torch.empty_like(scores)
    ranks[order] = torch.arange(groups.n, dtype=scores.dtype)
    for units in groups.made().values():
        if bool((units != STAYS).all()):
            ranks[units[ranks[units].argmax()]] = groups.n
    if round_to > 1:
        families = families_of(groups)
        order, place = families.sorted(ranks)
        block = round_to // torch.gcd(torch.tensor(round_to), families.widths[order])
        ranks[order] = ranks[order][torch.arange(groups.n) - place % block]
    return ranks


def _least_rank(weights: Tensor, n_kept: int, highest: int) -> int:
    """The lowest rank so that at most ``n_kept`` weights have this one or a higher one; never above the highest."""
    n_from = torch.bincount(weights.long(), minlength=highest + 1).flip(0).cumsum(0)
    return highest + 1 - max(1, int((n_from <= n_kept).sum()))


def _exactly(scores: Tensor, n_kept: int, groups: Groups) -> Tensor:
    if (least := int((scores >= groups.n).sum())) > n_kept:
        n = groups.layout.n_prunable
        raise DensityError(
            "Of whole units, one in each layer stays, and all those that belong to the network's inputs and outputs: "
            f"{least} weights of {n}, more than the {n_kept} asked for. The smallest density is "
            f"{math.ceil(1e6 * least / n) / 1e6:g}."
        )
    return allocate(scores, n_kept, groups.layout)
