"""PHEW: paths with higher edge weights, by biased random walks (Patil and Dovrolis, ICML 2021,
https://arxiv.org/abs/2010.11354). It reads the initial weights alone.

Even walks go forward from an input unit, odd ones backward from an output unit, start units in turn. A walk goes from unit
a to unit b with a probability proportional to the L1 norm of the kernel between them (uniform where all are zero), and
keeps one weight of this kernel, drawn in proportion to |w|. Walks are drawn until k weights are kept.

Which units a layer connects is found by one pass of the user's own network in which every activation carries the number
of its unit; then thousands of walks at a time go from layer to layer by table look-ups, whatever the size of the maps.

NOTE Where the code departs from the paper, or goes beyond it:
- The last walk may not fit. Its surplus goes, and what is left of the budget is filled with the next visited weights
  between living units. So every weight is alive wherever a set of k alive weights was found, and masks of one seed are
  nested over densities that are further apart than this look-ahead of a few walks.
- A unit is a channel, and a kept weight shifts the map: on tiny maps a walk can lead out of the picture. Taps that only
  read padding are never drawn, and a weight that is dead in spite of its walk counts as not kept.
- Drawing the last rare weights takes forever: once a batch of walks finds few new ones, the rest follows by |w|.
- A branch is drawn uniformly where several lead on (the paper: 1/2 for a shortcut with weights); so are the factors of a
  gate's product. A skip without weights is not walked: a sum's unit is that of the block around which it leads.
- Biases and norms have no masks here.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.alive.repair import all_alive
from panning.foundation.errors import DensityError, NonFiniteError
from panning.foundation.seeding import torch_generator
from panning.masks.allocation import top_k
from panning.masks.masks import n_kept_at
from panning.pruners.phew.unit_graph import trace
from panning.pruners.phew.walks import Walks
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.scoring.problem import Problem

#: Walks of one batch: a five-thousandth of the weights, but no fewer than this.
LEAST_BATCH = 1000
#: Walking ends when less than this fraction of a batch's steps meets a weight that was never met before.
FEW_NEW = 0.005


@dataclass(frozen=True)
class PHEW:
    """A pruner that keeps the weights which random walks visit. It has one round."""

    n_rounds: int = 1
    indices: tuple[str, ...] = ()

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        n_kept = n_kept_at(density, problem.layout.n_prunable)
        if (layer := problem.layout.first_non_finite(problem.weight)) is not None:
            raise NonFiniteError(f"Layer '{layer}' has NaN or infinite weights: no walk can be drawn by them.")
        connectivity = Connectivity.of(problem)
        visits = Visits(problem)
        visits.walk_to(n_kept)
        scores, mask = visits.scores(), visits.whole_walks(n_kept)
        living_places = connectivity.connected(mask)
        free = living_places & ~mask
        missing = n_kept - int(mask.sum())
        if bool(living_places[mask].all()) and int(free.sum()) >= missing:
            mask |= top_k(torch.where(free, scores, -1.0), missing, sizes=problem.layout.sizes)
        else:
            while not visits.exhausted and (n_alive := connectivity.n_alive(visits.mask())) < n_kept:
                visits.walk_to(visits.n_visited + n_kept - n_alive)
            scores = visits.scores()
            mask = top_k(scores, n_kept, sizes=problem.layout.sizes)
            with contextlib.suppress(DensityError):  # so few or so many weights cannot all be alive
                mask = all_alive(connectivity, mask, scores)
        return PruneResult(problem.layout, mask, scores, ({"round": 1, "density": density, "n_walks": visits.n_walks},))


class Visits:
    """The weights in the order in which walks first meet them; it depends on the seed, not on how far one walks."""

    def __init__(self, problem: Problem) -> None:
        self.weight = problem.weight
        self.walks = Walks(*trace(problem))
        self.generator = torch_generator(problem.seed, "phew", "walks")
        self.seen = torch.zeros(problem.layout.n_prunable, dtype=torch.bool)
        self.order = torch.empty(problem.layout.n_prunable, dtype=torch.long)  # the first n_visited are filled in
        self.walk_of = torch.empty_like(self.order)  # the walk that met it, in the same order
        self.n_visited = 0
        self.n_walks = 0
        self.exhausted = False

    def walk_to(self, n_visited: int) -> None:
        """Walk until more than so many weights are met, and one batch on, so that there are others to fill up with."""
        while not self.exhausted and self.n_visited <= n_visited:
            self._walk()
        if not self.exhausted:
            self._walk()

    def _walk(self) -> None:
        n = max(LEAST_BATCH, self.seen.numel() // 5000) // 2 * 2
        walk, position = self.walks.batch(self.n_walks, n, self.generator)
        new = ~self.seen[position]
        n_steps, walk, position = walk.numel(), walk[new], position[new]
        found, number = torch.unique(position, return_inverse=True)
        first = torch.full_like(found, walk.numel()).scatter_reduce_(0, number, torch.arange(walk.numel()), "amin")
        first = first.sort().values
        visited = slice(self.n_visited, self.n_visited + first.numel())
        self.order[visited], self.walk_of[visited] = position[first], walk[first]
        self.n_visited = visited.stop
        self.seen[found] = True
        self.n_walks += n
        self.exhausted = found.numel() <= FEW_NEW * n_steps

    def mask(self, n: int | None = None) -> Tensor:
        """The first ``n`` visited weights, flat bool."""
        mask = torch.zeros_like(self.seen)
        mask[self.order[: self.n_visited if n is None else n]] = True
        return mask.to(self.weight.device)

    def whole_walks(self, n_kept: int) -> Tensor:
        """As many walks as visit at most ``n_kept`` weights, flat bool."""
        if self.n_visited <= n_kept:
            return self.mask()
        return self.mask(int(torch.searchsorted(self.walk_of[: self.n_visited], self.walk_of[n_kept])))

    def scores(self) -> Tensor:
        """Flat: from 2 down to 1 for the visited, the first highest; below 1/2 for all others, by |w|."""
        scores = self.weight.detach().cpu().double().abs()
        scores = scores / (2.0 * scores.max()).clamp(min=1e-300)
        scores[self.order[: self.n_visited]] = 2.0 - torch.arange(self.n_visited, dtype=torch.float64) / max(
            1, self.n_visited
        )
        return scores.to(self.weight.device)
