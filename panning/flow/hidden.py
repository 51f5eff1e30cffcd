"""What hides a part of the forward pass from a flow, and how the flow sees it all the same.

- Activation checkpointing runs a part again in the backward pass, when the flow is over: in a flow it runs plainly, once.
- An ``autograd.Function`` of the network's own has a backward pass that knows no rules. Where a loss is taken, the rules
  stay out of its forward pass: forward and backward are the user's. Where paths are followed, its forward pass is code like
  any other and runs under the rules, with a backward pass that belongs to it; a function that acts element by element is an
  activation, whatever its code says.
- ``torch.func.vmap`` wraps tensors, so that nothing tells activations from constants: along paths it is a loop.
- ``torch.compile`` runs code of its own: in a flow the network's code runs uncompiled.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from panning.flow.factors import Gate, depends, gate_of, in_place_of, marked
from panning.flow.following import Following, Rule
from panning.flow.probes import value_at_zero
from panning.foundation.errors import ModelError, PanningError
from panning.foundation.torch_private import HIDING, batched_inputs, batched_outputs


class _Here(threading.local):
    """The flow of this thread; another thread's network runs as it is."""

    flow: Following | None = None


_here = _Here()
_lock = threading.Lock()
_n_flows = 0


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """What ``torch.compile`` stands before runs as it is written."""
    # Nothing is compiled where its package was never imported, and to import it takes seconds.
    compiles = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()


@contextlib.contextmanager
def in_the_open(flow: Following) -> Iterator[None]:
    """Stand-ins for what hides, while a flow runs."""
    global _n_flows
    with _lock:
        _n_flows += 1
        if _n_flows == 1:
            for name, (owner, attribute) in HIDING.items():
                setattr(owner, attribute, STAND_INS[name])
    before, _here.flow = _here.flow, flow
    try:
        with uncompiled():
            yield
    finally:
        _here.flow = before
        with _lock:
            _n_flows -= 1
            if _n_flows == 0:
                for name, (owner, attribute) in HIDING.items():
                    if ORIGINALS[name] is None:
                        delattr(owner, attribute)
                    else:
                        setattr(owner, attribute, ORIGINALS[name])


#: What stood in each place; None where the attribute was inherited.
ORIGINALS = {name: vars(owner).get(attribute) for name, (owner, attribute) in HIDING.items()}


# --- activation checkpointing ---


