"""Methods that change masks while a network trains: a row in ``DYNAMICS`` makes one visible to the library, the command
line, the configs and the tests.

    >>> from panning.training import DYNAMICS
    >>> DYNAMICS["rigl"].method
    RigL(every=100, until=0.75, fraction=0.3)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from panning.foundation.config import parse_config
from panning.foundation.registry import lookup
from panning.masks.masks import Masks
from panning.pruners import prune_problem
from panning.scoring.problem import Problem
from panning.training.moving.method import Dynamic
from panning.training.moving.methods.cannistraci_hebb import CannistraciHebb
from panning.training.moving.methods.deep_rewiring import DeepRewiring
from panning.training.moving.methods.dpf import DPF
from panning.training.moving.methods.early import Early
from panning.training.moving.methods.evolutionary import SET
from panning.training.moving.methods.free_tickets import EDST
from panning.training.moving.methods.granet import GraNet
from panning.training.moving.methods.iterative import IterativeMagnitude
from panning.training.moving.methods.magnitude import GradualMagnitude
from panning.training.moving.methods.momentum import SparseMomentum
from panning.training.moving.methods.partial import PartiallyMasked
from panning.training.moving.methods.pruning_aware import PruningAware
from panning.training.moving.methods.quantized import Quantized
from panning.training.moving.methods.release import Release
from panning.training.moving.methods.reparameterization import Reparameterization
from panning.training.moving.methods.rigl import RigL
from panning.training.moving.methods.sign_in import SignIn
from panning.training.moving.methods.soft_filter import SoftFilter
from panning.training.moving.methods.surgery import NetworkSurgery


@dataclass(frozen=True)
class DynamicRow:
    """A row.

    Attributes:
        method: with the paper's numbers.
        start: the first mask, where none is given: dense, or random with ERK's layer quotas.
        start_density: of that mask; None takes the final density.
        rivals: rows that it sets out to beat, which a benchmark that holds both compares it with.
    """

    method: Dynamic
    label: str
    paper: str
    start: Literal["dense", "erk"] = "dense"
    start_density: float | None = None
    rivals: tuple[str, ...] = ()


_LIN = "Lin et al. 2020, arXiv 2006.07253"
_LIU = "Liu et al. 2021, arXiv 2106.10404"
_ZHU = "Zhu and Gupta 2017, arXiv 1710.01878"

DYNAMICS: dict[str, DynamicRow] = {
    "dpf": DynamicRow(DPF(), "DPF", _LIN, rivals=("gmp", "rigl")),
    "dpf_filters": DynamicRow(DPF(units=True), "DPF (filters)", _LIN),
    "gmp": DynamicRow(GradualMagnitude(), "GMP", _ZHU),
    "gmp_layerwise": DynamicRow(GradualMagnitude(scope="layerwise"), "GMP (layerwise)", _ZHU),
    "set": DynamicRow(SET(), "SET", "Mocanu et al. 2018, arXiv 1707.04780", "erk"),
    "deep_r": DynamicRow(DeepRewiring(), "DeepR", "Bellec et al. 2018, arXiv 1711.05136", "erk"),
    "dsr": DynamicRow(Reparameterization(), "DSR", "Mostafa and Wang 2019, arXiv 1902.05967", "erk"),
    "snfs": DynamicRow(SparseMomentum(), "SNFS", "Dettmers and Zettlemoyer 2019, arXiv 1907.04840", "erk"),
    "rigl": DynamicRow(RigL(), "RigL", "Evci et al. 2020, arXiv 1911.11134", "erk", rivals=("set",)),
    "rigl_itop": DynamicRow(
        RigL(every=4000, fraction=0.5, until=1.0), "RigL (ITOP)", "Liu et al. 2021, arXiv 2102.02887", "erk",
        rivals=("rigl",),
    ),
    "cht": DynamicRow(CannistraciHebb(), "CHT", "Zhang et al. 2024, ICLR", "erk", rivals=("set",)),
    "chts": DynamicRow(CannistraciHebb(soft=True), "CHTs", "Zhang et al. 2025, NeurIPS", "erk", rivals=("set", "cht")),
    "granet": DynamicRow(GraNet(), "GraNet", _LIU, rivals=("gmp", "rigl")),
    "granet_st": DynamicRow(GraNet(), "GraNet-ST", _LIU, "erk", 0.5),
    "surgery": DynamicRow(NetworkSurgery(), "network surgery", "Guo et al. 2016, arXiv 1608.04493"),
    "soft_filter": DynamicRow(SoftFilter(), "soft filter pruning", "He et al. 2018, arXiv 1808.06866"),
    "imp": DynamicRow(
        IterativeMagnitude(), "IMP (rate rewinding)", "Renda et al. 2020, arXiv 2003.02389"
    ),
    "imp_weights": DynamicRow(
        IterativeMagnitude(rewind="weights"), "IMP (weight rewinding)", "Frankle et al. 2020, arXiv 1912.05671"
    ),
    "imp_fine_tuning": DynamicRow(
        IterativeMagnitude(rewind="none"), "IMP (fine-tuning)", "Han et al. 2015, arXiv 1506.02626"
    ),
    "edst": DynamicRow(EDST(), "EDST ensemble", "Liu et al. 2022, arXiv 2106.14568", "erk"),
    "pat": DynamicRow(PruningAware(), "PaT", "Shen et al. 2022, arXiv 2110.12007"),
    "early": DynamicRow(Early(), "early SynFlow", "Frankle et al. 2021, arXiv 2009.08576"),
    "quantized": DynamicRow(
        Quantized(), "quantised pruning", "Zhang et al. 2021, arXiv 2110.08271"
    ),
    "partial": DynamicRow(
        PartiallyMasked(), "partially masked training", "Mohtashami et al. 2021, arXiv 2106.08895", "erk"
    ),
    "release": DynamicRow(Release(), "release", "Thangarasa et al. 2023, arXiv 2303.10464", "erk"),
    "sign_in": DynamicRow(SignIn(), "Sign-In", "Gadhikar et al. 2025, arXiv 2504.12801", "erk"),
}  # fmt: skip


def first_mask(problem: Problem, method: Dynamic, density: float, row: DynamicRow | None = None) -> Masks:
    """The mask that a training starts from where none is given: the row's own; of a method of no row, random with ERK's
    quotas if it keeps the number of weights, else dense.

    Raises:
        DensityError: if the density cannot be.
    """
    keeps_some = (method.keeps_count or method.releases) and not method.prunes_units
    starts_random = row.start == "erk" if row is not None else keeps_some
    if not starts_random:
        return Masks.dense(problem.layout)
    start = row.start_density if row is not None and row.start_density is not None else density
    return Masks(problem.layout, prune_problem(problem, max(start, density), "erk").mask.cpu())


def make_dynamic(name: str, options: dict[str, Any] | None = None, source: str = "options") -> Dynamic:
    """The method of a row, with other numbers where ``options`` has them.

    Raises:
        UnknownNameError, ConfigError: with the nearest right name, and every error of the options.

    >>> from panning.training import make_dynamic
    >>> make_dynamic("rigl", {"every": 50})
    RigL(every=50, until=0.75, fraction=0.3)
    """
    method = lookup(DYNAMICS, name, "dynamic method").method
    return parse_config(type(method), {**method.model_dump(), **(options or {})}, source) if options else method
