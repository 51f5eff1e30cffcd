"""Indices: formulas that score every weight from the signals at one mask. Higher is kept, everywhere.

All use the dense weight w, so that a masked weight has a score too and may return; whether it may is the pruner's
decision. A new index is a function here, a row in ``INDICES`` and an exact-value test.

    >>> from panning.scoring.indices import INDICES
    >>> INDICES["snip"].needs, INDICES["grasp"].second_order
    (('weight', 'grad'), True)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panning.foundation.registry import Table
from panning.scoring.signals import PASSES, Signals


def random(signals: Signals) -> Tensor:
    """A uniform draw per weight, fixed for the run: random masks of falling density are nested."""
    return signals.noise


def magnitude(signals: Signals) -> Tensor:
    """|w| at initialisation."""
    return signals.weight.abs()


def snip_signed(signals: Signals) -> Tensor:
    """w g = dL/dm at m = 1, with its sign."""
    return signals.weight * signals.grad


def snip(signals: Signals) -> Tensor:
    """|w g| = |dL/dm|: connection sensitivity (Lee et al., ICLR 2019, eq. 4)."""
    return snip_signed(signals).abs()


def grasp_signed(signals: Signals) -> Tensor:
    """w (Hg): what removing the weight costs the gradient norm (Wang et al., ICLR 2020, eq. 8, negated: high is kept)."""
    return signals.weight * signals.hessian_grad


def grasp(signals: Signals) -> Tensor:
    """|w (Hg)|: GraSP's magnitude form, which Frankle et al. (ICLR 2021) found to prune better than the signed one."""
    return grasp_signed(signals).abs()


def grasp_half_batch_signed(signals: Signals) -> Tensor:
    """w (Hg) with its sign, H of half of the samples and g of all."""
    return signals.weight * signals.hessian_grad_half


def grasp_half_batch(signals: Signals) -> Tensor:
    """|w (Hg)|, H of half of the samples and g of all: less work, and nearer to ``grasp`` than another batch is."""
    return grasp_half_batch_signed(signals).abs()


def synflow_signed(signals: Signals) -> Tensor:
    """w dR/d|w|: synaptic flow with the weight's sign (Kang et al. 2022)."""
    return signals.weight.double() * signals.path_grad


def synflow(signals: Signals) -> Tensor:
    """|w| dR/d|w|: synaptic flow (Tanaka et al., NeurIPS 2020, eq. 3), in float64."""
    return signals.problem.absolute * signals.path_grad


def magnitude_l2norm(signals: Signals) -> Tensor:
    """|w| over the L2 norm of its layer (the global form of jaxpruner)."""
    layers = signals.problem.layout.views(signals.weight).values()
    return torch.cat(
        [(layer.abs() / layer.norm().clamp(min=torch.finfo(layer.dtype).tiny)).flatten() for layer in layers]
    )


def synflow_l2(signals: Signals) -> Tensor:
    """|w| dR/d(w^2), R of squared weights (Patil and Dovrolis, ICML 2021), in float64."""
    return signals.problem.absolute * signals.path_grad_l2


def synflow_l2_squared(signals: Signals) -> Tensor:
    """w^2 dR/d(w^2): SynFlow-L2 without its extra power of the weight, and PX without data; in float64."""
    return signals.problem.absolute.square() * signals.path_grad_l2


def px(signals: Signals) -> Tensor:
    """w^2 dR/d(w^2), each output of R weighted by its active paths (Iurada et al., CVPR 2024), in float64."""
    return signals.problem.absolute.square() * signals.path_grad_class


def ntk_sap(signals: Signals) -> Tensor:
    """|dS/dm| of the neural tangent kernel's spectrum at resampled weights (Wang et al., ICLR 2023); 0 where masked."""
    return signals.ntk_grad.abs()


def prospr(signals: Signals) -> Tensor:
    """|w dL(u_M)/du_0|: the loss after the first steps of training (Alizadeh et al., ICLR 2022)."""
    return (signals.weight * signals.meta_grad).abs()


def prospr_first_order(signals: Signals) -> Tensor:
    """|w dL(u_M)/du_M|: ProsPr without second derivatives."""
    return (signals.weight * signals.meta_grad_first_order).abs()


def magnitude_residual(signals: Signals) -> Tensor:
    """|w| less what its output unit and its input have on average: row mean + column mean - mean of the layer."""
    problem = signals.problem
    found = {}
    for name, rows in problem.by_unit(signals.weight.abs()).items():
        found[name] = rows - rows.mean(1, keepdim=True) - rows.mean(0, keepdim=True) + rows.mean()
    return problem.from_units(found)


def fd(signals: Signals) -> Tensor:
    """F: the diagonal of the empirical Fisher matrix (Gollini et al. 2026)."""
    return signals.fisher_diagonal


def fp(signals: Signals) -> Tensor:
    """w^2 F / 2: what the loss gains without the weight, by the second order term alone (Gollini et al. 2026)."""
    return 0.5 * signals.weight.square() * signals.fisher_diagonal


def fts_signed(signals: Signals) -> Tensor:
    """w g + w^2 F / 2: the Taylor sum of both orders, with its sign."""
    return snip_signed(signals) + fp(signals)


def fts(signals: Signals) -> Tensor:
    """|w g + w^2 F / 2| (Gollini et al. 2026)."""
    return fts_signed(signals).abs()


