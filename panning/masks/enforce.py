"""Masks that hold in any training loop: masked weights, their gradients and optimizer state are zero after every step.

    enforcement = panning.enforce_masks(model, masks, optimizer)

A gradient is cleared the moment backward has accumulated it: clipping, a scaler, a closure of LBFGS and the reduction of
DistributedDataParallel see none of its masked places. It is cleared again before the optimizer's step, for gradients that
came another way, and after the step the weights and every state tensor of a weight's shape are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from panning.foundation.errors import MaskError
from panning.masks.gates import INTEGERS, Gate, clear, is_plain
from panning.masks.holders import check_held, check_ranks_agree, first_moving
from panning.masks.masks import Masks, check_masks_fit


class Removable(Protocol):
    def remove(self) -> None: ...


class MaskEnforcement:
    """What keeps masked places at zero until ``remove``; ``enforce_masks`` makes it. Also a context manager.

    Nobody need hold an enforcement: the optimizers do. Pickled or deep-copied in one object with the model and the
    optimizers, as in ``copy.deepcopy((model, optimizer, enforcement))``, it enforces the mask on those copies.

    Attributes:
        parameters: the masked parameters, by name.
        handles: the handles of all hooks; empty once the enforcement has ended.
        trusts_loads: whether a loaded optimizer state stays as it is until the next step, because the mask to which the
            state belongs is about to be loaded, too.
    """

    trusts_loads = False

    def __init__(self, parameters: dict[str, nn.Parameter], masks: Masks, optimizers: tuple[Optimizer, ...]) -> None:
        self.parameters = parameters
        self.masks = masks
        self.optimizers = optimizers
        self._gates = {parameter: Gate(masks[name]) for name, parameter in parameters.items()}
        # The hook of a parameter holds its gate alone: one that led back to the parameter would keep it alive for ever.
        self.handles: list[Removable] = [
            _hooked(parameter, gate.on_gradient) for parameter, gate in self._gates.items() if _may_learn(parameter)
        ]
        for optimizer in optimizers:
            self.handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
                optimizer.register_load_state_dict_post_hook(self._after_load),
            ]
            self._after_step(optimizer)
        self._clear_weights()
        self._clear_gradients()

    def change(self, masks: Masks) -> None:
        """Enforce another mask of the same parameters; newly masked weights, gradients and states are zeroed at once."""
        self.masks = masks
        for name, parameter in self.parameters.items():
            self._gates[parameter].change(masks[name])
        self._clear_weights()
        self._clear_gradients()
        for optimizer in self.optimizers:
            self._after_step(optimizer)

    def let_gradients_through(self, through: bool) -> None:
        """Whether gradients stay whole until the next step, for a method that looks at gradients of masked weights."""
        for gate in self._gates.values():
            gate.is_open = through

    def _after_load(self, optimizer: Optimizer) -> None:
        if not self.trusts_loads:
            self._after_step(optimizer)

    def remove(self) -> None:
        """End it: from now on masked weights may learn."""
        remove_all(self.handles)
        self._gates.clear()
        self.parameters = {}

    def __enter__(self) -> MaskEnforcement:
        if not self.handles:
            raise MaskError("This enforcement has ended and would let masked weights learn; call enforce_masks again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __reduce__(self) -> tuple[Any, ...]:
        # Hooks do not travel; the copy registers its own.
        return MaskEnforcement, (self.parameters, self.masks, self.optimizers)

    def _clear_weights(self) -> None:
        clear([(parameter, gate) for parameter, gate in self._gates.items()])

    def _clear_gradients(self) -> None:
        plain = []
        with torch.no_grad():
            for parameter, gate in self._gates.items():
                if parameter.grad is not None and is_plain(parameter.grad):
                    plain.append((parameter.grad, gate))
                else:
                    gate.clear_grad(parameter)
        clear(plain)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Clear the gradients, and again when the closure has computed them; ``args`` start with the optimizer."""
        self._clear_gradients()
        if len(args) > 1 and callable(args[1]):
            args = (args[0], partial(self._evaluate, args[1]), *args[2:])
        elif callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": partial(self._evaluate, kwargs["closure"])}
        return args, kwargs

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        self._clear_gradients()
        return loss

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        """Zero the masked weights and their state, including what the optimizer made of 0 / 0."""
        clear(
            [
                (tensor, gate)
                for parameter, gate in self._gates.items()
                for tensor in (parameter, *_state_like(parameter, optimizer))
            ]
        )
        if isinstance(optimizer, torch.optim.LBFGS) and self._leaks(optimizer):
            # Curvature that was measured along masked weights: LBFGS begins again, as at its first step.
            optimizer.state.clear()

    def _leaks(self, optimizer: torch.optim.LBFGS) -> bool:
        """Whether one of the state's flat vectors, all parameters in a row, is not zero where masked."""
        owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept = [self._gates[p].mask if p in self._gates else torch.ones(p.shape, dtype=torch.bool) for p in owned]
        masked = ~torch.cat([mask.flatten() for mask in kept]).to(owned[0].device)
        values = optimizer.state[owned[0]].values()
        flat = (tensor for value in values for tensor in (value if isinstance(value, list) else [value]))
        return any(isinstance(t, Tensor) and t.shape == masked.shape and bool(t[masked].any()) for t in flat)


