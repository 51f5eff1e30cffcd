"""What few methods do besides moving masks: a class for each ability, which the method inherits from beside ``Dynamic``.

``panning.training`` asks for abilities by ``isinstance``; a method without one need not know of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from panning.scoring.problem import Problem
from panning.training.moving.method import Clock, Dynamic, Holds, Memory
from panning.training.recipe import Recipe


class KeepsDenseWeights:
    """Keeps dense weights beside those that the network runs with; gradients move the dense ones (feedback)."""

    holds: ClassVar[Holds] = "feedback"

    def run_weights(self, weight: Tensor, mask: Tensor, problem: Problem, memory: Memory) -> Tensor:
        """The flat weights that the network runs with and that are shipped, made from the dense ones."""
        return torch.where(mask, weight, 0.0)

    def learns_kept_only(self, clock: Clock) -> bool:
        """Whether the next step moves kept weights only; the gradient of the others is then 0."""
        return False

    def runs_whole(self, clock: Clock) -> bool:
        """Whether the next step runs with the dense weights."""
        return False


class TrainsWholeNetwork(KeepsDenseWeights):
    """Trains the network with its dense weights to work, too (``runs_whole``); the result holds both networks."""


class TrainsFactors(ABC):
    """Trains every kept weight as a product of two factors, which every move makes anew; the network runs with products."""

    @abstractmethod
    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of flat weights."""


class LooksAtGradients:
    """Is given the gradient of the step before a move, masked weights included.

    Attributes:
        skips_step: that step does not move the weights.
    """

    skips_step: ClassVar[bool] = False

    @property
    def wants_gradient(self) -> bool:
        """Whether it looks with its present numbers."""
        return True


class FollowsWholeGradient:
    """Lets the optimizer follow the whole gradient: masked weights have momentum, though they stay zero."""


class SetsLearningRate(ABC):
    """Has a schedule of learning rates of its own."""

    @abstractmethod
    def learning_rate(self, recipe: Recipe, step: int, n_steps: int) -> float:
        """The rate of ``step``, counted from 0, where the recipe's schedule has ``n_steps``."""


class RepeatsSchedule(SetsLearningRate):
    """Goes through the recipe's schedule several times, and may put the network back to where it was in the first."""

    @abstractmethod
    def length(self, n_steps: int, start: float, density: float, n_prunable: int) -> int:
        """Steps of the whole training, where the recipe's schedule has ``n_steps``; densities as in ``View``."""

    def remembers(self, clock: Clock) -> bool:
        """Whether ``Move.rewind`` goes back to the network as it is now."""
        return False


class GivesSeveralNetworks(ABC):
    """Gives several networks in one training."""

    @abstractmethod
    def member(self, clock: Clock) -> int | None:
        """The network that the present one is a candidate for; None for none. Asked only at the final density."""


class HooksNetwork(ABC):
    """Changes the network's forward pass by hooks, which stay when the training has ended."""

    @abstractmethod
    def attach(self, model: nn.Module, problem: Problem, memory: Memory) -> None:
        """Put the hooks on; called once the memory is there."""


def length_of(method: Dynamic, n_steps: int, start: float, density: float, n_prunable: int) -> int:
    """Steps of the whole training, where the recipe's schedule has ``n_steps``."""
    return method.length(n_steps, start, density, n_prunable) if isinstance(method, RepeatsSchedule) else n_steps


def wants_gradient(method: Dynamic) -> bool:
    return isinstance(method, LooksAtGradients) and method.wants_gradient
