"""Indices: formulas that score every weight from the signals at one mask. Higher is kept, everywhere.

All use the dense weight w, so that a masked weight has a score too and may return; whether it may is the pruner's
decision. A new index is a function here, a row in ``INDICES`` and an exact-value test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from panning.signals import Signals


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


def synflow_signed(signals: Signals) -> Tensor:
    """w dR/d|w|: synaptic flow with the weight's sign (Kang et al. 2022)."""
    return signals.weight.double() * signals.path_grad


def synflow(signals: Signals) -> Tensor:
    """|w| dR/d|w|: synaptic flow (Tanaka et al., NeurIPS 2020, eq. 3), in float64."""
    return signals.weight.abs().double() * signals.path_grad


@dataclass(frozen=True)
class Index:
    """A row.

    Attributes:
        formula: the score.
        needs: the signals that it reads.
        signed: scores may be negative; such an index cannot be mixed.
        with_sign: the score before its absolute value was taken, which the Panning authors' normalisation starts from;
            None where the score is what there is.
    """

    formula: Callable[[Signals], Tensor]
    needs: tuple[str, ...]
    paper: str
    signed: bool = False
    with_sign: Callable[[Signals], Tensor] | None = None

    @property
    def needs_data(self) -> bool:
        return bool({"grad", "hessian_grad"} & set(self.needs))


INDICES: dict[str, Index] = {
    "random": Index(random, ("noise",), "control"),
    "magnitude": Index(magnitude, ("weight",), "Han et al. 2015, at initialisation"),
    "snip": Index(snip, ("weight", "grad"), "Lee et al. 2019, arXiv 1810.02340", with_sign=snip_signed),
    "grasp": Index(
        grasp, ("weight", "hessian_grad"), "Wang et al. 2020, arXiv 2002.07376, magnitude form", with_sign=grasp_signed
    ),
    "grasp_signed": Index(grasp_signed, ("weight", "hessian_grad"), "Wang et al. 2020, arXiv 2002.07376", signed=True),
    "synflow": Index(
        synflow, ("weight", "path_grad"), "Tanaka et al. 2020, arXiv 2006.05467", with_sign=synflow_signed
    ),
}
