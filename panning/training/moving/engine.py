"""Masks that move, in any training loop: a method of ``DYNAMICS`` driven by the hooks of an optimizer.

Outside of a step, the model's parameters are always those that the next forward pass runs with (``weights``).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from panning.alive.report import MaskReport, report
from panning.foundation.errors import MaskError
from panning.foundation.wrappers import own_parameters
from panning.masks.enforce import remove_all
from panning.masks.holders import MOVERS
from panning.masks.masks import Masks, check_density, n_kept_at
from panning.training.moving.abilities import GivesSeveralNetworks, HooksNetwork, LooksAtGradients, wants_gradient
from panning.training.moving.checks import check_movement, check_parts, start_density
from panning.training.moving.hooks import OutOfGraphs
from panning.training.moving.in_shape import first_in_shape
from panning.training.moving.method import Clock, Movement
from panning.training.moving.moves import Mover, Spending
from panning.training.moving.state import Kinds, start_identity


class MovingMasks(Mover):
    """One method that moves the masks of one network under one optimizer; ``panning.move_masks`` makes it.

    Also a context manager that ends it. Pickled or deep-copied in one object with the network and the optimizer, it goes on
    with those copies; a copy of the network alone is free.

    Attributes:
        problem, method: the network with its input's shape and batches; a row's method, or one with other numbers.
        first, mask: the first and the present mask, flat bool.
        n_grown: weights that came in so far, at all moves together.
        identity: what a state must agree in to be loaded.
        clock: where the training stands.

    Examples:
        >>> import torch
        >>> import panning
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> moving = panning.move_masks(model, optimizer, "dpf", density=0.5, n_steps=100, input_shape=(8,))
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 8)).square().sum().backward()
        ...     optimizer.step()
        >>> moving.clock.step, moving.masks.density
        (100, 0.5)
        >>> with moving.shipped():  # the network as it would be given away now
        ...     int(model.weight.count_nonzero())
        16
        >>> masks = moving.finish()
    """

    def __init__(
        self,
        movement: Movement,
        optimizer: Optimizer,
        start: Tensor,
        n_steps: int,
        epoch: int,
        copied: tuple[Mapping[str, Any], Kinds] | None = None,
    ) -> None:
        """
        Args:
            movement: its problem's network, which is trained, has its dense initial weights.
            start: flat bool, the first mask, which is brought into the movement's shape.
            n_steps, epoch: as in ``Clock.schedule`` and ``Clock.epoch``.
            copied: of a copy, the state that network and optimizer are in, and the kinds of the memory that it began with.

        Raises:
            MaskError, DensityError, DataError: as ``check_movement``; or the optimizer is not of the kind.
        """
        check_density(movement.density)
        start = first_in_shape(movement, start)
        check_parts(movement, optimizer, start)
        self.clock = check_movement(movement, start, n_steps, epoch)
        self.identity = start_identity(movement, start, self.clock)
        super().__init__(movement, optimizer, start, start_density(movement, start))
        self._spending = Spending(movement.problem)
        self._of_first = self._spending.share(self.first)
        self._is_shipped = False
        self._waiting: Clock | None = None  # of a move that waits for the next forward pass
        self._is_skipped = False
        self._withheld: list[tuple[Tensor, Tensor | None]] = []  # gradients of a step that does not move the weights
        self._handles: list[Any] = []
        if copied is None:
            self.begin(self.clock)
        else:
            state, self.begun = copied
            self._take(state)
            self.weights.run(self.mask, self.clock)
        self._register()

    def _register(self) -> None:
        """The hooks: what a method is to see of a gradient, before the enforcement clears it; what follows a step, after."""
        model, optimizer = self.problem.model, self.optimizer
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        self.weights.hold(self.masks, optimizer, self)
        self._handles.append(optimizer.register_step_post_hook(self._after_step))
        if self.method.defers:
            self._handles.append(model.register_forward_pre_hook(BeforeForward(self.before_forward)))
        if isinstance(self.method, HooksNetwork):
            self.method.attach(model, self.problem, self.memory)
        torch.compiler.reset()  # graphs that are there already do not see these hooks
        MOVERS.add(self)
        self._prepare()

    # What users look at

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Those whose masks move."""
        return self.flat.parameters

    @property
    def n_steps(self) -> int:
        """Steps of the whole training: more than the schedule's for methods that go through it several times."""
        return self.clock.n_steps

    @property
    def dense_steps(self) -> float:
        """The multiply-adds of all steps so far, in steps of the dense network."""
        return self._spending.dense_steps

    @property
    def member(self) -> int | None:
        """Which of the networks that this training gives the present one may become; None before the final density."""
        n_final = n_kept_at(self.movement.density, self.problem.layout.n_prunable)
        if not self.method.has_arrived(self.clock, self.mask, n_final, self.memory):
            return None
        return self.method.member(self.clock) if isinstance(self.method, GivesSeveralNetworks) else 0

    def report(self) -> MaskReport:
        """Density, effective density, dead units and collapsed layers of the present mask."""
        return report(self.connectivity, self.mask)

    def dense_weights(self) -> dict[str, Tensor]:
        """The dense weights by name if the method keeps them beside the network's, else the network's own; copies."""
        self._adopt()
        return {name: view.clone() for name, view in self.problem.layout.views(self.weights.dense).items()}

    @contextmanager
    def shipped(self) -> Iterator[None]:
        """Within, the network is what would be shipped now: masked, where the next step runs or learns without a mask."""
        if not self.weights.may_differ or not self._handles:
            yield
            return
        self._adopt()
        now = self.flat.read()
        self.weights.write(self.weights.shipped(self.mask))
        was_shipped, self._is_shipped = self._is_shipped, True
        try:
            yield
        finally:
            self._is_shipped = was_shipped
            self.weights.write(now)

    def finish(self) -> Masks:
        """End it: the network is what is shipped, the hooks are gone; the final masks. May be called twice.

        Warns where the training has not come to its final density yet.
        """
        if self._handles and self.member is None:
            warnings.warn(
                f"Masks stopped moving after {self.clock.step} of {self.n_steps} steps, at density "
                f"{self.masks.density:.4g}, which was to become {self.movement.density:g}.",
                stacklevel=2,
            )
        self._end()
        return self.masks

    def _end(self) -> None:
        if not self._handles:
            return
        self._adopt()
        self.weights.write(self.weights.shipped(self.mask))
        remove_all(self._handles)
        self.weights.release()
        MOVERS.discard(self)

    def __enter__(self) -> MovingMasks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        self._end()

    # Checkpoints and copies

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs beside the states of model and optimizer: tensors, text and numbers.

        Raises:
            MaskError: within ``shipped()``: the state of the model would be that of what is shipped.
        """
        self._check_outside()
        self._adopt()
        return {
            "identity": self.identity, "step": self.clock.step,
            "due": None if self._waiting is None else self._waiting.step, "dense_steps": self.dense_steps,
            "n_grown": self.n_grown, "tensors": self.saved(self._waiting is not None),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``; those of model and optimizer are loaded beside it, before or after.

        Dense weights that lie beside the network's stay as they were saved, whatever is loaded into the network until the
        next step.

        Raises:
            MaskError: if it is not one of this method and network, with what differs, or within ``shipped()``; nothing
                has changed then.
        """
        if not self._handles:
            raise MaskError("These moving masks have ended; make new ones to go on.")
        self._check_outside()
        self.form(self.identity).check(state)
        self._take(state)
        self.weights.trust_loads()
        self.weights.change(self.masks)
        self.weights.run(self.mask, self.clock)
        self._prepare()

    def _check_outside(self) -> None:
        if self._is_shipped:
            raise MaskError(
                "Within shipped() the network is not the one that is trained: save and load states outside of it."
            )

    def _take(self, state: Mapping[str, Any]) -> None:
        self.take(state["tensors"], state["n_grown"])
        self.clock = replace(self.clock, step=state["step"])
        self._waiting = None if state["due"] is None else replace(self.clock, step=state["due"])
        self._spending.dense_steps = float(state["dense_steps"])

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._handles:
            raise MaskError("Moving masks that have ended cannot be copied; their masks can.")
        rest = (self.first, self.clock.schedule, self.clock.epoch, (self.state_dict(), self.begun))
        return MovingMasks, (self.movement, self.optimizer, *rest)

    # A step

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args`` start with the optimizer. A closure is run here, and the optimizer told of its loss."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            args, kwargs = args[:1], {"closure": lambda: loss}
        if (device := self.flat.device) != self.mask.device:
            raise MaskError(
                f"The network went from {self.mask.device} to {device} after its masks began to move: call move_masks when "
                "it is where it is trained."
            )
        self._look_at_gradients(optimizer)
        return args, kwargs

    @torch.no_grad()
    def _look_at_gradients(self, optimizer: Optimizer) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # a GradScaler's, of optimizers that skip the step themselves
        self._is_skipped = found_inf is not None and bool(found_inf)
        if self._is_skipped:
            return
        looks = self._looks_next()
        share_run = self.weights.share_run(self._spending.share(self.mask), self._of_first, self.clock)
        self._spending.count(share_run, self.weights.needs_whole_gradient(looks, self.clock))
        if looks:
            self.grad = self.flat.gradients()
        self.weights.before_step(self.mask, self.clock)
        if looks and isinstance(self.method, LooksAtGradients) and self.method.skips_step:
            for parameter in self.problem.model.parameters():
                self._withheld.append((parameter, parameter.grad))
                parameter.grad = None  # of which optimizers take no notice

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_skipped:
            return
        for parameter, grad in self._withheld:  # users look at their norm
            parameter.grad = grad
        if self._withheld:
            self._withheld.clear()
            self.flat.clear_gradients(self.mask)
        self.weights.after_step(self.mask, self.clock)
        self.clock = replace(self.clock, step=self.clock.step + 1)
        acts, overdue = self.method.acts(self.clock), self._waiting
        self._waiting = self.clock if acts and self.method.defers else None
        if overdue is not None:  # no forward pass came by that called the network itself
            self.move(overdue)
        elif acts and not self.method.defers:
            self.move(self.clock)
        else:
            self.weights.run(self.mask, self.clock)
        self.remember(self.clock)
        self._prepare()

    def before_forward(self, model: nn.Module) -> None:
        """Carry out the move that waits, if there is one and the network has its own parameters just now.

        A flow (what is alive?) runs the network with other tensors in its parameters' place.
        """
        runs_itself = own_parameters(model).get(self.problem.layout.names[0]) is self.parameters[0]
        if runs_itself and model is self.problem.model and (waiting := self._waiting) is not None:
            self._waiting = None
            self.move(waiting)

    def _looks_next(self) -> bool:
        """Whether the method looks at the next step's gradient."""
        return wants_gradient(self.method) and self.method.acts(replace(self.clock, step=self.clock.step + 1))

    def _prepare(self) -> None:
        """Let the next step's gradient through if the method is to see it."""
        self.weights.show_gradients(self._looks_next())

    def _adopt(self) -> None:
        if self._handles:
            self.weights.adopt(self.mask, self.clock)


class BeforeForward(OutOfGraphs):
    """The hook of a network; in a copy of the network it does nothing."""

    def __init__(self, move: Callable[[nn.Module], None] | None = None) -> None:
        self._move = None if move is None else weakref.WeakMethod(move)

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        move = None if self._move is None else self._move()
        if move is not None and torch.is_grad_enabled():
            move(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return BeforeForward, ()
