"""Pruners: problem and density -> ``PruneResult``. A row in ``PRUNERS`` makes one visible to the library, the command
line, the configs and the tests; ``prune_problem`` runs any of them, with a control or all-alive around it where asked.

    >>> from panning.pruners import PRUNERS
    >>> PRUNERS["snip"].label, PRUNERS["snip"].needs_data, PRUNERS["iter_snip"].pruner.n_rounds
    ('SNIP', True, 60)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.alive.repair import all_alive
from panning.foundation.errors import ForwardError, MaskError, NonFiniteError, PanningError
from panning.foundation.modes import unwritten
from panning.foundation.registry import Table, lookup, origins
from panning.masks.masks import n_kept_at
from panning.pruners.controls import CONTROLS, Control
from panning.pruners.phew.method import PHEW
from panning.pruners.quotas import RandomQuotas
from panning.pruners.rounds import (
    METHODS_OWN,
    PruneResult,
    Round,
    RoundAction,
    Rounds,
    make_all_alive,
    prune_round,
)
from panning.pruners.score_rounds import RELEASE_TEMPERATURE, ScoreRounds
from panning.pruners.staged import StagedPanning
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem, Scoring

__all__ = [
    "CONTROLS", "METHODS_OWN", "PRUNERS", "PruneResult", "Pruner", "PrunerRow", "Round", "RoundAction", "Rounds",
    "all_alive", "make_all_alive", "plugins_of", "prune_problem", "prune_round", "pruner_row", "variant_of",
]  # fmt: skip


@runtime_checkable
class Pruner(Protocol):
    """A method that prunes before training. A method without rounds ignores ``rounds``.

    A call gives a ``PruneResult`` with exactly ``n_kept_at(density, problem.layout.n_prunable)`` weights and leaves the
    problem as it was. ``panning.testing.PrunerContract`` says what else holds for every method.

    Attributes:
        indices: the rows of ``INDICES`` that the method scores by; they say whether it needs data.
        n_rounds: the method's own number of rounds.
    """

    @property
    def indices(self) -> tuple[str, ...]: ...

    @property
    def n_rounds(self) -> int: ...

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult: ...


@dataclass(frozen=True)
class PrunerRow:
    """A method that prunes before training, in the form of the paper and in that of the authors' code.

    Attributes:
        label: the name that tables show.
        released: the method as its authors' code has it, where the code departs from the paper's text.
        departure: how the code departs, and what ``released`` leaves out; without ``released``, why there is none.
    """

    pruner: Pruner
    label: str
    paper: str
    released: Pruner | None = None
    departure: str = ""

    def name_of(self, method: str | Pruner) -> str:
        """What messages and manifests call the method that was asked for by this row."""
        return method if isinstance(method, str) else self.label

    @property
    def needs_data(self) -> bool:
        """Whether the method scores with a loss, on inputs and their targets."""
        return any(INDICES[name].needs_data for name in self.pruner.indices)

    @property
    def second_order(self) -> bool:
        """Whether the method differentiates a gradient."""
        return any(INDICES[name].second_order for name in self.pruner.indices)


def mean_true_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean logit of the true class: the loss of FORCE's release, which takes no log-softmax."""
    return F.nll_loss(logits, targets)


_DE_JORGE = "de Jorge et al. 2021, arXiv 2006.09081"
_SU = "Su et al. 2020, arXiv 2009.11094"
_KANG = "Kang et al. 2022, arXiv 2209.13378"
_ALIZADEH = "Alizadeh et al. 2022, arXiv 2202.08132"
_SAME = "all inner steps and the outer loss see one batch"
_NLL = (
    "the loss is minus the true class's logit, without log-softmax, whatever loss is passed; one batch a round, where the "
    "release averages up to 40"
)
_RUNNING = (
    "BatchNorm by its running statistics, and that alone: the release also masks biases, and scores another draw of the "
    "weights than it trains"
)
_REDRAWN = (
    "not offered: the release scores a copy whose linear layers are drawn anew (Xavier-normal), here the classifier is the "
    "network's own"
)
_OTHER_PX = (
    "not offered: the code has had three forms, none of them the paper's; the last leaves layers named fc as they are and "
    "normalises images of ones by their own statistics"
)

