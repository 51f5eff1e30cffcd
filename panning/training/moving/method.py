"""What a method that changes masks while a network trains has to say; ``panning.training.moving.engine`` does it.

A method is its few numbers and pure functions: when it acts, and from what it then sees, which weights it keeps. What it
does not say is the same for all: masked weights are zero and learn nothing, a weight that is grown starts at zero with an
optimizer state of zero, one that is dropped and grown again in the same move keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from panning.foundation.config import Config
from panning.foundation.errors import MaskError
from panning.foundation.registry import unknown_name_message
from panning.masks.layout import Layout
from panning.masks.masks import n_kept_at
from panning.scoring.problem import Problem
from panning.scoring.schedules import SCHEDULES
from panning.training.recipe import Recipe, learning_rate_at

Share = Annotated[float, Field(ge=0, le=1)]
#: What becomes of masked weights between two moves. ``zero``: they are, and learn nothing. ``feedback``: the network runs
#: without them, but the gradient at that point moves all dense weights, from which the next mask is made. ``free``: they
#: are zeroed by the move and then learn like all others.
Holds = Literal["zero", "feedback", "free"]
#: What a method keeps from move to move, by its own names; saved with every checkpoint. Flat tensors [n_prunable] are where
#: the weights are, all others on the CPU.
Memory = dict[str, Tensor]
#: A density that falls in fewer moves than this is no ramp.
FEWEST_FALLS = 3


@dataclass(frozen=True)
class Clock:
    """Where a training stands.

    Attributes:
        step: optimizer steps done.
        n_steps: of the whole training.
        schedule: of the recipe's schedule; the training has more where a method goes through it several times.
        epoch: steps of one.
    """

    step: int
    n_steps: int
    schedule: int
    epoch: int

    @property
    def progress(self) -> float:
        """In [0, 1]."""
        return self.step / self.n_steps

    @property
    def is_over(self) -> bool:
        return self.step >= self.n_steps


@dataclass(frozen=True, eq=False)
class View:
    """What a method sees when it acts. Tensors are flat [n_prunable] and not to be written into.

    Attributes:
        problem: the network with its present weights, for methods that score it anew.
        first: the mask that the training was given, flat bool.
        start, density: of the mask at the start and at the end of the training; of methods that prune units, the shares of
            those of each hidden layer.
        hidden: the layers whose units may go, for other layers read them.
        weight: under ``feedback`` the dense ones.
        grad: of the step just done, by the weights that the network ran with, those of masked weights too; None for methods
            that do not ask for it.
        learning_rate: of the step just done.
        momentum: the running mean of gradients that the optimizer keeps, scaled as it steps along it.
        memory: the method's own, saved with every checkpoint; may be written into.
        generator: of this seed and step.
    """

    problem: Problem
    clock: Clock
    first: Tensor
    start: float
    density: float
    hidden: tuple[str, ...]
    weight: Tensor
    mask: Tensor
    grad: Tensor | None
    learning_rate: float
    momentum: Callable[[], Tensor]
    memory: Memory
    generator: torch.Generator

    @property
    def layout(self) -> Layout:
        return self.problem.layout


@dataclass(frozen=True, eq=False)
class Move:
    """What a method decides.

    Attributes:
        mask: flat bool.
        weight: flat, new values of kept weights; None leaves them.
        revival: flat scores of masked weights, the highest of which come back where all-alive pruning has weights to give
            away; None takes their magnitude, the last one known.
        rewind: put the whole network back to where it was at the method's ``remembers`` step, with a fresh optimizer state.
        restart: a fresh optimizer state.
    """

    mask: Tensor
    weight: Tensor | None = None
    revival: Tensor | None = None
    rewind: bool = False
    restart: bool = False


class Dynamic(Config):
    """A method that changes masks while a network trains; its fields are its numbers, with the paper's defaults.

    Attributes:
        holds: what becomes of masked weights between two moves.
        wants_gradient: the gradient of the step before a move is kept for it, whole.
        whole_state: the optimizer follows the whole gradient; masked weights have momentum, though they stay zero.
        skips_step: a step whose gradient decides a move does not move the weights.
        keeps_count: the number of weights never changes.
        trains_whole: under ``feedback``, the network with its dense weights is trained to work, too, and is given as well.
        defers: a move waits for the next forward pass with gradients, so that what is evaluated between two steps is the
            network that was trained.
        counts_epochs: with ``every`` None it must know how many steps an epoch has.
        only_prunes: the method brings no masked weight back; all-alive pruning may.
        prunes_units: masks are of whole filters or neurons, and a density is the share of those of each hidden layer.
        every: steps from move to move; None: an epoch's.
    """

    holds: ClassVar[Holds] = "zero"
    whole_state: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_count: ClassVar[bool] = False
    trains_whole: ClassVar[bool] = False
    defers: ClassVar[bool] = False
    counts_epochs: ClassVar[bool] = False
    only_prunes: ClassVar[bool] = False

    every: Annotated[int, Field(ge=1)] | None = None

    @property
    def wants_gradient(self) -> bool:
        return False

    @property
    def prunes_units(self) -> bool:
        """Whole filters and neurons; what the first mask has masked stays so."""
        return False

    def move(self, view: View) -> Move:
        """The next mask."""
        return Move(view.mask)

    def check(self, clock: Clock, problem: Problem) -> None:
        """Raise MaskError if the method cannot do its work in a training of this length, DataError if it lacks data."""
        if next(self.moves(clock), None) is None:
            raise MaskError(f"{type(self).__name__} would never move: {self.tempo(clock)}.")

    def acts(self, clock: Clock) -> bool:
        """Whether there is a move after ``clock.step`` steps; after the last, only one that ends the method's work."""
        return not clock.is_over and clock.step % (self.every or clock.epoch) == 0

    def moves(self, clock: Clock) -> Iterator[int]:
        """The steps after which there is a move, one after the other."""
        return (step for step in range(1, clock.n_steps + 1) if self.acts(replace(clock, step=step)))

    def tempo(self, clock: Clock) -> str:
        """For messages: the numbers, and what to do."""
        every = self.every or clock.epoch
        return f"every={every}, n_steps={clock.n_steps}; {'lower every or ' if every > 1 else ''}train longer"

    def begin(self, view: View) -> Move:
        """The first mask, before the first step, from the one that the training was given."""
        return Move(view.mask)

    def length(self, n_steps: int, start: float, density: float, n_prunable: int) -> int:
        """Steps of the whole training, where the recipe's schedule has ``n_steps``; densities as in ``View``."""
        return n_steps

    def learning_rate(self, recipe: Recipe, step: int, n_steps: int) -> float:
        """Of step ``step``, counted from 0, where the recipe's schedule has ``n_steps``."""
        return learning_rate_at(recipe, step, n_steps)

    def remembers(self, clock: Clock) -> bool:
        """Whether the network as it is now is what ``Move.rewind`` goes back to."""
        return False

    def run_weights(self, weight: Tensor, mask: Tensor, problem: Problem, memory: Memory) -> Tensor:
        """Under ``feedback``: the flat weights that the network runs with, from the dense ones; also what is shipped."""
        return torch.where(mask, weight, 0.0)

    def runs_whole(self, clock: Clock) -> bool:
        """Under ``feedback``: whether the next step runs with the dense weights instead."""
        return False

    def learns_kept_only(self, clock: Clock) -> bool:
        """Under ``feedback``: whether the next step moves kept weights only; the others have a gradient of 0."""
        return False

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        """Whether the mask has come to its final density."""
        return int(mask.sum()) == n_final

    def attach(self, model: nn.Module, problem: Problem, memory: Memory) -> None:
        """Put hooks on the network that it runs with; called once the memory is there. They stay when training has ended."""

    def member(self, clock: Clock) -> int | None:
        """Which of the networks that one training gives the present one is a candidate for; None: of none.

        Called only where the mask has come to its final density.
        """
        return 0