def enforce_masks(model: nn.Module, masks: Masks, optimizer: Optimizer | Iterable[Optimizer] = ()) -> MaskEnforcement:
    """Keep masked weights at zero: now, and after every step of ``optimizer``, in any training loop.

    Call it once optimizer and model are made; where torch.distributed runs, on every rank. No key of a ``state_dict``
    changes. The mask follows the model to other devices and types, and takes 4 bytes a float32 weight there. An optimizer
    that has run before loses its state of masked weights.

    The hooks belong to this model and this optimizer. A copy of the model alone, as ``copy.deepcopy``, pickle or a running
    average make it, holds the zeros but no hooks: call ``enforce_masks`` again to train it. The masked places of loaded
    weights are cleared when the optimizer's state is loaded, or at the next step.

    Args:
        model: bare, or inside DistributedDataParallel, ``torch.compile`` and the like.
        optimizer: one or several, which together hold every masked parameter that is to learn. Left away for evaluation:
            masked weights and gradients are zero, but what an optimizer does to them afterwards is not looked after.

    Raises:
        MaskError: if the mask belongs to another network, a masked parameter is in no optimizer, the ranks of a
            distributed training hold different masks, masks of the network move (``move_masks``), or an argument is of
            another kind. Nothing has changed then.

    Examples:
        >>> import torch
        >>> import panning
        >>> model = torch.nn.Linear(4, 4)
        >>> masks = panning.prune(model, input_shape=(4,), density=0.25, method="magnitude")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> enforcement = panning.enforce_masks(model, masks, optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2, 4)).square().sum().backward()
        ...     optimizer.step()
        >>> int(model.weight.count_nonzero())
        4
        >>> enforcement.remove()  # from now on all weights learn
    """
    if not isinstance(masks, Masks):
        raise MaskError(
            f"masks is a {type(masks).__name__}; of a dict of tensors, panning.Masks.from_tensors makes masks."
        )
    check_ranks_agree(masks)  # first: a rank that stopped at another error would leave the others waiting
    optimizers = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    if wrong := [one for one in optimizers if not isinstance(one, Optimizer)]:
        raise MaskError(
            f"A {type(wrong[0]).__name__} is no torch.optim.Optimizer; pass the optimizer itself or a list of several, "
            "of a trainer's wrapper what is inside."
        )
    parameters = check_masks_fit(model, masks)
    if wide := [name for name, parameter in parameters.items() if parameter.element_size() not in INTEGERS]:
        raise MaskError(f"'{wide[0]}' is {parameters[wide[0]].dtype}, whose numbers are too wide; use torch.complex64.")
    if optimizer != ():
        check_held(parameters, optimizers)
    if (name := first_moving(parameters)) is not None:
        raise MaskError(
            f"The mask of '{name}' moves: move_masks keeps masked weights at zero itself, and what finish() gives can be "
            "enforced."
        )
    return MaskEnforcement(parameters, masks, optimizers)


def remove_all(handles: list[Removable]) -> None:
    """Remove these hooks, and forget them."""
    for handle in handles:
        handle.remove()
    handles.clear()


def clear_gradient(parameter: Tensor, mask: Tensor) -> None:
    """Zero the masked gradient of one parameter."""
    Gate(mask).clear_grad(parameter)


def _may_learn(parameter: nn.Parameter) -> bool:
    """Whether a parameter has gradients, or would have if it were no longer frozen."""
    return parameter.requires_grad or (parameter.is_floating_point() and not parameter.is_inference())


def _hooked(parameter: nn.Parameter, hook: Callable[[Tensor], None]) -> Removable:
    """Hook a parameter, a frozen one too: it may be set free later, and torch hooks only what learns."""
    learns = parameter.requires_grad
    try:
        return parameter.requires_grad_().register_post_accumulate_grad_hook(hook)
    finally:
        parameter.requires_grad_(learns)


def _state_like(parameter: Tensor, optimizer: Optimizer) -> Iterator[Tensor]:
    """State tensors with one value a weight. The state of a scalar is left alone: a step counter has the same shape."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape:
            yield value
