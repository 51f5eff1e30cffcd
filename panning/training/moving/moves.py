"""The present mask, how a method's decision becomes the next one, and what the steps between cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from panning.alive.connectivity import Connectivity
from panning.alive.repair import all_alive
from panning.compaction.cost import multiply_adds
from panning.foundation.errors import MaskError, NonFiniteError
from panning.foundation.seeding import torch_generator
from panning.foundation.tensorfile import under
from panning.masks.masks import Masks, n_kept_at
from panning.scoring.problem import Problem
from panning.training.moving.abilities import (
    FollowsWholeGradient,
    KeepsDenseWeights,
    RepeatsSchedule,
    TrainsFactors,
    wants_gradient,
)
from panning.training.moving.factors import FactoredWeights
from panning.training.moving.flat import FlatParameters
from panning.training.moving.in_shape import move_in_shape, seen_in_shape
from panning.training.moving.method import Clock, Memory, Move, Movement, View
from panning.training.moving.selection import hidden_layers
from panning.training.moving.state import LAST, MEMORY, REMEMBERED, TWIN, Kinds, StateForm, kinds_of
from panning.training.moving.weights import DenseWeights, FreeWeights, WholeGradientWeights, ZeroWeights


class Mover:
    """The mask of a network that is being trained, its weights and the method's memory. Base class of ``MovingMasks``.

    Attributes:
        movement: the method, the network and the final density.
        start: density of the first mask, as in ``View``.
        flat: the network's prunable parameters.
        shaped: the layers that the movement's shape covers, if it has one.
        first: the first mask, flat bool, before the method had its say.
        mask: the present one, flat bool.
        memory: the method's.
        weights: how masked weights behave between two moves.
        grad: the gradient that the next move looks at, flat; None without one.
        n_grown: weights that came in so far, at all moves together.
        begun: the kinds of the tensors in the memory when it began.
        hidden: as in ``View``.
    """

    def __init__(self, movement: Movement, optimizer: Optimizer, first: Tensor, start: float) -> None:
        self.movement, self.optimizer, self.start = movement, optimizer, start
        self.problem, self.method = movement.problem, movement.method
        self.connectivity = Connectivity.of(movement.problem)
        self.flat = FlatParameters(movement.problem)
        self.shaped = movement.shaped
        self.first = self.mask = first.to(self.flat.device)
        self.memory: Memory = {}
        self.weights = weights_of(movement, self.flat, self.first, self.memory)
        self.grad: Tensor | None = None
        self.n_grown = 0
        self.begun: Kinds = {}
        self.hidden = hidden_layers(self.problem) if self.method.prunes_units else self.problem.layout.names

    @property
    def masks(self) -> Masks:
        """The present masks, on the CPU; their manifest has the input's shape and that of the masks."""
        input_shape = {} if self.problem.input_shape is None else {"input_shape": list(self.problem.input_shape)}
        shape = {} if self.shaped is None else self.shaped.facts()
        return Masks(self.problem.layout, self.mask.cpu(), input_shape | shape)

    @torch.no_grad()
    def begin(self, clock: Clock) -> None:
        """Make the method's first mask the present one."""
        view = self.view(clock)
        self._carry_out(view, self.method.begin(seen_in_shape(self.shaped, view)))
        self.remember(clock)
        self.begun = kinds_of(self.memory)

    @torch.no_grad()
    def move(self, clock: Clock) -> None:
        """Make the method's next mask the present one."""
        view = self.view(clock)
        self._carry_out(view, self.method.move(seen_in_shape(self.shaped, view)))
        self.grad = None

    def view(self, clock: Clock) -> View:
        """What the method sees now.

        Raises:
            NonFiniteError: if the training has diverged.
        """
        problem, weight = self.problem, self.weights.dense
        for what, flat in (("weights", weight), ("gradients", self.grad)):
            if flat is not None and (layer := problem.layout.first_non_finite(flat)) is not None:
                raise NonFiniteError(
                    f"Layer '{layer}' has NaN or infinite {what} at step {clock.step}: the training diverged."
                )
        return View(
            problem=replace(problem), clock=clock, first=self.first, start=self.start, density=self.movement.density,
            hidden=self.hidden, weight=weight, mask=self.mask, grad=self.grad,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            momentum=lambda: self.flat.momentum(self.optimizer), memory=self.memory,
            generator=torch_generator(problem.seed, "moving masks", clock.step),
        )  # fmt: skip

    def remember(self, clock: Clock) -> None:
        """Keep a copy of the network if the method goes back to it later."""
        if isinstance(self.method, RepeatsSchedule) and self.method.remembers(clock):
            for name, tensor in self.problem.model.state_dict().items():
                self.memory[REMEMBERED + name] = tensor.clone()

    def saved(self, waits: bool) -> dict[str, Tensor]:
        """Copies of the tensors that ``take`` needs.

        Args:
            waits: the next move waits for a forward pass, and the gradient with it.
        """
        tensors = {"mask": self.mask, **{MEMORY + name: tensor for name, tensor in self.memory.items()}}
        tensors |= self.weights.saved()
        if waits and self.grad is not None:
            tensors["grad"] = self.grad
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def take(self, tensors: Mapping[str, Tensor], n_grown: int) -> None:
        """Go on from what ``saved`` gave."""
        device = self.flat.device
        self.mask = tensors["mask"].to(device)
        self.memory.clear()  # in place: hooks of a method hold it
        for name, tensor in tensors.items():
            if name.startswith(MEMORY):
                home = device if tensor.shape == self.mask.shape else "cpu"
                self.memory[name.removeprefix(MEMORY)] = tensor.to(home)
        self.weights.load(tensors)
        self.grad = tensors["grad"].to(device) if "grad" in tensors else None
        self.n_grown = n_grown

    def form(self, identity: Mapping[str, Any]) -> StateForm:
        """What a state must look like to be loaded."""
        n_prunable = self.mask.numel()
        most = n_prunable if self.method.releases else int(self.first.sum())
        n_kept, saved = (n_kept_at(self.movement.density, n_prunable), most), self.weights.saved()
        return StateForm(
            identity=identity, n_prunable=n_prunable, n_kept=(0, n_prunable) if self.method.prunes_units else n_kept,
            beside=frozenset(name for name in saved if not name.startswith(TWIN)),
            n_layers=len(self.flat.parameters) if isinstance(self.method, TrainsFactors) else None,
            wants_gradient=wants_gradient(self.method), begun=self.begun,
            network=kinds_of(self.problem.model.state_dict()),
        )  # fmt: skip

    def _carry_out(self, view: View, move: Move) -> None:
        """Let a move's mask, weights and optimizer state be the present ones."""
        weight = view.weight if move.weight is None else move.weight
        if move.rewind:
            weight = self._rewound()
        if move.rewind or move.restart:
            for parameter in self.problem.model.parameters():
                self.optimizer.state.pop(parameter, None)
        mask = self._revived(view, move) if self.movement.all_alive else move.mask
        if self.shaped is not None:
            mask = move_in_shape(self.shaped, view, move, self.method.holds)
        if is_new := not torch.equal(mask, self.mask):
            self.n_grown += int((mask & ~self.mask).sum())
            self.mask = mask
        self.weights.put(weight, mask, view.clock)
        if is_new:
            self.weights.change(self.masks)

    def _rewound(self) -> Tensor:
        """Load the remembered network; returns its flat weights."""
        remembered = under(self.memory, REMEMBERED)
        if not remembered:
            raise MaskError("There is no network to rewind to: this state was saved before the step it goes back to.")
        self.problem.model.load_state_dict(remembered)
        return self.flat.read()

    def _revived(self, view: View, move: Move) -> Tensor:
        """The move's mask without dead weights: their budget goes to the best of the others that can be alive."""
        magnitude = view.weight.abs().float()
        revival = move.revival
        if revival is None and self.method.holds == "zero":  # the weight itself is 0 by now
            self.memory[LAST] = torch.where(view.mask, magnitude, self.memory.get(LAST, magnitude))
            revival = self.memory[LAST]
        scores = magnitude if revival is None else torch.where(move.mask, magnitude, revival.float())
        return all_alive(self.connectivity, move.mask, scores)


