"""Pruners: problem and density -> ``PruneResult``. A row in ``PRUNERS`` makes one visible to the library, the command
line, the configs and the tests; ``prune_problem`` runs any of them, with all-alive around it where asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from panning.connectivity import Connectivity
from panning.errors import DataError
from panning.masks import n_kept_at
from panning.problem import Problem
from panning.pruners.all_alive import all_alive, make_all_alive
from panning.pruners.quotas import RandomQuotas
from panning.pruners.rounds import METHODS_OWN, OnRound, PruneResult, Round, RoundAction, Rounds, prune_round
from panning.pruners.score_rounds import ScoreRounds
from panning.pruners.staged import StagedPanning
from panning.registry import lookup

__all__ = [
    "PRUNERS", "OnRound", "PruneResult", "Pruner", "PrunerRow", "Round", "RoundAction", "Rounds", "all_alive",
    "make_all_alive", "prune_problem", "prune_round",
]  # fmt: skip


class Pruner(Protocol):
    """A method that prunes before training; one without rounds ignores ``rounds``."""

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult: ...


@dataclass(frozen=True)
class PrunerRow:
    """A row: the pruner, the name tables show, the paper, and whether it scores with data."""

    pruner: Pruner
    label: str
    paper: str
    needs_data: bool


PRUNERS: dict[str, PrunerRow] = {
    "random": PrunerRow(RandomQuotas("uniform"), "random (uniform)", "control", needs_data=False),
    "erk": PrunerRow(RandomQuotas("erk"), "random (ERK)", "Evci et al. 2020, arXiv 1911.11134", needs_data=False),
    "magnitude": PrunerRow(
        ScoreRounds({"magnitude": 1.0}), "magnitude", "Han et al. 2015, at initialisation", needs_data=False
    ),
    "snip": PrunerRow(ScoreRounds({"snip": 1.0}), "SNIP", "Lee et al. 2019, arXiv 1810.02340", needs_data=True),
    "iter_snip": PrunerRow(
        ScoreRounds({"snip": 1.0}, n_rounds=60), "iterative SNIP", "de Jorge et al. 2021, arXiv 2006.09081", needs_data=True
    ),
    "force": PrunerRow(
        ScoreRounds({"snip": 1.0}, n_rounds=60, revive=True), "FORCE", "de Jorge et al. 2021, arXiv 2006.09081",
        needs_data=True,
    ),
    "grasp": PrunerRow(
        ScoreRounds({"grasp_signed": 1.0}, temperature=200.0), "GraSP", "Wang et al. 2020, arXiv 2002.07376",
        needs_data=True,
    ),
    "grasp_magnitude": PrunerRow(
        ScoreRounds({"grasp": 1.0}, temperature=200.0), "GraSP (magnitude)", "Frankle et al. 2021, arXiv 2009.08576",
        needs_data=True,
    ),
    "synflow": PrunerRow(
        ScoreRounds({"synflow": 1.0}, n_rounds=100), "SynFlow", "Tanaka et al. 2020, arXiv 2006.05467", needs_data=False
    ),
    "panning_staged": PrunerRow(
        StagedPanning("sum"), "staged Panning", "Kang et al. 2022, arXiv 2209.13378", needs_data=True
    ),
    "panning_staged_product": PrunerRow(
        StagedPanning("product"), "staged Panning (product)", "Kang et al. 2022, arXiv 2209.13378", needs_data=True
    ),
}  # fmt: skip


def prune_problem(
    problem: Problem,
    density: float,
    method: str,
    *,
    all_alive_weights: bool = False,
    rounds: Rounds = METHODS_OWN,
) -> PruneResult:
    """Prune with a row of ``PRUNERS``.

    Args:
        all_alive_weights: give the budget of dead weights back to the best-ranked that can be alive.

    Raises:
        UnknownNameError, DensityError, DataError, NonFiniteError: as the method and its input deserve.
    """
    row = lookup(PRUNERS, method, "method")
    n_kept = n_kept_at(density, problem.layout.n_prunable)
    Connectivity.of(problem).check_reachable(n_kept)
    if row.needs_data and problem.batches is None:
        raise DataError(
            f"Method '{method}' scores with a loss and needs data: pass a batch, a DataLoader or a Dataset."
        )
    result = row.pruner(problem, density, rounds)
    return make_all_alive(problem, result) if all_alive_weights else result
