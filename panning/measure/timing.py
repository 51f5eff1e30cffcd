"""How long networks take beside each other: a training step and an inference of the same batch, in turns in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.compaction.image_format import put_channels_last
from panning.masks.enforce import enforce_masks
from panning.masks.masks import Masks

#: Timed repetitions of each network, after one that warms up.
MIN_REPETITIONS, MAX_REPETITIONS = 3, 30


@dataclass(frozen=True)
class Timing:
    """Medians, in milliseconds.

    Attributes:
        step_ms: forward, backward and an SGD step with momentum, the mask enforced.
        inference_ms: a forward pass in evaluation, without gradients.
        n: repetitions.
    """

    step_ms: float
    inference_ms: float
    n: int


def time_side_by_side(
    networks: Mapping[str, tuple[nn.Module, Masks | None]], inputs: Tensor, labels: Tensor, budget_s: float = 10.0
) -> dict[str, Timing]:
    """Time networks in turns, so that all of them meet the same machine, whatever else it does.

    The networks are trained and change: pass copies.

    Args:
        networks: each with the mask that is enforced while it is trained.
        labels: class indices [batch].
        budget_s: for all repetitions together; at least three are made.
    """
    runs = {name: _Runs(model, masks, inputs, labels) for name, (model, masks) in networks.items()}
    start = time.perf_counter()
    _round(runs)
    room = int(budget_s / (time.perf_counter() - start))
    rounds = [_round(runs) for _ in range(min(max(room, MIN_REPETITIONS), MAX_REPETITIONS))]
    return {
        name: Timing(
            statistics.median(r[name][0] for r in rounds), statistics.median(r[name][1] for r in rounds), len(rounds)
        )
        for name in runs
    }


class _Runs:
    def __init__(self, model: nn.Module, masks: Masks | None, inputs: Tensor, labels: Tensor) -> None:
        images = put_channels_last(model, inputs[:2])  # as in our training
        self.model, self.inputs, self.labels = model, inputs.contiguous(memory_format=images), labels
        # No learning: the weights of a network that diverges would end as NaN, which some kernels are slow with.
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)
        if masks is not None:
            enforce_masks(model, masks, self.optimizer)

    def step(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.inputs), self.labels).backward()
        self.optimizer.step()

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode():
            self.model(self.inputs)


def _round(runs: Mapping[str, _Runs]) -> dict[str, tuple[float, float]]:
    steps = {name: _milliseconds(run.step) for name, run in runs.items()}
    return {name: (steps[name], _milliseconds(run.infer)) for name, run in runs.items()}


def _milliseconds(function: Callable[[], None]) -> float:
    _settle()
    start = time.perf_counter()
    function()
    _settle()
    return 1000.0 * (time.perf_counter() - start)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
