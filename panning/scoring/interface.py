"""What of a user's batch a network is run on, what its loss is, and the ``Problem`` of both.

======================  ===================  ==========================  ==============================
batch                   the network gets     ``loss`` gets               without ``loss``
======================  ===================  ==========================  ==============================
(inputs, targets)       inputs               outputs, targets            cross-entropy
a mapping               its entries          outputs, the batch          the network's own, or
                        as keywords                                      cross-entropy with ``labels``
any, with ``forward``   what ``forward``     what ``forward`` returns,   the same; of a pair,
                        passes on            the batch                   cross-entropy with the targets
======================  ===================  ==========================  ==============================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from panning.data.batches import Batch, batch_source
from panning.flow import BATCH_STATISTICS, Forward, call, first_sample, outputs_of, run
from panning.foundation.errors import DataError, ForwardError, PanningError
from panning.foundation.nests import logits_of, map_tensors, told
from panning.masks.layout import Layout, check_runnable, first_layout, prunable_layout
from panning.masks.uses import unknown_parameters
from panning.scoring.losses import LABELS, Loss, default_loss, default_loss_of_batch
from panning.scoring.problem import Problem

WAY_OUT = (
    "pass forward=, a function of the model and a batch that returns what the network gives, like "
    "lambda model, batch: model(batch['image']), and loss=, a function of what it returns and the batch"
)

#: Dimensions of a convolution's weight -> the shape of its input.
SHAPES = {3: "(channels, length)", 4: "(channels, height, width)", 5: "(channels, depth, height, width)"}


def problem_of(
    model: nn.Module, layout: Layout, data: Any = None, *, input_shape: Sequence[int] | None = None,
    example_inputs: Any = None, forward: Forward | None = None, loss: Loss | None = None, seed: int = 0,
) -> Problem:  # fmt: skip
    """The problem of pruning ``model`` for a user's own data, in any of the forms above.

    Args:
        input_shape: of one input tensor, without the batch; None takes it from ``data``.
        example_inputs: in place of ``input_shape``: what the network is called with (one tensor, a tuple of positional
            inputs, a mapping of keyword inputs), or what ``forward`` takes.

    Raises:
        DataError: if a batch has none of these forms, or nothing says what the network is run on.
    """
    source = None if data is None else _Read(batch_source(data, seed), _Reader(model, forward))
    known: dict[str, Any] = {
        "loss": _loss(loss, forward),
        "forward": forward or call,
        "seed": seed,
    }
    if example_inputs is not None:
        if input_shape is not None:
            raise DataError("Pass input_shape or example_inputs, not both.")
        return Problem(model, layout, None, source, example_inputs=example_inputs, **known)
    if input_shape is not None:
        return Problem(model, layout, tuple(input_shape), source, **known)
    if source is None:
        raise DataError(
            f"Pass data, or input_shape={_shape_of_inputs(layout)}, one input without the batch: which weights are alive "
            "depends on it. A network of several inputs, or of tokens, takes example_inputs= instead."
        )
    inputs, _ = source(0)
    if isinstance(inputs, Tensor) and forward is None:
        return Problem(model, layout, tuple(inputs.shape[1:]), source, **known)
    return _with_one_sample(Problem(model, layout, None, source, example_inputs=inputs, **known))


def _shape_of_inputs(layout: Layout) -> str:
    """The form of one input, told by the weight of the first layer."""
    first = layout.shapes[0]
    return f"({first[1]},)" if len(first) == 2 else SHAPES.get(len(first), "(...)")


def layout_of(
    model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str], problem_with: Callable[[Layout], Problem]
) -> Layout:
    """The layout of what the caller's patterns leave; one pattern may stand alone, without a list around it.

    Args:
        problem_with: gives what the network is run on, where it has parameters that no kind covers.
    """
    patterns = [(names,) if isinstance(names, str) else tuple(names) for names in (include or (), exclude)]
    check_runnable(model)
    first = first_layout(model)
    example = problem_with(first).example if first is not None and unknown_parameters(model) else None
    return prunable_layout(model, None if include is None else patterns[0], patterns[1], example)


def _loss(loss: Loss | None, forward: Forward | None) -> Loss:
    if forward is None:
        return default_loss if loss is None else _OfLogits(loss)
    return loss or default_loss_of_batch


def _with_one_sample(problem: Problem) -> Problem:
    """The problem with the first sample of its example inputs where the network takes it alone.

    Raises:
        ModelError: if the network takes neither the sample nor the batch.
    """
    inputs = problem.example_inputs
    first = first_sample(inputs)
    for tried in (first, inputs) if first is not inputs else (inputs,):
        try:
            with torch.enable_grad():  # the network may take derivatives of its own
                _run(problem, problem.here(tried))
            return replace(problem, example_inputs=tried)
        except ForwardError as error:
            failed = error
    raise ForwardError(
        f"The model fails on the data ({told(inputs)}). If the network is to be called otherwise, {WAY_OUT}. {failed}"
    ) from failed


def _run(problem: Problem, inputs: Any) -> Any:
    """What the network gives, with its outputs looked for."""
    result = run(problem.model, problem.parameters(), inputs, BATCH_STATISTICS, problem.weight.dtype, problem.forward)
    outputs_of(result)
    return result


@dataclass(frozen=True, eq=False)
class _OfLogits:
    """A user's loss where the network itself is called: output objects come as their logits."""

    loss: Loss

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return self.loss(logits_of(outputs), targets)


