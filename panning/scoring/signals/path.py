"""SynFlow's path sum R: all-ones inputs through the network of absolute weights, in float64, all outputs summed (Tanaka et
al. 2020).

NOTE A norm counts with the magnitude of its weight, as any parameter that is not prunable. Where that is 0, as in the last
norm of every residual block under zero-init (torchvision's ``zero_init_residual``), no path of R leads through the block:
all its weights score 0, tie, and go first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panning import flow
from panning.scoring.signals.site import Site

#: R is linear in the input and in the output's gradient, so both can be scaled down where a deep network overflows; by
#: powers of two, which changes nothing but the exponents of all scores.
SCALES = (0, 250, 500)


def absolute(site: Site) -> dict[str, Tensor]:
    """``path_grad`` = dR/d|u|."""
    return {"path_grad": _path_gradient(site, site.problem.absolute * site.mask)}


def squared(site: Site) -> dict[str, Tensor]:
    """``path_grad_l2`` = dR/d(u^2), R of squared weights (SynFlow-L2, Patil and Dovrolis 2021)."""
    return {"path_grad_l2": _path_gradient(site, (site.problem.absolute * site.mask).square_())}


def _path_gradient(site: Site, positive: Tensor) -> Tensor:
    problem = site.problem
    positive = positive.requires_grad_()
    others = {name: p.abs().double() for name, p in problem.other_parameters().items()}
    parameters = {**others, **problem.layout.views(positive)}
    for scale in SCALES:
        factor = 2.0**-scale
        outputs = problem.example.paths(problem.model, parameters, flow.POSITIVE_LINEAR, torch.float64, factor)
        if not outputs:
            return torch.zeros_like(positive)
        starts = [torch.full_like(output, factor) for output in outputs]
        (path_grad,) = flow.gradients(outputs, positive, starts)
        if problem.layout.first_non_finite(path_grad) is None:
            break
    return path_grad
