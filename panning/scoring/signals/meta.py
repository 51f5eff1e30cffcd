"""ProsPr: the gradient of the loss after a few steps of training, with respect to the mask before them.

Alizadeh et al., ICLR 2022, arXiv 2202.08132: u_0 = m * w, u_{i+1} = u_i - lr v_i with v_i = momentum v_{i-1} + dL(u_i; B_i),
and the score |dL(u_M; B_M)/dm| = |w * dL(u_M)/du_0|. All other parameters are trained along. With M = 0 this is SNIP.
NOTE A masked weight stays where it is during the inner steps; the paper scores dense networks only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panning import flow
from panning.scoring.signals.site import Site, check_twice_differentiable

#: M and the rate of the inner steps: the authors' defaults. Batch i of a round's M + 1 is batch round * (M + 1) + i.
N_STEPS = 3
LEARNING_RATE = 0.1
MOMENTUM = 0.0


def full(site: Site) -> dict[str, Tensor]:
    """``meta_grad`` = dL(u_M)/du_0 through all inner steps."""
    return {"meta_grad": meta_gradient(site, through_steps=True)}


def first_order(site: Site) -> dict[str, Tensor]:
    """``meta_grad_first_order`` = dL(u_M)/du_M, taken as if the steps did not depend on where they began."""
    return {"meta_grad_first_order": meta_gradient(site, through_steps=False)}


def meta_gradient(
    site: Site, *, through_steps: bool, n_steps: int = N_STEPS, learning_rate: float = LEARNING_RATE,
    momentum: float = MOMENTUM,
) -> Tensor:  # fmt: skip
    """dL(u_M)/du_0, flat."""
    start = site.effective()
    others = {name: p.requires_grad_() for name, p in site.problem.other_parameters().items()}
    names = list(others)
    moving = [start, *others.values()]
    velocity = [torch.zeros_like(value) for value in moving]
    for step in range(n_steps + 1):
        batch = site.batch_at(site.round_number * (n_steps + 1) + step)
        loss = site.loss(moving[0], batch, dict(zip(names, moving[1:], strict=True)))
        if step == n_steps:
            break
        grads = flow.gradients(loss, moving, create_graph=through_steps)
        if through_steps:
            check_twice_differentiable(*grads)
        grads = (grads[0] * site.kept, *grads[1:])
        velocity = [momentum * v + g for v, g in zip(velocity, grads, strict=True)]
        moving = [value - learning_rate * v for value, v in zip(moving, velocity, strict=True)]
        if not through_steps:
            moving = [value.detach().requires_grad_() for value in moving]
    (meta,) = flow.gradients(loss, start if through_steps else moving[0])
    return meta
