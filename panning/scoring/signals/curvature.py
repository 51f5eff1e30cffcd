"""Diagonals of second order (Gollini et al., CPAL 2026, arXiv 2502.11450).

The Fisher diagonal F_j is the mean of g_j^2 over the gradients of single samples. Hutchinson's estimate of the Hessian's
diagonal H_j is the mean of z_j (Hz)_j over vectors z of signs.

NOTE The paper scores in evaluation mode after an epoch of forward passes. Here BatchNorm takes the statistics of the scoring
batch: fixed, for the samples alone; as a part of the network, for the Hessian, as in every other signal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from panning import flow
from panning.foundation.errors import DataError
from panning.foundation.nests import n_samples, samples, told
from panning.foundation.seeding import torch_generator
from panning.scoring.signals.site import Site, gradient

#: Vectors of signs for each estimate, as the paper draws them.
N_DRAWS = 10


def fisher(site: Site) -> dict[str, Tensor]:
    """``fisher_diagonal`` = mean of squared gradients of the samples. As many passes as samples, each of one sample.

    Raises:
        DataError: if the batch has no samples that could be told apart.
    """
    if (n := n_samples(site.batch)) is None:
        raise DataError(
            "The Fisher diagonal takes the samples of the scoring batch one by one, and its tensors do not agree on the "
            f"first axis ({told(site.batch[0])}): take another method, or a batch of one sample a row."
        )
    effective = site.effective()
    statistics: list[tuple[Tensor, Tensor]] = []
    batch_statistics = site.scoring.batch_statistics
    if batch_statistics:
        with torch.no_grad():
            site.outputs(effective, site.batch[0], extra=flow.recording_statistics(statistics))
    total = torch.zeros_like(effective)
    for number in range(n):
        rules: dict[Any, flow.Rule] = flow.replaying_statistics(statistics) if batch_statistics else {}
        loss = site.loss(effective, samples(site.batch, slice(number, number + 1)), extra=rules)
        total += gradient(loss, effective).square()
    return {"fisher_diagonal": total / n}


def hutchinson(site: Site) -> dict[str, Tensor]:
    """``hessian_diagonal`` = mean of z * (Hz) over ``N_DRAWS`` vectors of signs, and ``grad`` on the way."""
    effective = site.effective()
    grad = gradient(site.loss(effective, site.batch), effective, create_graph=True)
    generator = torch_generator(site.problem.seed, "hutchinson", site.round_number)
    draws = (torch.randint(2, effective.shape, generator=generator) * 2 - 1 for _ in range(N_DRAWS))
    return {"hessian_diagonal": diagonal(grad, effective, draws), "grad": grad}


def diagonal(grad: Tensor, at: Tensor, draws: Iterable[Tensor]) -> Tensor:
    """The mean of z * (Hz) over ``draws`` of z, H being the derivative of ``grad`` at ``at``."""
    found = [z * gradient((grad * z).sum(), at, retain_graph=True) for z in (draw.to(at) for draw in draws)]
    return torch.stack(found).mean(0)
