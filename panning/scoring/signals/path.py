"""SynFlow's path sum R: all-ones inputs through the network of absolute weights, in float64, all outputs summed (Tanaka et
al. 2020).

NOTE A norm counts with the magnitude of its weight, as any parameter that is not prunable. Where that is 0, as in the last
norm of every residual block under zero-init (torchvision's ``zero_init_residual``), no path of R leads through the block:
all its weights score 0, tie, and go first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panning import flow
from panning.scoring.signals.site import Site

#: R is linear in the input and in the output's gradient, so both can be scaled down where a deep network overflows; by
#: powers of two, which changes nothing but the exponents of all scores.
SCALES = (0, 250, 500)


def absolute(site: Site) -> dict[str, Tensor]:
    """``path_grad`` = dR/d|u|."""
    return {"path_grad": _path_gradient(site, site.problem.absolute * site.kept)}


def squared(site: Site) -> dict[str, Tensor]:
    """``path_grad_l2`` = dR/d(u^2), R of squared weights (SynFlow-L2, Patil and Dovrolis 2021)."""
    return {"path_grad_l2": _path_gradient(site, (site.problem.absolute * site.kept).square_())}


def by_class(site: Site) -> dict[str, Tensor]:
    """``path_grad_class`` = d/d(u^2) of the sum over k of c_k h_k (PX, Iurada et al., CVPR 2024, arXiv 2406.01820).

    h_k is output k of the network of squared weights on ones. c_k is the sum over the scoring batch of output k of the
    network of ones, with squared inputs and with the gates that the masked network opens with its own weights: how many
    active paths lead to the output. Data act through these numbers alone.
    """
    positive = (site.problem.absolute * site.kept).square_()
    inputs = site.batch[0]
    return {"path_grad_class": _path_gradient(site, positive, _active_paths(site, inputs), flow.first_sample(inputs))}


def _active_paths(site: Site, inputs: Any) -> list[Tensor]:
    """For each output of the network that something leads to, the number of active paths to each of its entries."""
    problem, gates = site.problem, list[Tensor]()
    with torch.no_grad():
        site.outputs(site.effective(), inputs, extra=flow.recording_gates(gates))
    ones = site.mask.double().requires_grad_()
    others = {name: torch.ones_like(p, dtype=torch.float64) for name, p in problem.other_parameters().items()}
    parameters = {**others, **problem.layout.views(ones)}
    example = flow.Example(inputs, problem.forward)
    for scale in SCALES:
        rules = {**flow.POSITIVE_LINEAR, **flow.replaying_gates(gates)}
        squares = example.squares(torch.float64, ones.device, 2.0 ** (-2 * scale))
        found = example.outputs(problem.model, parameters, squares, rules, torch.float64)
        counts = [output.detach() for output in found if output.requires_grad]
        if all(bool(torch.isfinite(count).all()) for count in counts):
            break
    return counts


def _path_gradient(site: Site, positive: Tensor, weights: list[Tensor] | None = None, inputs: Any = None) -> Tensor:
    """dR/d ``positive``.

    Args:
        weights: of the outputs in their sum, for each sample of a batch; None: all are 1.
        inputs: in place of the problem's example.
    """
    problem = site.problem
    positive = positive.requires_grad_()
    others = {name: p.abs().double() for name, p in problem.other_parameters().items()}
    parameters = {**others, **problem.layout.views(positive)}
    example = problem.example if inputs is None else flow.Example(inputs, problem.forward)
    linear = site.scoring.linear_paths
    rules = flow.POSITIVE_LINEAR if linear else flow.TWICE_DIFFERENTIABLE
    for scale in SCALES if linear else SCALES[:1]:
        factor = 2.0**-scale
        outputs = example.paths(problem.model, parameters, rules, torch.float64, factor)
        if not outputs:
            return torch.zeros_like(positive)
        starts = [torch.full_like(output, factor) for output in outputs]
        if weights is not None:
            starts = [start * _like(start, weight) for start, weight in zip(starts, weights, strict=True)]
        (path_grad,) = flow.gradients(outputs, positive, starts)
        if problem.layout.first_non_finite(path_grad) is None:
            break
    return path_grad


def _like(output: Tensor, weights: Tensor) -> Tensor:
    """The weights of a batch's outputs, summed over its samples where ``output`` is that of one sample."""
    samples = [i for i, (n, one) in enumerate(zip(weights.shape, output.shape, strict=True)) if n != one]
    return weights.sum(samples, keepdim=True) if samples else weights