_AT_200 = Scoring(temperature=RELEASE_TEMPERATURE)
_ONE_BATCH = Scoring(same_batch=True)

_OWN: dict[str, PrunerRow] = {
    "random": PrunerRow(RandomQuotas("uniform"), "random (uniform)", "control"),
    "uniform_plus": PrunerRow(
        RandomQuotas("uniform_plus"), "random (uniform+)", "Gale et al. 2019, arXiv 1902.09574"
    ),
    "erk": PrunerRow(RandomQuotas("erk"), "random (ERK)", "Evci et al. 2020, arXiv 1911.11134"),
    "igq": PrunerRow(RandomQuotas("igq"), "random (IGQ)", "Vysogorets and Kempe 2023, arXiv 2107.02306"),
    "smart_ratio": PrunerRow(RandomQuotas("smart_ratio"), "random (smart ratio)", _SU),
    "smart_ratio_vgg": PrunerRow(RandomQuotas("smart_ratio_vgg"), "random (smart ratio for VGG)", _SU),
    "magnitude": PrunerRow(ScoreRounds({"magnitude": 1.0}), "magnitude", "Han et al. 2015, at initialisation"),
    "magnitude_l2norm": PrunerRow(
        ScoreRounds({"magnitude_l2norm": 1.0}), "magnitude (layer-normalised)", "Lee et al. 2023, arXiv 2304.14082"
    ),
    "snip": PrunerRow(
        ScoreRounds({"snip": 1.0}), "SNIP", "Lee et al. 2019, arXiv 1810.02340",
        ScoreRounds({"snip": 1.0}, scoring=Scoring(batch_statistics=False)), _RUNNING,
    ),
    "iter_snip": PrunerRow(
        ScoreRounds({"snip": 1.0}, n_rounds=60), "iterative SNIP", _DE_JORGE,
        ScoreRounds({"snip": 1.0}, n_rounds=60, scoring=Scoring(loss=mean_true_logit)), _NLL,
    ),
    "force": PrunerRow(
        ScoreRounds({"snip": 1.0}, n_rounds=60, revive=True), "FORCE", _DE_JORGE,
        ScoreRounds({"snip": 1.0}, n_rounds=60, revive=True, scoring=Scoring(loss=mean_true_logit)), _NLL,
    ),
    "grasp": PrunerRow(
        ScoreRounds({"grasp_signed": 1.0}, scoring=_AT_200), "GraSP",
        "Wang et al. 2020, arXiv 2002.07376", departure=_REDRAWN,
    ),
    "grasp_magnitude": PrunerRow(
        ScoreRounds({"grasp": 1.0}, scoring=_AT_200), "GraSP (magnitude)",
        "Frankle et al. 2021, arXiv 2009.08576",
    ),
    "synflow": PrunerRow(
        ScoreRounds({"synflow": 1.0}, n_rounds=100), "SynFlow", "Tanaka et al. 2020, arXiv 2006.05467"
    ),
    "synflow_l2": PrunerRow(
        ScoreRounds({"synflow_l2": 1.0}, n_rounds=100), "SynFlow-L2", "Patil and Dovrolis 2021, arXiv 2010.11354"
    ),
    "synflow_l2_squared": PrunerRow(
        ScoreRounds({"synflow_l2_squared": 1.0}, n_rounds=100), "SynFlow-L2 (squared)",
        "PX without data: Iurada et al. 2024, arXiv 2406.01820",
    ),
    "px": PrunerRow(
        ScoreRounds({"px": 1.0}, n_rounds=100, scoring=_ONE_BATCH), "PX", "Iurada et al. 2024, arXiv 2406.01820",
        departure=_OTHER_PX,
    ),
    "phew": PrunerRow(PHEW(), "PHEW", "Patil and Dovrolis 2021, arXiv 2010.11354"),
    "ntk_sap": PrunerRow(
        ScoreRounds({"ntk_sap": 1.0}, n_rounds=20), "NTK-SAP", "Wang et al. 2023, arXiv 2304.02840"
    ),
    "prospr": PrunerRow(
        ScoreRounds({"prospr": 1.0}), "ProsPr", _ALIZADEH, ScoreRounds({"prospr": 1.0}, scoring=_ONE_BATCH), _SAME,
    ),
    "prospr_first_order": PrunerRow(
        ScoreRounds({"prospr_first_order": 1.0}), "ProsPr (first order)", _ALIZADEH,
        ScoreRounds({"prospr_first_order": 1.0}, scoring=_ONE_BATCH), _SAME,
    ),
    "gcs": PrunerRow(
        ScoreRounds({"gcs": 1.0}, scoring=_AT_200), "GCS", "Kang, gradient coupled flow",
        departure=_REDRAWN,
    ),
    "gcs_group": PrunerRow(
        ScoreRounds({"gcs_group": 1.0}, scoring=_AT_200), "GCS-Group", "Kang, gradient coupled flow",
        departure=_REDRAWN,
    ),
    "panning_staged": PrunerRow(StagedPanning("sum"), "staged Panning", _KANG),
    "panning_staged_product": PrunerRow(StagedPanning("product"), "staged Panning (product)", _KANG),
}  # fmt: skip


