"""What listeners are told of a round: what was mixed, and what is left of each layer; and of rounds that lend quotas."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.foundation.progress import Event, LazyFacts, Listener, silent
from panning.foundation.stopping import step_done
from panning.masks.masks import Masks
from panning.masks.selection import n_true
from panning.scoring.problem import Problem


def tell_round(
    listen: Listener,
    problem: Problem,
    mask: Tensor,
    done: int,
    total: int,
    known: Mapping[str, Any],
    alive: Tensor | None = None,
) -> None:
    """Tell a listener of a round (``panning.foundation.facts.RoundFacts``); the run stops there if it should.

    The layers' densities and the dead weights, which cost a pass of the alive test, are computed if the listener looks.

    Args:
        mask: flat bool, after the round; the facts hold it.
        done, total: rounds.
        known: facts that cost nothing.
        alive: flat bool, the alive weights of ``mask``, where they are known.
    """
    if listen is silent:
        step_done(done, total, "round")
        return

    @functools.cache
    def n_alive() -> int:
        return n_true(alive) if alive is not None else Connectivity.of(problem).n_alive(mask)

    later = {
        "effective_density": lambda: n_alive() / mask.numel(),
        "dead": lambda: 1.0 - n_alive() / n_true(mask),
        "layers": Masks(problem.layout, mask).layer_densities,
    }
    listen(Event("pruning", done, total, "round", LazyFacts({"round": done, **known}, later, held=mask)))
    step_done(done, total, "round")


def of_quotas(listen: Listener, source: str) -> Listener:
    """Tells a listener of the rounds of another mask, of which the layers' counts are all that is taken.

    They are steps of a stage of their own: the network that is being pruned has not lost a weight by them.

    >>> from panning.foundation.progress import Event
    >>> from panning.pruners.told import of_quotas
    >>> of_quotas(print, "SynFlow")(Event("pruning", 1, 100, "round", {"density": 0.95}))
    Event(stage='quotas of SynFlow', done=1, total=100, kind='stage', facts={})

    Args:
        source: what tables call the method.
    """
    if listen is silent:
        return silent
    return lambda event: listen(Event(f"quotas of {source}", event.done, event.total))
