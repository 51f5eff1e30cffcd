"""PaT, when to prune (Shen et al. 2022, arXiv 2110.12007): the dense network says itself when its structure is settled.

After each epoch all hidden units are ranked, and n_l of layer l would stay. The early pruning indicator is

    EPI_t = mean over the r epochs before of Psi(N_t, N_s),  Psi(N, N') = 1 - mean over l of |n_l - n'_l| / (n_l + n'_l)

The units are pruned once, after the first epoch whose EPI reaches ``threshold`` and is no lower than the last ones.

NOTE: scores are divided by the root mean square of their layer, so that layers of other widths and scales compare. Where
the indicator has not settled by the share ``latest`` of the training, the units are pruned all the same; the paper goes on.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.masks.allocation import top_k
from panning.scoring.problem import Problem
from panning.training.moving.abilities import LooksAtGradients
from panning.training.moving.method import Clock, Count, Dynamic, Memory, Move, Share, View
from panning.training.moving.selection import keep_units, n_units_at

#: In the memory: n_l of each epoch [epochs, layers], the indicator of each [epochs], and whether it has pruned.
COUNTS, INDICATOR, DONE = "unit counts", "early pruning indicator", "pruned"


class PruningAware(LooksAtGradients, Dynamic):
    """Prunes whole units; the density is the share of all hidden units that stay.

    Attributes:
        criterion: of a unit: the norm of its weights, or the square of the sum of weight times gradient.
        threshold: of the indicator; 0.983 is the paper's for magnitudes, 0.944 for gradients.
        n_past: how many epochs before are compared with.
        latest: share of the training after which the units are pruned in any case.
    """

    counts_epochs: ClassVar[bool] = True

    criterion: Literal["magnitude", "gradient"] = "magnitude"
    threshold: Share = 0.983
    n_past: Count = 5
    latest: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @property
    def wants_gradient(self) -> bool:
        return self.criterion == "gradient"

    @property
    def prunes_units(self) -> bool:
        return True

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) and clock.step <= self._latest(clock)

    def check(self, clock: Clock, problem: Problem) -> None:
        if self._latest(clock) >= clock.n_steps:
            raise MaskError(
                "PaT decides at the end of an epoch, and this training has one: train longer, or with every=STEPS."
            )

    def _latest(self, clock: Clock) -> int:
        """The last end of an epoch at which pruning is decided; there is one at least."""
        period = self.every or clock.epoch
        return max(period, int(self.latest * clock.n_steps) // period * period)

    def begin(self, view: View) -> Move:
        view.memory[COUNTS] = torch.zeros(0, len(view.hidden), dtype=torch.float64)
        view.memory[INDICATOR] = torch.zeros(0, dtype=torch.float64)
        view.memory[DONE] = torch.tensor(False)
        return Move(view.mask)

    def move(self, view: View) -> Move:
        if bool(view.memory[DONE]):
            return Move(view.mask)
        kept = self._kept_units(view)
        counts = torch.tensor([float(units.sum()) for units in kept.values()], dtype=torch.float64)
        past, before = view.memory[COUNTS], view.memory[INDICATOR]
        now = indicator(counts, past[-self.n_past :]) if len(past) >= self.n_past else 0.0
        settled = now >= self.threshold and bool((now >= before[-self.n_past :]).all())
        view.memory[COUNTS] = torch.cat([past, counts.unsqueeze(0)])
        view.memory[INDICATOR] = torch.cat([before, torch.tensor([now], dtype=torch.float64)])
        if not settled and view.clock.step < self._latest(view.clock):
            return Move(view.mask)
        view.memory[DONE] = torch.tensor(True)
        return Move(keep_units(view.problem, view.mask, kept))

    def _kept_units(self, view: View) -> dict[str, Tensor]:
        """Which units of each hidden layer are among the best of all; of each layer one at least."""
        if self.criterion == "gradient":
            assert view.grad is not None
            products = view.problem.by_unit(view.weight * view.grad)
            raw = [products[name].sum(1).square() for name in view.hidden]
        else:
            weights = view.problem.by_unit(view.weight)
            raw = [weights[name].norm(dim=1) for name in view.hidden]
        scores = [score / score.square().mean().sqrt().clamp(min=1e-30) for score in raw]
        together = torch.cat(scores)
        chosen = top_k(together, n_units_at(view.density, len(together)))
        parts = chosen.split([len(score) for score in scores])
        return {
            name: part if part.any() else top_k(score, 1)
            for name, part, score in zip(view.hidden, parts, scores, strict=True)
        }

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        return bool(memory[DONE])


def indicator(counts: Tensor, past: Tensor) -> float:
    """EPI of layer counts [layers] against those of earlier epochs [epochs, layers]."""
    distance = (counts - past).abs() / (counts + past)
    return float((1.0 - distance.mean(1)).mean())