def _added(found: Any, name: str, package: str) -> PrunerRow:
    """The row of an installed package, which may be a bare pruner."""
    row = found if isinstance(found, PrunerRow) else replace(pruner_row(found), label=name, paper=package)
    if row.label in {own.label for own in _OWN.values()}:
        raise PanningError(f"its label '{row.label}' is one of panning's own, and tables would mix the two up.")
    return row


#: The methods, with those that installed packages add (entry points ``panning.methods``).
PRUNERS = Table(_OWN, "panning.methods", "a panning.pruners.Pruner or PrunerRow", _added)


def pruner_row(method: str | Pruner) -> PrunerRow:
    """The row of a name, or a row around a pruner of the caller's own.

    Raises:
        UnknownNameError: for a name that is not in ``PRUNERS``, or an object whose ``indices`` are not in ``INDICES``.
        MaskError: for an object that is no pruner.
    """
    if isinstance(method, str):
        return lookup(PRUNERS, method, "method")
    if isinstance(method, type) or not isinstance(method, Pruner):
        raise MaskError(
            f"method is {f'the class {method.__name__}' if isinstance(method, type) else f'a {type(method).__name__}'}; "
            "pass a name of panning.pruners.PRUNERS, or an object that is called with (problem, density, rounds) and has "
            "the attributes indices and n_rounds (panning.pruners.Pruner)."
        )
    if not isinstance(method.indices, Sequence) or isinstance(method.indices, str) or type(method.n_rounds) is not int:
        raise MaskError(
            f"{type(method).__name__} has indices {method.indices!r} and n_rounds {method.n_rounds!r}, but must have a "
            "tuple of names of panning.scoring.INDICES, which may be empty, and a whole number."
        )
    for name in method.indices:
        lookup(INDICES, name, "index")
    return PrunerRow(method, type(method).__name__, "the caller's own")


def plugins_of(method: str | Pruner) -> dict[str, str]:
    """The installed packages that a method and its indices come from (``registry.origins``)."""
    names = [method] if isinstance(method, str) else []
    return origins((PRUNERS, names), (INDICES, pruner_row(method).pruner.indices))


