"""What every method that changes masks while a network trains has to say; ``panning.training.moving.engine`` drives it.

A method is a few numbers and pure functions: when it acts, and which weights it then keeps. ``timing`` has the usual ways to
say when, ``selection`` the parts that say which. What few methods do besides (keep dense weights, look at gradients, repeat
the schedule, ...) is a class of ``abilities`` that the method inherits from, too.

What a method does not say is the same for all: masked weights are zero and learn nothing; a weight that is grown starts at
zero with an optimizer state of zero; a weight that is dropped and grown again in one move keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from panning.foundation.config import Config
from panning.foundation.errors import MaskError
from panning.masks.layout import Layout
from panning.masks.shape import Shaped
from panning.scoring.problem import Problem

Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
#: How masked weights behave between two moves. ``zero``: they stay 0. ``feedback``: the network runs without them, but its
#: gradients move all dense weights, from which the next mask is made. ``free``: a move zeroes them, then they learn again.
Holds = Literal["zero", "feedback", "free"]
#: Kinds of shape: ``n:m`` keeps the density of the layers that it covers fixed, ``rxc`` does not.
N_OF_M, BLOCKS = "n:m", "blocks"
#: What a method keeps from move to move, under names of its own; saved with every checkpoint. Flat tensors [n_prunable] lie
#: on the device of the weights, all others on the CPU.
Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Clock:
    """Where a training stands.

    Attributes:
        step: optimizer steps done.
        n_steps: steps of the whole training.
        schedule: steps of the recipe's schedule; fewer than ``n_steps`` if the method goes through the schedule again.
        epoch: steps of an epoch.
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
        start, density: of the mask at the start and at the end of the training. For methods that prune units: the share of
            units that each hidden layer keeps.
        hidden: names of the layers whose units may go.
        weight: the present weights; the dense ones if the method keeps them.
        grad: the gradient of the step just done at the weights that the network ran with, masked weights included; None if
            the method does not look at gradients.
        learning_rate: of the step just done.
        momentum: gives the running mean of gradients that the optimizer keeps, scaled as the optimizer steps along it.
        memory: the method's own; may be written into.
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
        revival: flat scores of masked weights; if all-alive pruning has weights to give away, the highest-scored come back.
            None takes the last known magnitude.
        rewind: put the network back to where the method remembered it, with a fresh optimizer state.
        restart: begin with a fresh optimizer state.
    """

    mask: Tensor
    weight: Tensor | None = None
    revival: Tensor | None = None
    rewind: bool = False
    restart: bool = False


class Dynamic(Config):
    """A method that changes masks while a network trains; its fields are its numbers, with the paper's defaults.

    Attributes:
        holds: how masked weights behave between two moves.
        keeps_count: the number of weights never changes.
        only_prunes: the method brings no masked weight back; all-alive pruning may.
        releases: the last mask keeps all weights; the density that is asked for is that of the masks before.
        counts_epochs: the method acts once an epoch unless ``every`` is given.
        defers: a move waits for the next forward pass with gradients, so that an evaluation between two steps sees the
            network that was trained.
        shapes: kinds of shape that its masks can move in: ``N_OF_M``, ``BLOCKS``.
        every: steps from move to move; None: an epoch.
    """

    holds: ClassVar[Holds] = "zero"
    keeps_count: ClassVar[bool] = False
    only_prunes: ClassVar[bool] = False
    releases: ClassVar[bool] = False
    counts_epochs: ClassVar[bool] = False
    defers: ClassVar[bool] = False
    shapes: ClassVar[frozenset[str]] = frozenset()

    every: Count | None = None

    @property
    def prunes_units(self) -> bool:
        """Whether whole filters and neurons go, and densities are shares of each hidden layer's units."""
        return False

    def acts(self, clock: Clock) -> bool:
        """Whether a move follows ``clock.step`` steps; after the last step only one that ends the method's work."""
        return not clock.is_over and clock.step % (self.every or clock.epoch) == 0

    def begin(self, view: View) -> Move:
        """The first mask, before the first step."""
        return Move(view.mask)

    def move(self, view: View) -> Move:
        """The next mask."""
        return Move(view.mask)

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        """Whether the mask has come to its final density, of ``n_final`` weights."""
        return int(mask.sum()) == n_final

    def check(self, clock: Clock, problem: Problem) -> None:
        """Raise MaskError if the method cannot do its work in a training of this length, DataError if it lacks data."""
        if next(self.move_steps(clock), None) is None:
            raise MaskError(f"This method would never move: {self.tempo(clock)}.")

    def move_steps(self, clock: Clock) -> Iterator[int]:
        """The steps after which the method acts, in order."""
        return (step for step in range(1, clock.n_steps + 1) if self.acts(replace(clock, step=step)))

    def tempo(self, clock: Clock) -> str:
        """For messages: how often the method acts, and what to do about it."""
        every = self.every or clock.epoch
        return f"every={every}, n_steps={clock.n_steps}; {'lower every or ' if every > 1 else ''}train longer"


@dataclass(frozen=True, eq=False)
class Movement:
    """Masks that move while a network trains.

    Attributes:
        method: the method of a row of ``DYNAMICS``, or ``make_dynamic`` with other numbers.
        problem: the network, with its input's shape and, for methods that score it, batches.
        density: at the end of the training.
        all_alive: after every move, give the budget of dead weights to the best-ranked weights that can be alive.
        shape: that every mask has, the first included: ``2:4``, ``4x1`` (``panning.masks.shape``).

    Examples:
        >>> from panning.tasks import TaskSpec, load_task
        >>> from panning.training import Movement, make_dynamic
        >>> task = load_task(TaskSpec(model="mlp", data="digits"), seed=0)
        >>> Movement(make_dynamic("dpf"), task.problem, density=0.1).all_alive
        False
    """

    method: Dynamic
    problem: Problem
    density: float
    all_alive: bool = False
    shape: str | None = None

    @cached_property
    def shaped(self) -> Shaped | None:
        """The layers that the shape covers, if there is one."""
        return None if self.shape is None else Shaped.of(self.problem.model, self.problem.layout, self.shape)