@dataclass(frozen=True, eq=False)
class Movement:
    """Masks that move while a network trains.

    Attributes:
        method: a row of ``DYNAMICS``, or one with other numbers.
        problem: of the network that is trained, with what methods may ask of it: its scoring batches, its input's shape.
        density: at the end.
        all_alive: after every move, give the budget of dead weights to the best-ranked that can be alive.
    """

    method: Dynamic
    problem: Problem
    density: float
    all_alive: bool = False


class DropAndGrow(Dynamic):
    """A method that exchanges weights for as many others, and comes to rest.

    Attributes:
        until: share of the training after which masks stay.
    """

    keeps_count: ClassVar[bool] = True

    until: Annotated[float, Field(gt=0, le=1)] = 1.0

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) and clock.progress < self.until


class Ramp(Dynamic):
    """A method whose density falls along a schedule.

    Attributes:
        begin_at, end_at: shares of the training; before, the density is that of the start, after, the final one.
        schedule: a row of ``SCHEDULES``.
    """

    begin_at: Share = 0.0
    end_at: Annotated[float, Field(gt=0, le=1)] = 0.75
    schedule: str = "cubic"

    @field_validator("schedule")
    @classmethod
    def _known(cls, given: str) -> str:
        if given not in SCHEDULES:
            raise ValueError(unknown_name_message("schedule", given, SCHEDULES))
        return given

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.begin_at > self.end_at:
            raise ValueError(f"begin_at {self.begin_at:g} is beyond end_at {self.end_at:g}")
        return self

    def ends(self, clock: Clock) -> int:
        """The step at which the final density is reached."""
        return max(1, round(self.end_at * clock.n_steps))

    def acts(self, clock: Clock) -> bool:
        """Every so many steps, and where the schedule ends."""
        return super().acts(clock) or clock.step == self.ends(clock)

    def is_abrupt(self, clock: Clock) -> bool:
        """Whether the density falls in fewer than ``FEWEST_FALLS`` moves."""
        begins, ends = round(self.begin_at * clock.n_steps), self.ends(clock)
        falls = (step for step in self.moves(clock) if begins < step <= ends)
        return len(list(islice(falls, FEWEST_FALLS))) < FEWEST_FALLS

    def density_at(self, view: View) -> float:
        """start (f + (1 - f) (1 - t)^3) with f = final / start, for the cubic schedule (Zhu and Gupta 2017)."""
        first, last = round(self.begin_at * view.clock.n_steps), self.ends(view.clock)
        step = view.clock.step
        if step >= last:
            return view.density
        if step <= first:
            return view.start
        return view.start * SCHEDULES[self.schedule](step - first, last - first, view.density / view.start)

    def n_kept(self, view: View) -> int:
        """The number of weights after this move."""
        return n_kept_at(self.density_at(view), view.layout.n_prunable)


def n_rounds(start: float, density: float, kept_each: float, n_prunable: int) -> int:
    """How often ``kept_each`` of the weights must be kept to come from ``start`` to ``density``, both counted in weights."""
    n_final = n_kept_at(density, n_prunable)
    return next(n for n in count() if int(start * kept_each**n * n_prunable + 0.5) <= n_final)
