"""Pruning of networks that leave no room for scores: one layer at a time, the same masks as ``prune_problem`` finds.

A round of the plain way holds several numbers for every weight. Here a pass makes a layer's weights when an operator needs
them, scores the layer when its gradient appears, and keeps two bits a weight; the lowest score that is kept is found in
passes (``masks.passes``). The masks stay packed (``masks.packed``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from panning.foundation.device import device_of
from panning.foundation.errors import ModelError, PanningError
from panning.foundation.progress import Event
from panning.masks.allocation import top_k
from panning.masks.masks import n_kept_at
from panning.masks.packed import PackedMasks
from panning.pruners import PRUNERS, name_of, plugins_of, pruner_row, variant_of
from panning.pruners.described import Described, manifested
from panning.pruners.doubts import Equals, doubts
from panning.pruners.quotas import QUOTAS, RandomQuotas
from panning.pruners.rounds import METHODS_OWN, Rounds
from panning.pruners.row import Pruner, check_weights
from panning.pruners.score_rounds import ScoreRounds
from panning.scoring.problem import PLAIN, Problem
from panning.streaming.alive import streamed_report
from panning.streaming.layers import Layers
from panning.streaming.rounds import Keeper, Progress, stream_rounds
from panning.streaming.scores import FORMULAS, Scorer

#: From so many prunable weights on, ``panning.prune`` streams by itself: where the plain way takes 3 GB and more.
STREAMED_FROM = 100_000_000


def is_streamed(method: str | Pruner | None, released: bool = False) -> bool:
    """Whether a method can be streamed: by one index of ``FORMULAS`` without a spread, or at random with layer quotas."""
    if method is None:
        return False
    pruner = pruner_row(method).in_form(released)
    if isinstance(pruner, RandomQuotas):
        return True
    if not isinstance(pruner, ScoreRounds) or len(pruner.indices) != 1 or pruner.indices[0] not in FORMULAS:
        return False
    return pruner.spread == 0.0 and pruner.normaliser == "mean"


def stream_problem(
    problem: Problem, density: float, method: str | Pruner, rounds: Rounds = METHODS_OWN, *, released: bool = False,
    checkpoint: str | Path | None = None, plugins: Mapping[str, str] | None = None, **said: Any,
) -> Described:  # fmt: skip
    """The masks of ``prune_problem``, to the last tie, packed, with what is known of them.

    Args:
        checkpoint: a folder that a run which was killed goes on from.
        plugins: packages that other parts of the problem come from.
        said: more for the manifest.

    Raises:
        PanningError: if the method cannot be streamed, or the network is not on the CPU.
        ConfigError: if the folder holds another run.
    """
    pruner, _ = variant_of(method, released, None)
    check_streamed(method, released)
    if (device := device_of(problem.model)).type != "cpu":
        raise ModelError(
            f"The model is on {device}, and streaming works on the CPU alone: pass model.cpu(), or streaming=False."
        )
    with_loss = pruner_row(method).needs_data
    if problem.complex_layers and with_loss:
        raise ModelError(
            f"'{problem.complex_layers[0]}' has complex weights, and a loss scores real ones alone. Take a method that "
            "reads magnitudes (magnitude, synflow, random, erk), or leave these layers dense (exclude)."
        )
    if with_loss:
        problem.source(f"Method '{name_of(method)}'")  # before any work
    check_weights(Layers(problem).first_non_finite())
    facts = {
        "method": name_of(method), "released": released, "density": density, "seed": problem.seed,
        "rounds": rounds.n_rounds, "schedule": rounds.schedule,
        "layout": [[name, list(shape)] for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True)],
    }  # fmt: skip
    keeper = Keeper.of(checkpoint, problem, facts, with_loss)
    if isinstance(pruner, RandomQuotas):
        done = _by_quotas(problem, pruner, density, rounds)
    else:
        assert isinstance(pruner, ScoreRounds)
        done = stream_rounds(problem, pruner, density, rounds, keeper)
    assert done.bits is not None
    masks = PackedMasks(problem.layout, done.bits)
    equal = Equals(done.thresholds[-1], done.n_equal) if done.tied else None
    found = doubts(problem, masks.counts(), equal, {})
    report = streamed_report(Layers(problem, done.bits))
    return manifested(
        problem, masks, report, found, method=name_of(method), released=released,
        plugins={**(plugins or {}), **plugins_of(method)}, **said,
    )  # fmt: skip


def check_streamed(
    method: str | Pruner | None, released: bool = False, beside: Mapping[str, Any] | None = None
) -> None:
    """Raise what speaks against streaming.

    Args:
        beside: what else is asked, by name, of a kind that needs the scores of all weights at once.

    Raises:
        PanningError: with what stands in the way, or with the methods that can be streamed.
    """
    if given := [name for name, value in (beside or {}).items() if value not in (None, False)]:
        raise PanningError(
            f"streaming holds the scores of one layer at a time, and {', '.join(given)} needs those of all: leave one out."
        )
    if is_streamed(method, released):
        return
    known = ", ".join(name for name in PRUNERS if is_streamed(name))
    raise PanningError(
        f"Method '{name_of(method)}' cannot be streamed: it needs several numbers of all weights at once. Leave streaming "
        f"away, or take one of these: {known}."
    )


def _by_quotas(problem: Problem, pruner: RandomQuotas, density: float, rounds: Rounds) -> Progress:
    """Random weights in each layer, drawn layer by layer."""
    layout, bits = problem.layout, {}
    counts = QUOTAS[pruner.quotas](layout, n_kept_at(density, layout.n_prunable))

    def take(layer: int, drawn: Any) -> None:
        bits[layer] = np.packbits(top_k(drawn, counts[layer], sizes=(layout.sizes[layer],)).numpy())

    Scorer("random", PLAIN).scores(Layers(problem), 0, take, lambda: None)
    rounds.listen(Event("pruning", 1, 1, "round", {"density": density}))
    return Progress(1, [bits[layer] for layer in range(len(layout.names))])