def hd(signals: Signals) -> Tensor:
    """H: Hutchinson's estimate of the Hessian's diagonal (Gollini et al. 2026)."""
    return signals.hessian_diagonal


def hp(signals: Signals) -> Tensor:
    """w^2 H / 2, with its sign: weights of negative curvature go first (Gollini et al. 2026)."""
    return 0.5 * signals.weight.square() * signals.hessian_diagonal


def hts_signed(signals: Signals) -> Tensor:
    """w g + w^2 H / 2, with its sign."""
    return snip_signed(signals) + hp(signals)


def hts(signals: Signals) -> Tensor:
    """|w g + w^2 H / 2| (Gollini et al. 2026)."""
    return hts_signed(signals).abs()


def gcs(signals: Signals) -> Tensor:
    """|w q_12|: how the weight couples the gradients of two groups of samples (Kang)."""
    return (signals.weight * signals.coupled_grad).abs()


def gcs_group(signals: Signals) -> Tensor:
    """|w| sqrt(sum of q_ab^2) over all pairs of five groups (Kang)."""
    return signals.weight.abs() * signals.coupled_grad_norm


@dataclass(frozen=True)
class Index:
    """A score of every weight.

    Attributes:
        formula: gives the scores, flat [n_prunable].
        needs: the signals that the formula reads.
        signed: whether scores may be negative; such an index cannot be mixed.
        with_sign: gives the scores before their absolute value was taken, from which the Panning authors' normalisation
            starts; None where the index has no sign.
    """

    formula: Callable[[Signals], Tensor]
    needs: tuple[str, ...]
    paper: str
    signed: bool = False
    with_sign: Callable[[Signals], Tensor] | None = None

    @property
    def needs_data(self) -> bool:
        return any(PASSES[need].needs_data for need in self.needs if need in PASSES)

    @property
    def second_order(self) -> bool:
        return any(PASSES[need].second_order for need in self.needs if need in PASSES)


_OWN: dict[str, Index] = {
    "random": Index(random, ("noise",), "control"),
    "magnitude": Index(magnitude, ("weight",), "Han et al. 2015, at initialisation"),
    "snip": Index(snip, ("weight", "grad"), "Lee et al. 2019, arXiv 1810.02340", with_sign=snip_signed),
    "grasp": Index(
        grasp, ("weight", "hessian_grad"), "Wang et al. 2020, arXiv 2002.07376, magnitude form", with_sign=grasp_signed
    ),
    "grasp_signed": Index(grasp_signed, ("weight", "hessian_grad"), "Wang et al. 2020, arXiv 2002.07376", signed=True),
    "grasp_half_batch": Index(
        grasp_half_batch,
        ("weight", "hessian_grad_half"),
        "Wang et al. 2020, arXiv 2002.07376, magnitude form",
        with_sign=grasp_half_batch_signed,
    ),
    "synflow": Index(
        synflow, ("weight", "path_grad"), "Tanaka et al. 2020, arXiv 2006.05467", with_sign=synflow_signed
    ),
    "synflow_l2": Index(synflow_l2, ("weight", "path_grad_l2"), "Patil and Dovrolis 2021, arXiv 2010.11354"),
    "synflow_l2_squared": Index(
        synflow_l2_squared, ("weight", "path_grad_l2"), "PX without data: Iurada et al. 2024, arXiv 2406.01820"
    ),
    "px": Index(px, ("weight", "path_grad_class"), "Iurada et al. 2024, arXiv 2406.01820"),
    "magnitude_l2norm": Index(magnitude_l2norm, ("weight",), "Lee et al. 2023, arXiv 2304.14082 (jaxpruner)"),
    "ntk_sap": Index(ntk_sap, ("ntk_grad",), "Wang et al. 2023, arXiv 2304.02840"),
    "prospr": Index(prospr, ("weight", "meta_grad"), "Alizadeh et al. 2022, arXiv 2202.08132"),
    "prospr_first_order": Index(
        prospr_first_order, ("weight", "meta_grad_first_order"), "Alizadeh et al. 2022, arXiv 2202.08132"
    ),
    "gcs": Index(gcs, ("weight", "coupled_grad"), "Kang, gradient coupled flow"),
    "gcs_group": Index(gcs_group, ("weight", "coupled_grad_norm"), "Kang, gradient coupled flow"),
}
_GOLLINI = "Gollini et al. 2026, arXiv 2502.11450"
_FISHER, _HUTCHINSON = ("weight", "fisher_diagonal"), ("weight", "hessian_diagonal")
_OWN |= {
    "magnitude_residual": Index(
        magnitude_residual, ("weight",), "You Only Prune Once, TMLR submission 7748, 2026", signed=True
    ),
    "fd": Index(fd, _FISHER[1:], _GOLLINI),
    "fp": Index(fp, _FISHER, _GOLLINI),
    "fts": Index(fts, (*_FISHER, "grad"), _GOLLINI, with_sign=fts_signed),
    "hd": Index(hd, _HUTCHINSON[1:], _GOLLINI, signed=True),
    "hp": Index(hp, _HUTCHINSON, _GOLLINI, signed=True),
    "hts": Index(hts, (*_HUTCHINSON, "grad"), _GOLLINI, with_sign=hts_signed),
}

#: The indices, with those that installed packages add (entry points ``panning.indices``).
INDICES = Table(
    _OWN,
    "panning.indices",
    "a panning.scoring.indices.Index",
    lambda found, *_: found if isinstance(found, Index) else None,
)
