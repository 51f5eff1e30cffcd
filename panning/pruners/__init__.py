"""Pruners: problem and density -> ``PruneResult``. A row in ``PRUNERS`` makes one visible to the library, the command
line, the configs and the tests; ``prune_problem`` runs any of them, with a control or all-alive around it where asked.

    >>> from panning.pruners import PRUNERS
    >>> PRUNERS["snip"].label, PRUNERS["snip"].needs_data, PRUNERS["iter_snip"].pruner.n_rounds
    ('SNIP', True, 60)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from panning.alive.connectivity import Connectivity
from panning.alive.repair import all_alive
from panning.foundation.errors import ForwardError, MaskError, PanningError, UnknownNameError
from panning.foundation.modes import unwritten
from panning.foundation.progress import Listener, silent
from panning.foundation.registry import Table, lookup, origins, unknown_name_message
from panning.masks.masks import n_kept_at
from panning.masks.shape import check_unrepaired
from panning.pruners import releases
from panning.pruners.controls import CONTROLS, Control
from panning.pruners.dpai import DPaI
from panning.pruners.form import PLACED, PLAIN_FORM, Form
from panning.pruners.npb import NPB
from panning.pruners.phew.method import PHEW
from panning.pruners.quotas import QUOTA_LABELS, QUOTAS, RandomQuotas
from panning.pruners.rounds import (
    METHODS_OWN,
    AllAlive,
    PruneResult,
    Round,
    RoundAction,
    Rounds,
    make_all_alive,
    prune_round,
)
from panning.pruners.row import Pruner, PrunerRow, check_weights, checked
from panning.pruners.score_rounds import RELEASE_TEMPERATURE, ScoreRounds, mean_true_logit
from panning.pruners.shipped import SHIPPED
from panning.pruners.staged import StagedPanning
from panning.pruners.structured import KeepUnits, Shares, snap, three_sp
from panning.pruners.told import of_quotas
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem, Scoring

__all__ = [
    "CONTROLS", "METHODS_OWN", "AllAlive", "PLAIN_FORM", "PRUNERS", "Form", "PruneResult", "Pruner", "PrunerRow", "Round",
    "RoundAction", "Rounds", "all_alive", "check_form", "check_source", "make_all_alive", "name_of", "needs_data",
    "plugins_of", "prune_problem", "prune_round", "pruner_row", "source_counts", "told_form", "variant_of",
]  # fmt: skip


_DE_JORGE = "de Jorge et al. 2021, arXiv 2006.09081"
_SU = "Su et al. 2020, arXiv 2009.11094"
_KANG = "Kang et al. 2022, arXiv 2209.13378"
_SNAP = "Verdenius et al. 2020, arXiv 2006.00896"
_PRECROP = "Cai et al. 2022, arXiv 2203.02549"
_ALIZADEH = "Alizadeh et al. 2022, arXiv 2202.08132"
_GOLLINI = "Gollini et al. 2026, arXiv 2502.11450"

_AT_200 = Scoring(temperature=RELEASE_TEMPERATURE)
_ONE_BATCH = Scoring(same_batch=True)

_OWN: dict[str, PrunerRow] = {
    "panning": SHIPPED,
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
        ScoreRounds({"snip": 1.0}, scoring=Scoring(batch_statistics=False)), releases.RUNNING_STATISTICS,
    ),
    "iter_snip": PrunerRow(
        ScoreRounds({"snip": 1.0}, n_rounds=60), "iterative SNIP", _DE_JORGE,
        ScoreRounds({"snip": 1.0}, n_rounds=60, scoring=Scoring(loss=mean_true_logit)), releases.LOGIT_AS_LOSS,
    ),
    "force": PrunerRow(
        ScoreRounds({"snip": 1.0}, n_rounds=60, revive=True), "FORCE", _DE_JORGE,
        ScoreRounds({"snip": 1.0}, n_rounds=60, revive=True, scoring=Scoring(loss=mean_true_logit)), releases.LOGIT_AS_LOSS,
    ),
    "grasp": PrunerRow(
        ScoreRounds({"grasp_signed": 1.0}, scoring=_AT_200), "GraSP",
        "Wang et al. 2020, arXiv 2002.07376", departure=releases.CLASSIFIER_REDRAWN,
    ),
    "grasp_magnitude": PrunerRow(
        ScoreRounds({"grasp": 1.0}, scoring=_AT_200), "GraSP (magnitude)",
        "Frankle et al. 2021, arXiv 2009.08576",
    ),
    "synflow": PrunerRow(
        ScoreRounds({"synflow": 1.0}, n_rounds=100), "SynFlow", "Tanaka et al. 2020, arXiv 2006.05467",
        ScoreRounds({"synflow": 1.0}, n_rounds=100, scoring=Scoring(linear_paths=False)), releases.BIASES_COUNT,
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
        departure=releases.THREE_FORMS,
    ),
    "phew": PrunerRow(PHEW(), "PHEW", "Patil and Dovrolis 2021, arXiv 2010.11354"),
    "npb": PrunerRow(NPB(), "NPB", "Pham et al. 2023, NeurIPS", departure=releases.INTEGER_PROGRAMS),
    "dpai": PrunerRow(DPaI(), "DPaI", "Xiang et al. 2025, ICLR", departure=releases.FROM_RANDOM_SCORES),
    "ntk_sap": PrunerRow(
        ScoreRounds({"ntk_sap": 1.0}, n_rounds=20), "NTK-SAP", "Wang et al. 2023, arXiv 2304.02840"
    ),
    "prospr": PrunerRow(
        ScoreRounds({"prospr": 1.0}), "ProsPr", _ALIZADEH,
        ScoreRounds({"prospr": 1.0}, scoring=_ONE_BATCH), releases.ONE_BATCH_FOR_ALL,
    ),
    "prospr_first_order": PrunerRow(
        ScoreRounds({"prospr_first_order": 1.0}), "ProsPr (first order)", _ALIZADEH,
        ScoreRounds({"prospr_first_order": 1.0}, scoring=_ONE_BATCH), releases.ONE_BATCH_FOR_ALL,
    ),
    "fts": PrunerRow(ScoreRounds({"fts": 1.0}), "FTS", _GOLLINI, departure=releases.CONVOLUTIONS_ALONE),
    "hts": PrunerRow(ScoreRounds({"hts": 1.0}), "HTS", _GOLLINI, departure=releases.CONVOLUTIONS_ALONE),
    "gcs": PrunerRow(
        ScoreRounds({"gcs": 1.0}, scoring=_AT_200), "GCS", "Kang, gradient coupled flow",
        departure=releases.CLASSIFIER_REDRAWN,
    ),
    "gcs_group": PrunerRow(
        ScoreRounds({"gcs_group": 1.0}, scoring=_AT_200), "GCS-Group", "Kang, gradient coupled flow",
        departure=releases.CLASSIFIER_REDRAWN,
    ),
    "panning_staged": PrunerRow(StagedPanning("sum"), "staged Panning", _KANG),
    "panning_staged_product": PrunerRow(StagedPanning("product"), "staged Panning (product)", _KANG),
    "snap": PrunerRow(KeepUnits(snap), "SNAP (units)", _SNAP),
    "snap_it": PrunerRow(KeepUnits(snap, n_rounds=6), "SNAP-it (units)", _SNAP),
    "three_sp": PrunerRow(KeepUnits(three_sp), "3SP (units)", "van Amersfoort et al. 2020, arXiv 2007.00389"),
    "precrop": PrunerRow(
        KeepUnits(Shares(ScoreRounds({"synflow": 1.0}, n_rounds=100), "SynFlow"), indices=("synflow",), ranks_once=False),
        "PreCrop (units, SynFlow's quotas)", _PRECROP,
    ),
    "precrop_erk": PrunerRow(
        KeepUnits(Shares(RandomQuotas("erk"), "ERK"), indices=(), ranks_once=False), "PreCrop (units, ERK's quotas)",
        _PRECROP,
    ),
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


def name_of(method: str | Pruner | None) -> str:
    """What messages and manifests call a method; None is that of a form that says all."""
    return PLACED if method is None else pruner_row(method).name_of(method)


def plugins_of(method: str | Pruner | None, form: Form = PLAIN_FORM) -> dict[str, str]:
    """The installed packages that a method, a form and their indices come from (``registry.origins``)."""
    names = [*([method] if isinstance(method, str) else []), *(name for name in form.sources if name not in QUOTAS)]
    rows = [PRUNERS[name] for name in names] if method is None or isinstance(method, str) else [pruner_row(method)]
    indices = {index for row in rows for index in row.pruner.indices}
    return origins((PRUNERS, names), (INDICES, [*indices, *form.indices]))


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
            f"Control '{control}' turns scores round, and method '{name}' has none; these have scores: {scored}."
        )
    return row.in_form(released), controlled


def check_source(name: str) -> None:
    """Raise UnknownNameError if a source of quotas is neither a row of ``QUOTAS`` nor of ``PRUNERS``."""
    if name not in QUOTAS and name not in PRUNERS:
        raise UnknownNameError(unknown_name_message("source of quotas", name, {*QUOTAS, *PRUNERS}))


def check_form(form: Form, method: str | Pruner | None, all_alive_weights: AllAlive = False) -> None:
    """Raise what is wrong with a form beside a method, before any work.

    Raises:
        UnknownNameError: if a source of quotas is neither a row of ``QUOTAS`` nor of ``PRUNERS``.
        MaskError: if nothing or too much says what is kept.
    """
    for name in form.sources:
        check_source(name)
    if form.says_all and method is not None:
        raise MaskError(
            f"Quotas of {form.quotas} and places by {form.place} leave method '{name_of(method)}' nothing to say: leave the "
            "method away, or one of the two."
        )
    if method is None and not form.says_all:
        raise MaskError("Name a method, or both quotas and place, which together need none.")
    if all_alive_weights not in (True, False, "in_layers"):
        raise MaskError(f"all_alive is {all_alive_weights!r}, but must be True, False or 'in_layers'.")
    check_unrepaired(form.shape, bool(all_alive_weights))


def needs_data(method: str | Pruner | None, form: Form = PLAIN_FORM) -> bool:
    """Whether a method, or the sources of quotas and the index of places in a form, score with a loss."""
    rows = [PRUNERS[name] for name in form.sources if name not in QUOTAS]
    rows += [] if method is None else [pruner_row(method)]
    return any(row.needs_data for row in rows) or any(INDICES[name].needs_data for name in form.indices)


def told_form(form: Form) -> tuple[str, ...]:
    """What a form asks, in words for tables."""
    return form.told(lambda name: QUOTA_LABELS[name] if name in QUOTAS else PRUNERS[name].label)


def prune_problem(
    problem: Problem,
    density: float | None,
    method: str | Pruner | None,
    *,
    form: Form = PLAIN_FORM,
    all_alive_weights: AllAlive = False,
    rounds: Rounds = METHODS_OWN,
    released: bool = False,
    control: str | None = None,
) -> PruneResult:
    """Prune with a row of ``PRUNERS``, or with a pruner of the caller's own.

    Args:
        density: may be None where the form says it.
        method: None where quotas and places of the form say all.
        form: what the mask is to have, whatever the method; it acts after the control.
        all_alive_weights: give the budget of dead weights back to the best-ranked that can be alive (``AllAlive``).
        released: the method as its authors' released code has it.
        control: a row of ``CONTROLS`` around the method.

    Raises:
        UnknownNameError, DensityError, DataError, NonFiniteError: as the method and its input deserve.
        MaskError: if an object that is no pruner was given, its result has the wrong type, shape or number of weights, or
            the form does not go with the method.
    """
    problem = problem.where_scored
    variant = None if method is None else variant_of(method, released, control)
    check_form(form, method, all_alive_weights)
    if method is None:
        asked = {"a number of rounds": rounds.n_rounds, "a schedule": rounds.schedule}
        form.check_needless({"released": released, "a control": control, **asked})
    layout = problem.layout
    check_weights(layout.first_non_finite(problem.weight))
    n_kept = form.n_kept(problem.model, layout, density)
    target = n_kept / layout.n_prunable if density is None or form.shape is not None else density
    rounds.targets(1, "exponential", target)  # a wrong number or schedule is refused by every method
    Connectivity.of(problem).check_reachable(n_kept)
    form.check_open(problem)
    if any(INDICES[name].needs_data for name in form.indices):
        problem.source(f"Place '{form.place}'")  # before any work
    result = None if method is None or variant is None else _by_method(problem, target, method, rounds, *variant)
    counts_of = partial(source_counts, problem, density=target, listen=rounds.listen)
    result = form.apply(problem, result, n_kept, density, counts_of)
    if all_alive_weights:
        result = make_all_alive(problem, result, all_alive_weights)
        form.check_bounds(layout, result.mask)
    return result


def source_counts(problem: Problem, source: str, density: float, listen: Listener = silent) -> Sequence[int]:
    """How many weights each layer keeps at a density: by a row of ``QUOTAS``, or in the mask of a row of ``PRUNERS``."""
    if source in QUOTAS:
        return QUOTAS[source](problem.layout, n_kept_at(density, problem.layout.n_prunable))
    rounds = Rounds(listen=of_quotas(listen, PRUNERS[source].label))
    return problem.layout.counts(prune_problem(problem, density, source, rounds=rounds).mask)


def _by_method(
    problem: Problem, density: float, method: str | Pruner, rounds: Rounds, pruner: Pruner, controlled: Control | None
) -> PruneResult:
    n_kept = n_kept_at(density, problem.layout.n_prunable)
    row = pruner_row(method)
    name = row.name_of(method)
    if row.needs_data:
        problem.source(f"Method '{name}'")  # before any work

    def prune(problem: Problem, rounds: Rounds) -> PruneResult:
        try:
            if type(pruner).__module__.partition(".")[0] == "panning":
                return checked(pruner(problem, density, rounds), name, problem, n_kept)
            with unwritten(problem.model) as written:
                result = checked(pruner(problem, density, rounds), name, problem, n_kept)
        except ForwardError as error:
            raise ForwardError(f"Method '{name}' does not get through the network. {error}") from error
        if written:
            raise MaskError(
                f"Method '{name}' has written into the network ('{written[0]}'), which is the caller's and was put back: "
                "work on problem.weight and copies, and run the network by panning.flow.run."
            )
        return result

    return prune(problem, rounds) if controlled is None else controlled.run(problem, rounds, prune)
