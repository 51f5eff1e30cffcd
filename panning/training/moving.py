"""Masks that move, in any training loop: a method of ``DYNAMICS`` driven by the hooks of an optimizer.

    moving = panning.move_masks(model, optimizer, "rigl", density=0.05, n_steps=10_000, input_shape=(1, 28, 28))
    ... the loop as it was ...
    moving.finish()

Outside of a step, the model's parameters are always those that the next forward pass runs with. Under feedback (DPF) the
dense weights lie aside: they are put in before the optimizer's step, which therefore decays and moves *them* by the gradient
that was taken at the masked ones, and the masked ones are put back after it. No forward pass is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from panning.connectivity import Connectivity, MaskReport, report
from panning.enforce import MaskEnforcement, check_held, enforce_masks
from panning.errors import MaskError, NonFiniteError
from panning.export.cost import multiply_adds
from panning.masks import Masks, check_masks_fit, n_kept_at
from panning.problem import Problem
from panning.pruners.all_alive import all_alive
from panning.seeding import torch_generator
from panning.training.dynamic import Clock, Dynamic, Memory, Move, View

#: In the memory: the magnitude that a masked weight had when it was last kept, by which all-alive pruning revives.
LAST = "last magnitude"
#: In the memory: the network to rewind to.
REMEMBERED = "network."


class MovingMasks:
    """One method, one network and one optimizer; see ``panning.move_masks``. Also a context manager that ends it.

    Attributes:
        method: a row's, or one with other numbers.
        clock: where the training stands.
        mask: flat bool.
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
    ) -> None:
        """
        Args:
            problem: the network, which is trained, at its dense initial weights.
            start: flat bool, the first mask.
            n_steps, epoch: as in ``Clock.schedule`` and ``Clock.epoch``.

        Raises:
            MaskError: if the method cannot come from this start to this density, or the optimizer is not of the kind.
        """
        self.problem = problem
        self.optimizer = optimizer
        self.method = method
        self.density = density
        self.all_alive = all_alive and not method.prunes_units
        self._parameters: list[Tensor] = list(
            check_masks_fit(problem.model, Masks(problem.layout, start.cpu())).values()
        )
        _check(problem, optimizer, method, density, start)
        self.start = int(start.sum()) / problem.layout.n_prunable
        self.clock = Clock(0, method.length(n_steps, self.start, density), n_steps, epoch)
        self.mask = start.to(self._parameters[0].device)
        self.memory: Memory = {}
        self.dense_steps = 0.0
        self.n_grown = 0
        self._connectivity = Connectivity.of(problem)
        self._total, by_layer = multiply_adds(problem.model, problem.input_shape, problem.layout.names)
        self._by_layer = list(by_layer.values())
        self._dense = self._read().clone() if method.holds == "feedback" else None
        self._grad: Tensor | None = None
        with torch.no_grad():
            self._put(self._view(), method.begin(self._view()))
            self._remember()
        self._handles: list[Any] = [optimizer.register_step_pre_hook(self._before_step)]
        self._enforcement: MaskEnforcement | None = None
        if method.holds == "zero" and not method.whole_state:
            self._enforcement = enforce_masks(problem.model, self.masks, optimizer)
        self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self._handles.append(problem.model.register_forward_pre_hook(self._before_forward))
        self._is_due = False
        self._prepare()
        self.attached = method.attach(problem.model, problem, self.memory)

    # What users look at

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
        if self.method.holds == "zero":
            yield
            return
        now = self._read().clone()
        self._write(self._shipped_weights())
        try:
            yield
        finally:
            self._write(now)

    def finish(self) -> Masks:
        """End it: the network is what is shipped, the hooks are gone; the final masks. May be called twice."""
        if self._handles:
            self._write(self._shipped_weights())
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            if self._enforcement is not None:
                self._enforcement.remove()
        return self.masks

    def dense_weights(self) -> dict[str, Tensor]:
        """Under feedback the dense weights by name, of others the network's own; copies."""
        flat = self._read() if self._dense is None else self._dense
        return {name: view.clone() for name, view in self.problem.layout.views(flat).items()}

    def __enter__(self) -> MovingMasks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs beside the states of model and optimizer: tensors and three numbers."""
        tensors = {"mask": self.mask, **{f"memory.{name}": tensor for name, tensor in self.memory.items()}}
        if self._dense is not None:
            tensors["dense"] = self._dense
        if self._is_due and self._grad is not None:
            tensors["grad"] = self._grad
        return {
            "tensors": {name: tensor.clone() for name, tensor in tensors.items()},
            "step": self.clock.step, "dense_steps": self.dense_steps, "n_grown": self.n_grown,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``. Load it before those of model and optimizer, whose masked places follow this mask.

        Raises:
            MaskError: if it is not one of this method and network; nothing has changed then.
        """
        tensors = dict(state["tensors"])
        size, step = self.mask.shape, state["step"]
        if type(step) is not int or not 0 <= step <= self.clock.n_steps:
            raise MaskError(f"This state is of step {step!r}, and this training has {self.clock.n_steps}.")
        clock = replace(self.clock, step=step)
        is_due = self.method.defers and step > 0 and self.method.acts(clock)
        wanted = {"mask"} | ({"dense"} if self._dense is not None else set())
        wanted |= {"grad"} if is_due and self.method.wants_gradient else set()
        flat = {name: tensor for name, tensor in tensors.items() if not name.startswith("memory.")}
        if set(flat) != wanted or any(t.shape != size for t in flat.values()) or flat["mask"].dtype != torch.bool:
            raise MaskError("This state is not one of these moving masks: it belongs to another method or network.")
        device = self.mask.device
        self.mask = tensors["mask"].to(device)
        self.memory.clear()  # in place: attached hooks hold it
        self.memory.update(
            {n.removeprefix("memory."): t.to(device) for n, t in tensors.items() if n.startswith("memory.")}
        )
        self._dense = tensors["dense"].to(device) if self._dense is not None else None
        self._grad = tensors["grad"].to(device) if "grad" in tensors else None
        self.clock, self._is_due = clock, is_due
        self.dense_steps, self.n_grown = float(state["dense_steps"]), int(state["n_grown"])
        if self._enforcement is not None:
            self._enforcement.change(self.masks)
        elif self._dense is not None:
            self._write(self._running_weights())
        self._prepare()

    # A step

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) > 1 and args[1] is not None or kwargs.get("closure") is not None:
            raise MaskError("Moving masks need a step without a closure: call backward, then step().")
        acts = self._acts_next()
        whole = self._needs_whole_gradient(acts)
        runs = 1.0 if self._runs_dense() else self._share_of_compute()
        self.dense_steps += (2.0 * runs + (1.0 if whole else runs)) / 3.0
        if acts and self.method.wants_gradient:
            self._grad = self._read_gradients()
        if self._dense is not None:
            if self.method.learns_kept_only(self.clock):
                for parameter, kept in zip(
                    self._parameters, self.problem.layout.views(self.mask).values(), strict=True
                ):
                    if parameter.grad is not None:
                        parameter.grad.masked_fill_(~kept, 0.0)
            self._write(self._dense)
        if acts and self.method.skips_step:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # of which optimizers take no notice

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        acts = self._acts_next()
        self.clock = replace(self.clock, step=self.clock.step + 1)
        if self._dense is not None:
            torch._foreach_copy_(list(self.problem.layout.views(self._dense).values()), self._parameters)
        elif self.method.whole_state:
            self._write(torch.where(self.mask, self._read(), 0.0))
        if acts and not self.method.defers:
            self._move()
        elif self._dense is not None:
            self._write(self._running_weights())
        self._is_due = acts and self.method.defers
        self._remember()
        self._prepare()

    @torch.no_grad()
    def _before_forward(self, model: nn.Module, inputs: Any) -> None:
        if self._is_due and model.training:
            self._is_due = False
            self._move()

    def _move(self) -> None:
        view = self._view()
        self._put(view, self.method.move(view))
        self._grad = None

    def _acts_next(self) -> bool:
        return self.method.acts(replace(self.clock, step=self.clock.step + 1))

    def _needs_whole_gradient(self, acts: bool) -> bool:
        if self.method.holds == "feedback":
            return not self.method.learns_kept_only(self.clock)
        return self.method.holds == "free" or self.method.whole_state or (acts and self.method.wants_gradient)

    def _prepare(self) -> None:
        """For the next step: let its gradient through if a method is to see it."""
        if self._enforcement is not None:
            self._enforcement.let_gradients_through(self.method.wants_gradient and self._acts_next())

    def _view(self) -> View:
        weight = self._read() if self._dense is None else self._dense
        if (layer := self.problem.layout.first_non_finite(weight)) is not None:
            raise NonFiniteError(
                f"Layer '{layer}' has NaN or infinite weights at step {self.clock.step}: the training diverged."
            )
        if self._grad is not None and (layer := self.problem.layout.first_non_finite(self._grad)) is not None:
            raise NonFiniteError(f"Layer '{layer}' has a NaN or infinite gradient at step {self.clock.step}.")
        return View(
            problem=replace(self.problem), clock=self.clock, start=self.start, density=self.density, weight=weight,
            mask=self.mask, grad=self._grad, learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            momentum=self._momentum, memory=self.memory,
            generator=torch_generator(self.problem.seed, "moving masks", self.clock.step),
        )  # fmt: skip

    def _put(self, view: View, move: Move) -> None:
        """Carry a move out."""
        weight = view.weight if move.weight is None else move.weight
        if move.rewind:
            remembered = {n.removeprefix(REMEMBERED): t for n, t in self.memory.items() if n.startswith(REMEMBERED)}
            self.problem.model.load_state_dict(remembered)
            weight = self._read()
        if move.rewind or move.restart:
            self.optimizer.state.clear()
        mask = self._revived(view, move) if self.all_alive else move.mask
        self.n_grown += int((mask & ~self.mask).sum())
        self.mask = mask
        if self._dense is not None:
            self._dense = weight.clone()
            self._write(self._running_weights())
        else:
            self._write(torch.where(mask, weight, 0.0))
            if self.clock.step and self._enforcement is not None:
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

    # Weights

    def _read(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])

    def _write(self, flat: Tensor) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, list(self.problem.layout.views(flat).values()))

    def _read_gradients(self) -> Tensor:
        grads = (p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters)
        return torch.cat([grad.reshape(-1) for grad in grads])

    def _momentum(self) -> Tensor:
        return torch.cat([_step_direction(self.optimizer, parameter).reshape(-1) for parameter in self._parameters])

    def _running_weights(self) -> Tensor:
        assert self._dense is not None
        if self.method.runs_whole(self.clock):
            return self._dense
        return self.method.run_weights(self._dense, self.mask, self.problem, self.memory)

    def _shipped_weights(self) -> Tensor:
        if self._dense is not None:
            return self.method.run_weights(self._dense, self.mask, self.problem, self.memory)
        return torch.where(self.mask, self._read(), 0.0)

    # Cost

    def _runs_dense(self) -> bool:
        return self.method.holds == "free" or (self._dense is not None and self.method.runs_whole(self.clock))

    def _share_of_compute(self) -> float:
        """The multiply-adds of the mask, as a share of the dense network's."""
        layout = self.problem.layout
        counts = zip(layout.counts(self.mask), layout.sizes, self._by_layer, strict=True)
        saved = sum(n_ops * (1.0 - n / size) for n, size, n_ops in counts)
        return 1.0 - saved / max(self._total, 1)


