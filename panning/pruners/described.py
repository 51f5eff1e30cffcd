"""A finished mask: what is known of it, measured once, and said in its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from panning.alive.connectivity import Connectivity
from panning.alive.report import MaskReport, report
from panning.foundation.making import ENTRY, making
from panning.masks.masks import Masks
from panning.pruners.doubts import doubts_of, doubts_of_paths
from panning.pruners.form import PLAIN_FORM, Form
from panning.pruners.rounds import AllAlive, PruneResult
from panning.scoring.problem import Problem


@dataclass(frozen=True, eq=False)
class Described:
    """Masks with their manifest, the facts that stand in it, and what speaks against the mask (``doubts_of``)."""

    masks: Masks
    facts: MaskReport
    doubts: tuple[str, ...] = ()


def described(
    problem: Problem, result: PruneResult, *, method: str, all_alive: AllAlive, form: Form = PLAIN_FORM, **said: Any
) -> Described:
    """The masks of a pruner's result.

    Args:
        form: that was asked for; the manifest has its fields, and the layers that its shape does not cover.
        said: more for the manifest; what is None, False or empty is not said.
    """
    facts = report(Connectivity.of(problem), result.mask)
    doubts, layout = doubts_of(problem, result, ranked=form == PLAIN_FORM), problem.layout
    shaped = form.shaped(problem.model, layout)
    start = {} if result.start is None else {"start": result.start}
    said |= {**start, **form.facts(), **({} if shaped is None else shaped.facts())}
    return manifested(problem, result.masks, facts, doubts, method=method, all_alive=all_alive, **said)


def manifested(
    problem: Problem, masks: Masks, facts: MaskReport, doubts: tuple[str, ...], *, method: str,
    all_alive: AllAlive = False, **said: Any,
) -> Described:  # fmt: skip
    """The masks with all that is known of them in their manifest."""
    layout, doubts = problem.layout, (*doubts, *doubts_of_paths(facts))
    masks = masks.with_manifest(
        method=method, all_alive=all_alive, seed=problem.seed,
        **({} if problem.input_shape is None else {"input_shape": list(problem.input_shape)}),
        **{name: value for name, value in said.items() if value not in (None, False, {}, [])},
        **facts.facts(),
        **({"left_dense": {name: left.reason for name, left in layout.dense.items()}} if layout.dense else {}),
        **({"warnings": list(doubts)} if doubts else {}),
        **({ENTRY: making()} if making() > 1 else {}),
    )  # fmt: skip
    return Described(masks, facts, doubts)
