"""What the speed benchmark times: plain PyTorch as the reference, signals, environment rounds, one round of each method.

An item *prepares* a callable, untimed, and the callable is what is timed. It is prepared anew for every repetition:
signals and problems keep what they computed, and a second call would only look it up.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from panning.alive.connectivity import Connectivity
from panning.masks.allocation import allocate, top_k
from panning.masks.masks import Masks
from panning.measure import episodes
from panning.measure.clock import Run
from panning.measure.episodes import AGENTS, FIRST_ORDER, ROUND_DENSITIES, SECOND_ORDER, SPREAD, environment_round
from panning.measure.networks import DECODERS
from panning.measure.report import AUTHORS, PASS, PASS_OF_ONE, STEP
from panning.measure.workbench import DENSITY, Workbench, pass_of_one, plain_pass, training_step
from panning.pruners import PRUNERS, Rounds
from panning.scoring.mixing import mix
from panning.scoring.signals import Signals


@dataclass(frozen=True)
class Item:
    """A row of ``ITEMS``.

    Attributes:
        reference: the item whose time this one's is a multiple of.
        rival: the item that is said to take a multiple of this one's time; timed in turns, as the reference.
        method: the row of ``PRUNERS`` this is one round of.
        per: how many of what the item counts one call makes.
        per_episode: how many of it an episode of an agent's training has; None where no shipped agent was trained.
        models: the networks that it is timed on; None for all.
        of_images: whether it needs images.
        alone: measure the memory of a whole process that does nothing else.
    """

    prepare: Callable[[Workbench], Run]
    reference: str = PASS
    rival: str | None = None
    method: str | None = None
    per: Callable[[Workbench], int] = lambda bench: 1
    per_episode: Callable[[Workbench], float] | None = None
    models: tuple[str, ...] | None = None
    of_images: bool = False
    alone: bool = False

    @property
    def n_rounds(self) -> int:
        """The number of rounds that the method takes in all."""
        return 1 if self.method is None else PRUNERS[self.method].pruner.n_rounds

    def fits(self, model: str) -> bool:
        """Whether it is timed on a network."""
        return (self.models is None or model in self.models) and not (self.of_images and model in DECODERS)


def enforced_step(bench: Workbench) -> Run:
    """A training step with an enforced mask, on a copy, since masked weights are lost; their products are computed, too."""
    masks = Masks(bench.problem.layout, top_k(bench.problem.weight.abs(), bench.n_kept))
    return training_step(bench, masks, copy.deepcopy(bench.plain))


def signals(bench: Workbench, requested: tuple[str, ...]) -> Run:
    fresh = Signals(bench.problem, bench.dense())
    return lambda: fresh.request(*requested)


def allocation(bench: Workbench, spread: float = 0.0) -> Run:
    """The allocation of a mask from the scores that a first-order round mixes."""
    problem = bench.problem
    scores, noise = mix(FIRST_ORDER, Signals(problem, bench.dense())), problem.noise if spread else None
    return lambda: allocate(scores, bench.n_kept, problem.layout, spread=spread, noise=noise)


def alive_test(bench: Workbench) -> Run:
    connectivity = Connectivity.of(bench.problem)
    mask = top_k(bench.problem.weight.abs(), bench.n_kept)
    return lambda: connectivity.alive(mask)


def authors_step(bench: Workbench) -> Run:
    """A step of the Panning authors' environment at the density that our timed round leads to."""
    return partial(bench.authors.step, ROUND_DENSITIES[1])


def one_round(bench: Workbench, method: str) -> Run:
    """One round of a method at its target, with a problem that has drawn and computed nothing yet."""
    problem = dataclasses.replace(bench.problem)
    return lambda: PRUNERS[method].pruner(problem, DENSITY, Rounds(n_rounds=1))


def _round(weights: dict[str, float], spread: float = 0.0) -> Item:
    return Item(partial(environment_round, weights=weights, spread=spread), rival=AUTHORS, alone=not spread)


def _agents_round(second_order: bool) -> Item:
    episode = partial(episodes.agents_episode, second_order=second_order)
    rounds = episodes.agents_rounds
    return Item(episode, rival=AUTHORS, per=rounds, per_episode=rounds if second_order else None, alone=True)


def _part(prepare: Callable[[Workbench], Run], of_episode: float, of_reference: float) -> Item:
    """A part of an episode, so many times in the agent's and so many in its reference, which episodes share."""
    share = episodes.references_per_episode
    return Item(prepare, models=tuple(AGENTS), per_episode=lambda bench: of_episode + of_reference * share(bench))


ITEMS: dict[str, Item] = {
    PASS: Item(plain_pass, alone=True),
    STEP: Item(training_step),
    "training step, mask enforced": Item(enforced_step, reference=STEP),
    PASS_OF_ONE: Item(pass_of_one),
    AUTHORS: Item(authors_step, of_images=True, alone=True),
    "SNIP": Item(partial(signals, requested=("grad",)), alone=True),
    "SNIP + GraSP + loss + gradient norm": Item(
        partial(signals, requested=("grad", "hessian_grad", "loss", "grad_norm")), alone=True
    ),
    "SynFlow round": Item(partial(signals, requested=("path_grad",)), reference=PASS_OF_ONE, alone=True),
    "allocation": Item(allocation),
    "allocation with spread": Item(partial(allocation, spread=SPREAD)),
    "alive test": Item(alive_test),
    "environment round, first order": _round(FIRST_ORDER),
    "environment round, second order": _round(SECOND_ORDER),
    "environment round with spread, first order": _round(FIRST_ORDER, SPREAD),
    "environment round with spread, second order": _round(SECOND_ORDER, SPREAD),
    "agent's round": _agents_round(second_order=True),
    "agent's round, first order": _agents_round(second_order=False),
    "episode: reset": _part(episodes.reset, 1, 0),
    "episode: repair": _part(episodes.repair, 1, 1),
    "episode: short training": _part(episodes.short_training, 1, 1),
    "episode: reference's rounds": _part(episodes.references_rounds, 0, 1),
    **{f"method {method}": Item(partial(one_round, method=method), method=method) for method in PRUNERS},
}
