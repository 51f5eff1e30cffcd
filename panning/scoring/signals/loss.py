"""Loss, gradient and Hessian-gradient product on one scoring batch, from one graph."""

from __future__ import annotations

from torch import Tensor

from panning.foundation.nests import n_samples
from panning.scoring.signals.coupled import split_by_label
from panning.scoring.signals.site import Site, gradient


def first_order(site: Site) -> dict[str, Tensor]:
    """``grad`` = dL/du, not multiplied by the mask, so that masked weights have one too; ``loss`` = L and ``grad_norm`` =
    |m * grad|. One forward and one backward pass.
    """
    return _derivatives(site, second_order=False)


def second_order(site: Site) -> dict[str, Tensor]:
    """``hessian_grad`` = d/du of 1/2 |m * grad|^2 = H (m * grad), and what ``first_order`` yields, from the same graph."""
    return _derivatives(site, second_order=True)


def second_order_of_half(site: Site) -> dict[str, Tensor]:
    """``hessian_grad_half`` = H (m * grad), H the Hessian of the loss on every second sample of a label, and what
    ``first_order`` yields, of all samples.

    The gradient that is multiplied is that of all samples. BatchNorm takes the statistics of the samples of each pass. A
    batch that cannot be divided is taken whole.
    """
    found = _derivatives(site, second_order=False)
    n = n_samples(site.batch)
    half = site.batch if n is None or n < 2 else split_by_label(site.batch, 2)[0]
    effective = site.effective()
    grad = gradient(site.loss(effective, half), effective, create_graph=True)
    found["hessian_grad_half"] = gradient((grad * found["grad"].detach() * site.kept).sum(), effective)
    return found


def _derivatives(site: Site, second_order: bool) -> dict[str, Tensor]:
    effective = site.effective()
    loss = site.loss(effective, site.batch)
    grad = gradient(loss, effective, create_graph=second_order)
    found = {"grad": grad, "loss": loss, "grad_norm": (grad.detach() * site.kept).norm()}
    if second_order:  # a loss that is linear in every weight has a Hessian of 0
        found["hessian_grad"] = gradient(0.5 * (grad * site.kept).square().sum(), effective)
    return found