@dataclass(frozen=True, eq=False)
class _Read:
    """Batches as problems have them."""

    raw: Any
    read: _Reader

    def __call__(self, number: int) -> Batch:
        return self.read(self.raw(number))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Says what of a user's batch is what."""

    model: nn.Module
    forward: Forward | None

    def __call__(self, batch: Any) -> Batch:
        if self.forward is not None:
            return batch, batch
        if isinstance(batch, Mapping):
            return self._mapping(batch)
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataError(
                f"A batch must be a pair (inputs, targets) or a mapping of the model's inputs, given {told(batch)}. For any "
                f"other batch {WAY_OUT}."
            )
        inputs, targets = batch
        if not isinstance(inputs, Tensor | Mapping | tuple | list):
            raise DataError(
                f"The inputs of a batch must be tensors, given {told(inputs)}: of arrays, torch.as_tensor makes tensors. "
                f"For any other {WAY_OUT}."
            )
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.dim() and targets.dim():
            _check_lengths(inputs, targets)
        return inputs, targets

    def _mapping(self, batch: Mapping[str, Any]) -> Batch:
        taken = inspect.signature(self.model.forward).parameters
        by_name = {name: p for name, p in taken.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        takes_all = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        needed = [name for name, p in by_name.items() if p.default is p.empty and name not in batch]
        unknown = [name for name in batch if name not in by_name and not takes_all]
        if needed or set(unknown) - {LABELS}:
            raise DataError(
                f"The model's forward takes {', '.join(by_name) or 'nothing by name'}, and the batch has "
                f"{', '.join(map(str, batch))}. A batch whose entries are the forward's own parameters, and '{LABELS}', is "
                f"taken as it is; for any other {WAY_OUT}."
            )
        if unknown:
            return {name: value for name, value in batch.items() if name != LABELS}, batch[LABELS]
        return batch, batch


def _check_lengths(inputs: Tensor, targets: Tensor) -> None:
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise DataError(
            f"A batch needs as many targets as inputs, given {len(inputs)} inputs and {len(targets)} targets."
        )


def check_batch(problem: Problem) -> None:
    """Say what is wrong where the model or the loss does not take the data, before a method runs into it.

    Raises:
        ModelError, DataError: with the batch, and what was raised.
    """
    inputs, targets = problem.batch(0)
    given = f"batch {told(inputs)}" if inputs is targets else f"inputs {told(inputs)}, targets {told(targets)}"
    who = "The model" if problem.forward is call else "forward"
    try:
        with torch.enable_grad():  # the network may take derivatives of its own
            outputs = map_tensors(Tensor.detach, _run(problem, inputs))
    except ForwardError as error:
        otherwise = f" If the network is to be called otherwise, {WAY_OUT}." if problem.forward is call else ""
        raise ForwardError(
            f"{who}, of {problem.weight.dtype}, fails on the data ({given}). {error}{otherwise}"
        ) from error
    try:
        value = problem.loss(outputs, targets)
        if not isinstance(value, Tensor):
            raise TypeError(f"it gives {type(value).__name__}, but must give a tensor")
    except PanningError:
        raise
    except Exception as error:
        second = "the data" if problem.forward is call else "the whole batch, which it gets as its second argument"
        raise DataError(
            f"The loss fails on outputs {told(outputs)} and {second} ({given}): {type(error).__name__}: {error}"
        ) from error