class _Plainly:
    """In place of torch.utils.checkpoint.CheckpointFunction, the reentrant form."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if _here.flow is None:
            return ORIGINALS["reentrant"].apply(function, preserve_rng_state, *args)
        return function(*args)


def _enter(hooks: Any) -> None:
    """In place of the entry into hooks that keep nothing of a checkpointed part, the form that is not reentrant."""
    if _here.flow is None:
        super(type(hooks), hooks).__enter__()


def _exit(hooks: Any, *raised: Any) -> None:
    if _here.flow is None:
        super(type(hooks), hooks).__exit__(*raised)


# --- autograd.Function ---


def _lookup(cls: type[torch.autograd.Function], name: str) -> Any:
    """In place of the look-up of attributes of a Function's class: torch's core looks up its methods when it is applied."""
    found, flow = type.__getattribute__(cls, name), _here.flow
    if name not in ("forward", "setup_context") or flow is None or not flow.is_on or flow.inside is not None:
        return found
    if cls.__module__ == torch.utils.checkpoint.__name__:
        return found  # until torch 2.9, checkpointing keeps its inputs by a function that computes nothing
    setup = type.__getattribute__(cls, "setup_context")
    separate = setup is not vars(torch.autograd.Function.__base__)["setup_context"].__func__
    if name == "setup_context" and not separate:
        return found  # by which torch's core tells the two ways to write a Function
    function = _Own(flow, cls.__qualname__, type.__getattribute__(cls, "forward"), setup if separate else None)
    return function.forward if name == "forward" else function.setup_context


class _Own:
    """An ``autograd.Function`` of the network's own in a flow."""

    def __init__(
        self, flow: Following, name: str, forward: Callable[..., Any], setup: Callable[..., Any] | None
    ) -> None:
        self.flow, self.name, self.own_forward, self.setup = flow, name, forward, setup

    def forward(self, *args: Any) -> Any:
        if not self.flow.paths:
            with self.flow.within(args):
                result = self.own_forward(*args)
            if self.setup is None:
                self._guard(args[0])
            return result
        if self.setup is not None:
            result, self.flow.pending = self._opened(args)
            return result
        result, finish = self._opened(args[1:])
        finish(args[0])
        return result

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        assert self.setup is not None  # else torch's core does not call
        if self.flow.paths:
            self.flow.pending(ctx)
        else:
            with self.flow.within(inputs):
                self.setup(ctx, inputs, output)
            self._guard(ctx)

    def _guard(self, ctx: Any) -> None:
        """Let a backward pass that cuts its graph say so where a derivative of it is to be taken."""
        node: Any = ctx
        if not isinstance(ctx, BackwardCFunction):
            return

        def backward(*grads: Any) -> Any:
            found = type(ctx).apply(ctx, *grads)
            if torch.is_grad_enabled() and any(depends(grad) for grad in grads):
                for made in found if isinstance(found, tuple) else (found,):
                    if isinstance(made, Tensor) and not made.requires_grad and bool(made.any()):
                        raise NotImplementedError(
                            f"a second derivative of '{self.name}', whose backward pass cuts its graph, is not implemented"
                        )
            return found

        node.apply = backward

    def _run(self, args: tuple[Any, ...]) -> tuple[Any, FunctionCtx]:
        """The result of the forward pass as it is written, and what it has noted."""
        ctx: Any = FunctionCtx()
        ctx.needs_input_grad = tuple(depends(x) for x in args)
        if self.setup is None:
            return self.own_forward(ctx, *args), ctx
        result = self.own_forward(*args)
        self.setup(ctx, args, result)
        return result, ctx

    def _opened(self, args: tuple[Any, ...]) -> tuple[Any, Callable[[Any], None]]:
        """The result under the flow's rules, and what gives the graph's node its backward pass."""
        flow, numbers = self.flow, [i for i, x in enumerate(args) if depends(x)]
        weights = [i for i, x in enumerate(args) if depends(x) or id(x) in flow.names]
        at_zero = self._activation(args, weights[0]) if len(weights) == 1 else None
        with torch.enable_grad():
            leaves = {i: args[i].detach().clone().requires_grad_() for i in numbers}
            shown = tuple(
                in_place_of(leaves[i].clone(), x) if i in leaves else x for i, x in enumerate(args)
            )  # what writes into its input may do so
            if at_zero is None:
                with flow.within(shown, opened=bool(numbers)), self._refusing():
                    result, ctx = self._run(shown)
            else:
                rule = flow.rules[torch.autograd.Function]
                result, ctx = rule(lambda x: self._run(args)[0], shown[weights[0]], at_zero), FunctionCtx()
        outputs = result if isinstance(result, tuple) else (result,)
        live = [i for i, y in enumerate(outputs) if depends(y)]
        dead = [y for y in outputs if isinstance(y, Tensor) and not depends(y) and y.is_floating_point()]
        if numbers and not live and len(dead) > len(getattr(ctx, "non_differentiable", ())):
            raise self._refused()
        dirty = {i: x for i, x in enumerate(shown) if any(x is y for y in getattr(ctx, "dirty_tensors", None) or ())}
        for i, x in dirty.items():
            args[i].copy_(x.detach())

        def given_back(y: Any) -> Any:
            number = next((i for i, x in dirty.items() if x is y), None)
            if number is not None:
                return in_place_of(args[number], y)
            return in_place_of(y.detach(), y) if depends(y) else y

        def backward(*grads: Any) -> tuple[Any, ...]:
            found = torch.autograd.grad(
                [outputs[i] for i in live], list(leaves.values()), [grads[i] for i in live], retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
            by_number = dict(zip(leaves, found, strict=True))
            return tuple(by_number.get(i) for i in range(len(args)))

        def finish(ctx: Any) -> None:
            ctx.apply = backward
            ctx.mark_non_differentiable(*dead)
            ctx.mark_dirty(*(args[i] for i in dirty))

        shown_back = tuple(given_back(y) for y in outputs)
        return shown_back if isinstance(result, tuple) else shown_back[0], finish

    def _refused(self, said: str = "") -> ModelError:
        return ModelError(
            f"The autograd.Function '{self.name}' makes its result by code that no path can be followed through (a kernel, "
            f"NumPy, detached tensors{said}). Write its forward pass with torch functions, or use such a form while masks "
            "are found."
        )

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except PanningError:
            raise
        except Exception as error:
            raise self._refused(f"; {type(error).__name__}: {error}") from error

    def _activation(self, args: tuple[Any, ...], number: int) -> float | None:
        def value(x: Tensor) -> Any:
            with torch.no_grad(), self.flow.within(args):
                return self._run((*args[:number], x, *args[number + 1 :]))[0]

        return value_at_zero(value, args[number])


# --- torch.func.vmap ---


def _vmap(
    function: Callable[..., Any], in_dims: Any, out_dims: Any, randomness: str, chunk_size: int | None, *args: Any,
    **kwargs: Any,
) -> Any:  # fmt: skip
    flow = _here.flow
    if flow is None or not flow.is_on or (flow.inside is not None and not flow.opened):
        rule = None
    else:
        rule = flow.rules.get(torch.func.vmap)
    if rule is None:
        return ORIGINALS["vmap"](function, in_dims, out_dims, randomness, chunk_size, *args, **kwargs)
    return rule(function, in_dims, out_dims, *args, **kwargs)


def looped(function: Callable[..., Any], in_dims: Any, out_dims: Any, *args: Any, **kwargs: Any) -> Any:
    """``torch.func.vmap`` as the loop that it stands for."""

    def part(x: Any, dim: int | None, i: int) -> Any:
        return x if dim is None else marked(x.select(dim, i), gate_of(x))

    n, dims, leaves, build = batched_inputs(function, in_dims, args)
    results = [
        function(*build([part(x, dim, i) for x, dim in zip(leaves, dims, strict=True)]), **kwargs) for i in range(n)
    ]
    return batched_outputs(results, out_dims, lambda parts, dim: marked(torch.stack(parts, dim), _common_gate(parts)))


def _common_gate(parts: list[Tensor]) -> Any:
    gates = {gate_of(x) for x in parts}
    return gates.pop() if len(gates) == 1 else None


# --- what follows paths through it ---


def activation(function: Callable[[Tensor], Tensor], x: Tensor, at_zero: float) -> Tensor:
    """What an ``autograd.Function`` of the network's own does element by element: what any activation does."""
    if not depends(x):
        return function(x)
    return marked(x.clone(), Gate(at_zero) if at_zero else gate_of(x))


def no_derivative(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuses a gradient that the forward pass takes."""
    raise ModelError(
        "The forward pass takes a derivative (torch.autograd.grad): paths lead from input to output, and not through "
        "derivatives. Take the derivative outside of the network."
    )


ALONG_PATHS: dict[Any, Rule] = {
    torch.autograd.Function: activation,
    torch.func.vmap: looped,
    **dict.fromkeys((torch.autograd.grad, torch.autograd.backward, Tensor.backward), no_derivative),
}
STAND_INS: dict[str, Any] = {
    "reentrant": _Plainly, "enter": _enter, "exit": _exit, "function": _lookup, "vmap": _vmap,
}  # fmt: skip