#: What the ability of a method makes of masked weights.
ABILITIES: dict[type, type[ZeroWeights]] = {
    KeepsDenseWeights: DenseWeights, TrainsFactors: FactoredWeights, FollowsWholeGradient: WholeGradientWeights,
}  # fmt: skip


def weights_of(movement: Movement, flat: FlatParameters, first: Tensor, memory: Memory) -> ZeroWeights:
    """The behaviour of masked weights that the method asks for.

    Args:
        first: the first mask, flat bool.
        memory: of the method.
    """
    found = (behaviour for ability, behaviour in ABILITIES.items() if isinstance(movement.method, ability))
    return next(found, FreeWeights if movement.method.holds == "free" else ZeroWeights)(movement, flat, first, memory)


class Spending:
    """Counts multiply-adds. A step is a forward pass, the gradient by activations and the gradient by weights, a third each.

    Attributes:
        dense_steps: the multiply-adds of all steps so far, in steps of the dense network.
    """

    def __init__(self, problem: Problem) -> None:
        self._adds = multiply_adds(problem.model, problem.real_example, problem.layout)
        self._last: tuple[Tensor, float] | None = None
        self.dense_steps = 0.0

    def share(self, mask: Tensor) -> float:
        """What a flat mask leaves of the dense network's multiply-adds; counted once while the mask stays."""
        if self._last is None or self._last[0] is not mask:
            self._last = (mask, self._adds.left(mask) / max(self._adds.total, 1))
        return self._last[1]

    def count(self, share_run: float, whole_gradient: bool) -> None:
        """Count one step.

        Args:
            share_run: of the dense network's multiply-adds.
            whole_gradient: the weight-gradient third is counted in full, for methods that read gradients of masked weights.
        """
        self.dense_steps += (2.0 * share_run + (1.0 if whole_gradient else share_run)) / 3.0
