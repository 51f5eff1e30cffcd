"""The alive test and the report on a mask, with one layer's gates at a time (``alive.connectivity``, ``alive.report``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panning import flow
from panning.alive.connectivity import FEW, ones_beside
from panning.alive.report import MaskReport
from panning.flow.lazy import take_gradients
from panning.foundation.errors import ForwardError
from panning.masks.packed import n_ones
from panning.streaming.layers import Layers


def streamed_report(layers: Layers) -> MaskReport:
    """Measure the mask of ``layers`` in the network: two passes along paths."""
    problem, layout, bits = layers.problem, layers.problem.layout, layers.bits
    n_alive, n_units = [0] * len(layout.names), 0
    shapes = {name: torch.empty(shape, device="meta") for name, shape in zip(layout.names, layout.shapes, strict=True)}
    n_in_all = sum(len(problem.units_of(name, shape)) for name, shape in shapes.items())

    def take(layer: int, grad: Tensor) -> None:
        nonlocal n_units
        alive, kept = grad > 0.5, layers.kept(layer)
        alive = alive if kept is None else alive & kept.view(torch.bool)
        n_alive[layer] = int(alive.count_nonzero())
        n_units += int(problem.units_of(layout.names[layer], alive.view(layout.shapes[layer])).any(1).sum())

    with torch.enable_grad():
        leaves = layers.leaves(layers.ones, torch.float32)
        others = ones_beside(problem.model, layout, torch.float32)
        outputs = problem.example.paths(problem.model, {**others, **leaves}, flow.BOOLEAN, torch.float32)
        reached = sum(int((output > 0).sum()) for output in outputs), sum(output.numel() for output in outputs)
        if outputs:
            starts = [torch.ones_like(output) for output in outputs]
            take_gradients(lambda at: flow.backward(outputs, at, starts), leaves, layers.each(take))
    n_kept = layout.n_prunable if bits is None else sum(map(n_ones, bits))
    collapsed = tuple(name for name, n in zip(layout.names, n_alive, strict=True) if n == 0)
    paths = _log10_paths(layers)
    return MaskReport(
        n_kept, n_kept / layout.n_prunable, sum(n_alive) / layout.n_prunable, n_in_all - n_units, collapsed, n_units,
        None if paths is None else round(paths, 4), *reached,
    )  # fmt: skip


def _log10_paths(layers: Layers) -> float | None:
    problem = layers.problem
    leaves = layers.leaves(lambda layer: layers.ones(layer).double(), torch.float64)
    others = ones_beside(problem.model, problem.layout, torch.float64)
    try:
        with torch.enable_grad():  # by which flows tell what depends on the input
            outputs = problem.example.paths(problem.model, {**others, **leaves}, flow.counting(), torch.float64, FEW)
    except ForwardError:
        return None
    total = sum(float(output.detach().sum()) for output in outputs)
    return math.log10(total) - math.log10(FEW) if 0.0 < total < math.inf else None
