"""Masks that move, in any training loop: a method of ``DYNAMICS`` driven by the hooks of an optimizer.

    moving = panning.move_masks(model, optimizer, "rigl", density=0.05, n_steps=10_000, input_shape=(1, 28, 28))
    ... the loop as it was ...
    moving.finish()

Outside of a step, the model's parameters are always those that the next forward pass runs with. Under feedback (DPF) the
dense weights lie aside: they are put in before the optimizer's step, which therefore decays and moves *them* by the gradient
that was taken at the masked ones, and the masked ones are put back after it. No forward pass is changed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from panning.alive.connectivity import Connectivity, MaskReport, report
from panning.alive.repair import all_alive
from panning.compaction.cost import multiply_adds
from panning.foundation.errors import MaskError, NonFiniteError
from panning.foundation.seeding import torch_generator
from panning.masks.enforce import MaskEnforcement, enforce_masks, remove_all
from panning.masks.holders import MOVERS
from panning.masks.masks import Masks, check_density, n_kept_at
from panning.scoring.problem import Problem
from panning.training.moving.checks import check_movement, check_parts, start_density
from panning.training.moving.dense_weights import DenseAside
from panning.training.moving.flat import FlatParameters
from panning.training.moving.method import Clock, Dynamic, Memory, Move, View
from panning.training.moving.selection import hidden_layers
from panning.training.moving.state import LAST, MEMORY, REMEMBERED, Kinds, StateForm, kinds_of, start_identity


class MovingMasks:
    """One method, one network and one optimizer; see ``panning.move_masks``. Also a context manager that ends it.

    Pickled or deep-copied in one object with the network and the optimizer, it goes on with those copies; a copy of the
    network alone is free.

    Attributes:
        identity: what a state of another must agree in to be loaded.
        method: a row's, or one with other numbers.
        clock: where the training stands.
        first: the first mask, flat bool, before the method had its say.
        mask: the present one, flat bool.
        dense_steps: the multiply-adds of all steps so far, in steps of the dense network. A step is a forward pass, the
            gradient by the activations and that by the weights, a third each; of the last, methods that look at masked
            weights need all.
        n_grown: weights that came in so far, at all moves together.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: Optimizer,
        method: Dynamic,
        *,
        density: float,
        start: Tensor,
        n_steps: int,
        epoch: int,
        all_alive: bool = False,
        state: Mapping[str, Any] | None = None,
        begun: Kinds | None = None,
    ) -> None:
        """
        Args:
            problem: the network, which is trained, at its dense initial weights.
            start: flat bool, the first mask.
            n_steps, epoch: as in ``Clock.schedule`` and ``Clock.epoch``.
            state, begun: of a copy, whose network and optimizer are in that state, too, and whose memory began so.

        Raises:
            MaskError, DensityError, DataError: as ``check_movement``; or the optimizer is not of the kind.
        """
        check_density(density)
        self.problem = problem
        self.optimizer = optimizer
        self.method = method
        self.density = density
        self.all_alive = all_alive
        check_parts(problem, optimizer, method, start)
        self.clock = check_movement(problem, method, density, start, n_steps, epoch, all_alive)
        self.start = start_density(problem, method, start)
        self.identity = start_identity(problem, method, density, all_alive, start, self.clock)
        self._connectivity = Connectivity.of(problem)
        self._flat = FlatParameters(problem)
        few = None if problem.batches is None else problem.batches(0)[0][:1]
        self._adds = multiply_adds(problem.model, problem.input_shape, problem.layout, few)
        self.first = self.mask = start.to(self._flat.device)
        self.memory: Memory = {}
        self.dense_steps = 0.0
        self.n_grown = 0
        self._aside = DenseAside(self._flat) if method.holds == "feedback" else None
        self._is_shipped = False
        self._grad: Tensor | None = None
        self._due: Clock | None = None  # a move that waits for the next forward pass
        self._is_skipped = False
        self._put_aside: list[tuple[Tensor, Tensor | None]] = []  # gradients of a step that does not move the weights
        self._handles: list[Any] = []
        self._enforcement: MaskEnforcement | None = None
        if state is not None:
            self._take(state)
            self._run()
        self._mask_cost, self._first_cost = self._share(self.mask), self._share(self.first)
        if state is None:
            self._begin()
        self._begun = kinds_of(self.memory) if begun is None else begun
        self._register()

    @torch.no_grad()
    def _begin(self) -> None:
        view = self._view(self.clock)
        self._carry_out(view, self.method.begin(view))
        self._remember()

    def _register(self) -> None:
        """The hooks: what a method is to see of a gradient, before the enforcement clears it; what follows a step, after."""
        model, optimizer = self.problem.model, self.optimizer
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        if self.method.holds == "zero" and not self.method.whole_state:
            self._enforcement = enforce_masks(model, self.masks, optimizer)
            self._enforcement.trusts_loads = True
            # Where nobody holds this any more, the hooks of the parameters would go on with its last mask.
            weakref.finalize(self, remove_all, self._enforcement.handles).atexit = False
        self._handles.append(optimizer.register_step_post_hook(self._after_step))
        if self.method.defers:
            self._handles.append(model.register_forward_pre_hook(_BeforeForward(self)))
        self.method.attach(model, self.problem, self.memory)
        torch.compiler.reset()  # graphs that are there already do not see these hooks
        MOVERS.add(self)
        self._prepare()

    # What users look at

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Those whose masks move."""
        return self._flat.parameters

    @property
    def masks(self) -> Masks:
        """The present masks, on the CPU."""
        return Masks(self.problem.layout, self.mask.cpu())

    @property
    def n_steps(self) -> int:
        """Steps of the whole training: more than the schedule's for methods that go through it several times."""
        return self.clock.n_steps

    def report(self) -> MaskReport:
        """Density, effective density, dead units and collapsed layers of the present mask."""
        return report(self._connectivity, self.mask)

    @property
    def member(self) -> int | None:
        """Which of the networks that this training gives the present one may become; None before the final density."""
        n_final = n_kept_at(self.density, self.problem.layout.n_prunable)
        arrived = self.method.has_arrived(self.clock, self.mask, n_final, self.memory)
        return self.method.member(self.clock) if arrived else None

    @contextmanager
    def shipped(self) -> Iterator[None]:
        """Within, the network is what would be shipped now: masked, where the next step runs or learns without a mask."""
        if self.method.holds == "zero" or not self._handles:
            yield
            return
        self._adopt()
        now = self._flat.read()
        self._write(self._shipped_weights())
        was_shipped, self._is_shipped = self._is_shipped, True
        try:
            yield
        finally:
            self._is_shipped = was_shipped
            self._write(now)

    def finish(self) -> Masks:
        """End it: the network is what is shipped, the hooks are gone; the final masks. May be called twice.

        Warns where the training has not come to its final density yet.
        """
        if self._handles and self.member is None:
            warnings.warn(
                f"Masks stopped moving after {self.clock.step} of {self.n_steps} steps, at density "
                f"{self.masks.density:.4g}, which was to become {self.density:g}.",
                stacklevel=2,
            )
        self._end()
        return self.masks

    def _end(self) -> None:
        if not self._handles:
            return
        self._adopt()
        self._write(self._shipped_weights())
        remove_all(self._handles)
        if self._enforcement is not None:
            self._enforcement.remove()
        MOVERS.discard(self)

    def dense_weights(self) -> dict[str, Tensor]:
        """Under feedback the dense weights by name, of others the network's own; copies."""
        self._adopt()
        flat = self._flat.read() if self._aside is None else self._aside.dense
        return {name: view.clone() for name, view in self.problem.layout.views(flat).items()}

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
        tensors = {"mask": self.mask, **{MEMORY + name: tensor for name, tensor in self.memory.items()}}
        if self._aside is not None:
            tensors["dense"] = self._aside.dense
        if self._due is not None and self._grad is not None:
            tensors["grad"] = self._grad
        return {
            "identity": self.identity, "step": self.clock.step, "due": None if self._due is None else self._due.step,
            "dense_steps": self.dense_steps, "n_grown": self.n_grown,
            "tensors": {name: tensor.clone() for name, tensor in tensors.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``; those of model and optimizer are loaded beside it, before or after.

        Until the next step, under feedback, what is loaded into the network leaves the dense weights as they were saved.

        Raises:
            MaskError: if it is not one of this method and network, with what differs, or within ``shipped()``; nothing
                has changed then.
        """
        if not self._handles:
            raise MaskError("These moving masks have ended; make new ones to go on.")
        self._check_outside()
        self._form().check(state)
        self._take(state)
        if self._aside is not None:
            self._aside.trusts_loads = True
        self._mask_cost = self._share(self.mask)
        if self._enforcement is not None:
            self._enforcement.change(self.masks)
        self._run()
        self._prepare()

    def _check_outside(self) -> None:
        if self._is_shipped:
            raise MaskError(
                "Within shipped() the network is not the one that is trained: save and load states outside of it."
            )

    def _form(self) -> StateForm:
        n_prunable = self.mask.numel()
        fewest, most = n_kept_at(self.density, n_prunable), int(self.first.sum())
        if self.method.prunes_units:
            fewest, most = 0, n_prunable
        return StateForm(
            self.identity, n_prunable, (fewest, most), self._aside is not None,
            self.method.wants_gradient, self._begun, kinds_of(self.problem.model.state_dict()),
        )  # fmt: skip

    def _take(self, state: Mapping[str, Any]) -> None:
        tensors, device = state["tensors"], self._flat.device
        self.mask = tensors["mask"].to(device)
        self.memory.clear()  # in place: hooks of a method hold it
        for name, tensor in tensors.items():
            if name.startswith(MEMORY):
                home = device if tensor.shape == self.mask.shape else "cpu"
                self.memory[name.removeprefix(MEMORY)] = tensor.to(home)
        if self._aside is not None:
            self._aside.dense = tensors["dense"].to(device).clone()
        self._grad = tensors["grad"].to(device) if "grad" in tensors else None
        self.clock = replace(self.clock, step=state["step"])
        self._due = None if state["due"] is None else replace(self.clock, step=state["due"])
        self.dense_steps, self.n_grown = float(state["dense_steps"]), state["n_grown"]

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._handles:
            raise MaskError("Moving masks that have ended cannot be copied; their masks can.")
        rest = {
            "density": self.density, "start": self.first, "n_steps": self.clock.schedule, "epoch": self.clock.epoch,
            "all_alive": self.all_alive, "state": self.state_dict(), "begun": self._begun,
        }  # fmt: skip
        return _rebuilt, (self.problem, self.optimizer, self.method, rest)

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
        if self._flat.device != self.mask.device:
            raise MaskError(
                f"The network went from {self.mask.device} to {self._flat.device} after its masks began to move: call "
                "move_masks when it is where it is trained."
            )
        self._look_at_gradients(optimizer)
        return args, kwargs

    @torch.no_grad()
    def _look_at_gradients(self, optimizer: Optimizer) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # a GradScaler's, of optimizers that skip the step themselves
        self._is_skipped = found_inf is not None and bool(found_inf)
        if self._is_skipped:
            return
        acts = self._acts_next()
        runs = 1.0 if self._runs_whole() else self._mask_cost if self.method.holds != "free" else self._first_cost
        self.dense_steps += (2.0 * runs + (1.0 if self._needs_whole_gradient(acts) else runs)) / 3.0
        if acts and self.method.wants_gradient:
            self._grad = self._flat.gradients()
        if self._aside is not None:
            self._adopt()
            if self.method.learns_kept_only(self.clock):
                self._flat.clear_gradients(self.mask)
            self._flat.write(self._aside.dense)
        if acts and self.method.skips_step:
            for parameter in self.problem.model.parameters():
                self._put_aside.append((parameter, parameter.grad))
                parameter.grad = None  # of which optimizers take no notice

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_skipped:
            return
        for parameter, grad in self._put_aside:  # users look at their norm
            parameter.grad = grad
        if self._put_aside:
            self._put_aside.clear()
            self._flat.clear_gradients(self.mask)
        learns_kept_only = self.method.learns_kept_only(self.clock)
        self.clock = replace(self.clock, step=self.clock.step + 1)
        if self._aside is not None:
            stepped = self._flat.read()
            # Momentum and weight decay move weights without a gradient, too.
            self._aside.dense = torch.where(self.mask, stepped, self._aside.dense) if learns_kept_only else stepped
            self._aside.trusts_loads = False
        elif self.method.whole_state or self.method.holds == "free":
            self._flat.write(torch.where(self.mask if self.method.whole_state else self.first, self._flat.read(), 0.0))
        acts, overdue = self.method.acts(self.clock), self._due
        self._due = self.clock if acts and self.method.defers else None
        if overdue is not None:  # no forward pass came by that called the network itself
            self._move(overdue)
        elif acts and not self.method.defers:
            self._move(self.clock)
        else:
            self._run()
        self._remember()
        self._prepare()

    def runs_itself(self) -> bool:
        """Whether the network has its own parameters just now."""
        owner, _, name = self.problem.layout.names[0].rpartition(".")
        return getattr(self.problem.model.get_submodule(owner), name) is self._flat.parameters[0]

    @torch.no_grad()
    def before_forward(self) -> None:
        """Carry a deferred move out, if there is one."""
        if (due := self._due) is not None:
            self._due = None
            self._move(due)

    def _move(self, clock: Clock) -> None:
        view = self._view(clock)
        self._carry_out(view, self.method.move(view))
        self._grad = None

    def _share(self, mask: Tensor) -> float:
        """What a flat mask leaves of the dense network's multiply-adds."""
        return self._adds.left(mask) / max(self._adds.total, 1)

    def _acts_next(self) -> bool:
        return self.method.acts(replace(self.clock, step=self.clock.step + 1))

    def _runs_whole(self) -> bool:
        """Whether the network of the next step has all its weights."""
        return self._aside is not None and self.method.runs_whole(self.clock)

    def _needs_whole_gradient(self, acts: bool) -> bool:
        if self.method.holds == "feedback":
            return not self.method.learns_kept_only(self.clock)
        return self.method.whole_state or (acts and self.method.wants_gradient)

    def _prepare(self) -> None:
        """For the next step: let its gradient through if a method is to see it."""
        if self._enforcement is not None:
            self._enforcement.let_gradients_through(self.method.wants_gradient and self._acts_next())

    def _run(self) -> None:
        """Under feedback: let the network run with what follows from the dense weights."""
        if self._aside is not None:
            whole = self.method.runs_whole(self.clock)
            self._aside.run(self._aside.dense if whole else self._shipped_weights())

    def _write(self, flat: Tensor) -> None:
        if self._aside is None:
            self._flat.write(flat)
        else:
            self._aside.run(flat)

    def _adopt(self) -> None:
        if self._aside is not None and self._handles:
            self._aside.adopt(None if self.method.runs_whole(self.clock) else self.mask)

    def _view(self, clock: Clock) -> View:
        weight = self._flat.read() if self._aside is None else self._aside.dense
        for what, flat in (("weights", weight), ("gradients", self._grad)):
            if flat is not None and (layer := self.problem.layout.first_non_finite(flat)) is not None:
                raise NonFiniteError(
                    f"Layer '{layer}' has NaN or infinite {what} at step {clock.step}: the training diverged."
                )
        return View(
            problem=replace(self.problem), clock=clock, first=self.first, start=self.start, density=self.density,
            hidden=self._hidden, weight=weight, mask=self.mask, grad=self._grad,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            momentum=lambda: self._flat.momentum(self.optimizer), memory=self.memory,
            generator=torch_generator(self.problem.seed, "moving masks", clock.step),
        )  # fmt: skip

    @cached_property
    def _hidden(self) -> tuple[str, ...]:
        return hidden_layers(self.problem) if self.method.prunes_units else self.problem.layout.names

    def _carry_out(self, view: View, move: Move) -> None:
        """Let a move's mask, weights and optimizer state be the present ones."""
        weight = view.weight if move.weight is None else move.weight
        if move.rewind:
            remembered = {n.removeprefix(REMEMBERED): t for n, t in self.memory.items() if n.startswith(REMEMBERED)}
            if not remembered:
                raise MaskError(
                    "There is no network to rewind to: this state was saved before the step it goes back to."
                )
            self.problem.model.load_state_dict(remembered)
            weight = self._flat.read()
        if move.rewind or move.restart:
            for parameter in self.problem.model.parameters():
                self.optimizer.state.pop(parameter, None)
        mask = self._revived(view, move) if self.all_alive else move.mask
        is_new = not torch.equal(mask, self.mask)
        if is_new:
            self.n_grown += int((mask & ~self.mask).sum())
            self.mask = mask
            self._mask_cost = self._share(mask)
        if self._aside is not None:
            self._aside.dense = weight.clone()
            self._run()
            return
        self._flat.write(torch.where(mask, weight, 0.0))
        if is_new and self._enforcement is not None:
            self._enforcement.change(self.masks)

    def _revived(self, view: View, move: Move) -> Tensor:
        """The move's mask without dead weights: their budget goes to the best of the others that can be alive."""
        magnitude = view.weight.abs().float()
        revival = move.revival
        if revival is None and self.method.holds == "zero":  # the weight itself is 0 by now
            self.memory[LAST] = torch.where(view.mask, magnitude, self.memory.get(LAST, magnitude))
            revival = self.memory[LAST]
        scores = magnitude if revival is None else torch.where(move.mask, magnitude, revival.float())
        return all_alive(self._connectivity, move.mask, scores)

    def _remember(self) -> None:
        if self.method.remembers(self.clock):
            for name, tensor in self.problem.model.state_dict().items():
                self.memory[REMEMBERED + name] = tensor.clone()

    def _shipped_weights(self) -> Tensor:
        if self._aside is not None:
            return self.method.run_weights(self._aside.dense, self.mask, self.problem, self.memory)
        return torch.where(self.mask, self._flat.read(), 0.0)


class _BeforeForward:
    """The hook of a network; in a copy of the network it does nothing."""

    def __init__(self, moving: MovingMasks | None = None) -> None:
        self._moving = None if moving is None else weakref.ref(moving)

    @torch.compiler.disable
    def __call__(self, model: nn.Module, inputs: Any) -> None:
        moving = None if self._moving is None else self._moving()
        # A flow (what is alive?) runs the network with other tensors in its parameters' place.
        if moving is not None and torch.is_grad_enabled() and moving.problem.model is model and moving.runs_itself():
            moving.before_forward()

    def __reduce__(self) -> tuple[Any, ...]:
        return _BeforeForward, ()


def _rebuilt(problem: Problem, optimizer: Optimizer, method: Dynamic, rest: dict[str, Any]) -> MovingMasks:
    return MovingMasks(problem, optimizer, method, **rest)