def _check(problem: Problem, optimizer: Optimizer, method: Dynamic, density: float, start: Tensor) -> None:
    if not isinstance(optimizer, Optimizer):
        raise MaskError(
            f"A {type(optimizer).__name__} is no torch.optim.Optimizer; of a trainer's wrapper pass what is inside."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MaskError(
            "LBFGS evaluates the network several times a step, which masks cannot move between; use SGD or Adam."
        )
    parameters = dict(problem.model.named_parameters())
    check_held({name: parameters[name] for name in problem.layout.names}, (optimizer,))
    check_start(problem, method, density, start)


def check_start(problem: Problem, method: Dynamic, density: float, start: Tensor) -> None:
    """Raise MaskError if the method cannot come from the flat mask ``start`` to this density."""
    n_start, n_final = int(start.sum()), n_kept_at(density, problem.layout.n_prunable)
    if method.prunes_units:
        return
    name = type(method).__name__
    if method.keeps_count and n_start != n_final:
        raise MaskError(
            f"{name} keeps the number of weights: the start has {n_start}, and density {density:g} is {n_final}. Start from "
            "a mask of that density, or take a method whose density falls (gmp, dpf, granet)."
        )
    if n_start < n_final:
        raise MaskError(
            f"{name} starts from {n_start} weights, and density {density:g} is {n_final}: start from a mask that keeps more."
        )


def _step_direction(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """The running mean of gradients, as the optimizer steps along it."""
    state = optimizer.state.get(parameter, {})
    if (buffer := state.get("momentum_buffer")) is not None:
        return buffer.detach()
    if "exp_avg" in state and "exp_avg_sq" in state:
        mean: Tensor = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
        return mean
    if not parameter.requires_grad:
        return torch.zeros_like(parameter)  # a frozen one
    raise MaskError(
        "This method grows where the optimizer's momentum is largest, and it keeps none: use SGD with momentum or Adam."
    )
