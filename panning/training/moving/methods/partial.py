"""Simultaneous training of a network and a part of it (Mohtashami, Jaggi, Stich 2021, arXiv 2106.08895).

Some steps run with the core alone, a part of the network that was chosen beforehand, the others with the whole of it. A step
of the core moves the core's weights only: neither momentum nor weight decay moves the others, whose momentum goes on as if
their gradient were 0. Biases and norms are both networks' and learn at every step. In the end the core, which is what is
shipped, does nearly as well as one trained by itself, and so does the whole network (``TrainResult.whole``; in other loops
``MovingMasks.dense_weights``).

The core is that of the start's mask; the first units of every hidden layer (a narrower network); or, for ``low_rank``, the
best approximation of every hidden layer's matrix by one of that share of its rank, whose steps move all weights, as feedback
does. The last masks nothing: its density is 1, and its steps count as dense ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.scoring.problem import Problem
from panning.training.moving.abilities import TrainsWholeNetwork
from panning.training.moving.method import Clock, Dynamic, Memory, Move, Share, View
from panning.training.moving.selection import keep_units, n_units_at

#: In the memory: of each layer's matrix, for ``low_rank``.
RANKS = "ranks"


class PartiallyMasked(TrainsWholeNetwork, Dynamic):
    """Trains a core and the whole network by turns.

    Attributes:
        core: ``mask``, ``narrow`` or ``low_rank``.
        core_share: of the steps that run with the core.
    """

    keeps_count: ClassVar[bool] = True

    core: Literal["mask", "narrow", "low_rank"] = "mask"
    core_share: Share = 0.5

    @property
    def prunes_units(self) -> bool:
        return self.core != "mask"

    def check(self, clock: Clock, problem: Problem) -> None:
        """Its mask never moves."""

    def acts(self, clock: Clock) -> bool:
        return False

    def begin(self, view: View) -> Move:
        if self.core == "narrow":
            return Move(view.first & narrow(view.problem, view.hidden, view.density))
        if self.core == "mask":
            return Move(view.mask)
        shapes = zip(view.layout.names, view.layout.shapes, strict=True)
        full = {name: min(shape[0], math.prod(shape[1:])) for name, shape in shapes}
        ranks = [max(1, round(view.density * rank)) if name in view.hidden else rank for name, rank in full.items()]
        view.memory[RANKS] = torch.tensor(ranks)
        return Move(torch.ones_like(view.mask))

    def runs_whole(self, clock: Clock) -> bool:
        """The steps of the core lie evenly: step s is one where s * core_share comes past a whole number."""
        return int((clock.step + 1) * self.core_share + 1e-9) == int(clock.step * self.core_share + 1e-9)

    def learns_kept_only(self, clock: Clock) -> bool:
        return self.core != "low_rank" and not self.runs_whole(clock)

    def run_weights(self, weight: Tensor, mask: Tensor, problem: Problem, memory: Memory) -> Tensor:
        if self.core != "low_rank":
            return torch.where(mask, weight, 0.0)
        ranks = memory[RANKS].tolist()
        parts = problem.layout.views(weight).values()
        return torch.cat([low_rank(part, rank).flatten() for part, rank in zip(parts, ranks, strict=True)])

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        return True


def narrow(problem: Problem, hidden: Sequence[str], density: float) -> Tensor:
    """The flat mask of a narrower network: of each hidden layer the first units, the share ``density``, one at least."""
    rows = problem.by_unit(problem.weight)
    kept = {name: torch.arange(len(rows[name])) < n_units_at(density, len(rows[name])) for name in hidden}
    mask = keep_units(problem, torch.ones_like(problem.weight, dtype=torch.bool), kept)
    return Connectivity.of(problem).alive(mask)  # without what reads the units that are gone


def low_rank(weight: Tensor, rank: int) -> Tensor:
    """The nearest tensor whose matrix [outputs, inputs] has at most this rank."""
    left, values, right = torch.linalg.svd(weight.reshape(weight.shape[0], -1).float(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(weight.shape).to(weight.dtype)
