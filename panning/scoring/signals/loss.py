"""Loss, gradient and Hessian-gradient product on one scoring batch, from one graph."""

from __future__ import annotations

from torch import Tensor

from panning.scoring.signals.site import Site, gradient


def first_order(site: Site) -> dict[str, Tensor]:
    """``grad`` = dL/du, not multiplied by the mask, so that masked weights have one too; ``loss`` = L and ``grad_norm`` =
    |m * grad|. One forward and one backward pass.
    """
    return _derivatives(site, second_order=False)


def second_order(site: Site) -> dict[str, Tensor]:
    """``hessian_grad`` = d/du of 1/2 |m * grad|^2 = H (m * grad), and what ``first_order`` yields, from the same graph."""
    return _derivatives(site, second_order=True)


def _derivatives(site: Site, second_order: bool) -> dict[str, Tensor]:
    effective = site.effective()
    loss = site.loss(effective, site.batch)
    grad = gradient(loss, effective, create_graph=second_order)
    found = {"grad": grad, "loss": loss, "grad_norm": (grad.detach() * site.kept).norm()}
    if second_order:  # a loss that is linear in every weight has a Hessian of 0
        found["hessian_grad"] = gradient(0.5 * (grad * site.kept).square().sum(), effective)
    return found