def variant_of(method: str | Pruner, released: bool, control: str | None) -> tuple[Pruner, Control | None]:
    """A method's pruner, in the form that is asked for, and the control around it.

    Raises:
        UnknownNameError, PanningError: if there is no such method, form or control of it.
    """
    row = pruner_row(method)
    name = row.name_of(method)
    if released and row.released is None:
        known = ", ".join(known for known, other in PRUNERS.items() if other.released is not None)
        why = f" ({row.departure})" if row.departure else ""
        raise PanningError(f"Method '{name}' has no released form{why}; these have: {known}.")
    controlled = lookup(CONTROLS, control, "control") if control is not None else None
    if controlled is not None and controlled.of_scores and not row.pruner.indices:
        scored = ", ".join(known for known, other in PRUNERS.items() if other.pruner.indices)
        raise PanningError(
            f"Control '{control}' turns scores round, and method '{name}' draws at random; these have scores: {scored}."
        )
    pruner = row.released if released and row.released is not None else row.pruner
    return pruner, controlled


def prune_problem(
    problem: Problem,
    density: float,
    method: str | Pruner,
    *,
    all_alive_weights: bool = False,
    rounds: Rounds = METHODS_OWN,
    released: bool = False,
    control: str | None = None,
) -> PruneResult:
    """Prune with a row of ``PRUNERS``, or with a pruner of the caller's own.

    Args:
        all_alive_weights: give the budget of dead weights back to the best-ranked that can be alive.
        released: the method as its authors' released code has it.
        control: a row of ``CONTROLS`` around the method.

    Raises:
        UnknownNameError, DensityError, DataError, NonFiniteError: as the method and its input deserve.
        MaskError: if an object that is no pruner was given, or its result has the wrong type, shape or number of weights.
    """
    problem = problem.where_scored
    pruner, controlled = variant_of(method, released, control)
    n_kept = n_kept_at(density, problem.layout.n_prunable)
    rounds.targets(pruner.n_rounds, "exponential", density)  # a wrong number or schedule is refused by every method
    Connectivity.of(problem).check_reachable(n_kept)
    row = pruner_row(method)
    name = row.name_of(method)
    if row.needs_data:
        problem.source(f"Method '{name}'")  # before any work

    def prune(problem: Problem, rounds: Rounds) -> PruneResult:
        try:
            if type(pruner).__module__.partition(".")[0] == "panning":
                return _checked(pruner(problem, density, rounds), name, problem, n_kept)
            with unwritten(problem.model) as written:
                result = _checked(pruner(problem, density, rounds), name, problem, n_kept)
        except ForwardError as error:
            raise ForwardError(f"Method '{name}' does not get through the network. {error}") from error
        if written:
            raise MaskError(
                f"Method '{name}' has written into the network ('{written[0]}'), which is the caller's and was put back: "
                "work on problem.weight and copies, and run the network by panning.flow.run."
            )
        return result

    result = prune(problem, rounds) if controlled is None else controlled.run(problem, rounds, prune)
    return make_all_alive(problem, result) if all_alive_weights else result


def _checked(result: PruneResult, name: str, problem: Problem, n_kept: int) -> PruneResult:
    """The result of a method, which may be anybody's."""
    if not isinstance(result, PruneResult):
        raise MaskError(f"Method '{name}' gave {type(result).__name__}, but must give a panning.pruners.PruneResult.")
    for part, tensor, allowed in (("mask", result.mask, "bool"), ("scores", result.scores, "numbers")):
        fits = isinstance(tensor, Tensor) and (tensor.dtype == torch.bool) == (part == "mask")
        if not fits or tensor.shape != problem.weight.shape:
            given = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise MaskError(
                f"Method '{name}' gave the {part} {given}, but must give {allowed}, flat [{problem.layout.n_prunable}]."
            )
    if (n_given := int(result.mask.sum())) != n_kept:
        raise MaskError(f"Method '{name}' keeps {n_given} weights, but was asked for exactly {n_kept}.")
    if (layer := problem.layout.first_non_finite(result.scores)) is not None:
        raise NonFiniteError(f"Method '{name}' scored layer '{layer}' with NaN or infinite numbers.")
    return result
