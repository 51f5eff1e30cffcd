"""Problem: a network with its initial weights, its loss and its scoring batches; what every pruner and episode works on.
``Scoring`` is beside it: what one method does otherwise than another when it scores the same problem.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from panning.data.batches import Batch, BatchSource
from panning.flow import Example, Forward, call, first_sample
from panning.foundation.device import device_of, scoring_device
from panning.foundation.errors import DataError
from panning.foundation.nests import map_tensors
from panning.foundation.seeding import torch_generator
from panning.foundation.wrappers import own_parameters
from panning.masks.layout import (
    Kind,
    Layout,
    by_unit,
    from_units,
    prunable_layout,
    prunable_parameters,
    taps_and_groups,
)
from panning.scoring.losses import Loss, default_loss


@dataclass(frozen=True, eq=False)
class Problem:
    """A network to prune, with the loss and the batches that score it.

    All random numbers derive from ``seed`` by named streams, so that equal problems give equal masks.

    Attributes:
        model: the network at its initial weights; it is never changed.
        layout: the network's prunable parameters.
        input_shape: of one input, without the batch; None where the network takes no lone tensor.
        batches: the scoring batch of a round; None if the methods in use need no data.
        loss: a scalar from what the network gives, logits [batch, classes] in simple cases, and targets.
        seed: of this pruning run.
        initial: flat initial weights in place of the model's own.
        forward: how the network is called with the inputs of a batch.
        example_inputs: of a batch, where there is no ``input_shape``.
    """

    model: nn.Module
    layout: Layout
    input_shape: tuple[int, ...] | None
    batches: BatchSource | None
    loss: Loss = default_loss
    seed: int = 0
    initial: Tensor | None = None
    forward: Forward = call
    example_inputs: Any = None

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...], batches: BatchSource | None, **rest: object) -> Problem:
        """The problem of pruning all prunable parameters of ``model`` (``prunable_layout``)."""
        layout = prunable_layout(model, example=Example.of_shape(model, input_shape))
        return cls(model, layout, tuple(input_shape), batches, **rest)  # type: ignore[arg-type]

    @cached_property
    def weight(self) -> Tensor:
        """The dense initial weights, flat [n_prunable], detached; of a complex one its magnitude."""
        if self.initial is not None:
            return self.initial
        named = own_parameters(self.model)
        return self.layout.flatten(
            {name: at_least_float32(magnitude_of(named[name].detach())) for name in self.layout.names}
        )

    @cached_property
    def complex_layers(self) -> tuple[str, ...]:
        """The prunable parameters whose weights are complex."""
        named = own_parameters(self.model)
        return tuple(name for name in self.layout.names if named[name].is_complex())

    @cached_property
    def where_scored(self) -> Problem:
        """This problem, or a copy of it where its device lacks what scores need (``scoring_device``)."""
        device = device_of(self.model)
        if (place := scoring_device(device)) == device:
            return self
        initial = None if self.initial is None else self.initial.to(place)
        return replace(self, model=copy.deepcopy(self.model).to(place), initial=initial)

    @cached_property
    def _kinds(self) -> dict[str, tuple[Kind, nn.Module]]:
        return prunable_parameters(self.model, self.layout.found)

    def by_unit(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts [output units, weights into each] of a flat tensor, by parameter; whichever axis is the output's."""
        return {name: self.units_of(name, view) for name, view in self.layout.views(flat).items()}

    def units_of(self, name: str, view: Tensor) -> Tensor:
        """One parameter's tensor as [output units, weights into each]."""
        return by_unit(view, *self._kinds[name])

    def taps_and_groups(self, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many weights lie between two units, and how many groups of units have inputs of their own."""
        return taps_and_groups(*self._kinds[name], shape)

    def from_units(self, parts: Mapping[str, Tensor]) -> Tensor:
        """``by_unit`` undone: flat."""
        views = self.layout.views(self.weight)
        return self.layout.flatten({n: from_units(part, views[n], *self._kinds[n]) for n, part in parts.items()})

    @cached_property
    def absolute(self) -> Tensor:
        """|w| in float64, flat: what every SynFlow round starts from."""
        return self.weight.double().abs()

    @cached_property
    def noise(self) -> Tensor:
        """One uniform draw in [0, 1) per weight, flat; fixed for the whole run, so that random masks are nested."""
        generator = torch_generator(self.seed, "noise")
        return torch.rand(self.layout.n_prunable, generator=generator, dtype=torch.float64).to(self.weight.device)

    @cached_property
    def at_dense(self) -> dict[str, dict[str, Tensor]]:
        """What passes over the dense network have given, for the episodes that begin there (``Signals``)."""
        return {}

    @cached_property
    def at_target(self) -> dict[tuple[str, float], Sequence[int]]:
        """The layers' counts that sources of quotas gave at a density, for the episodes that end there."""
        return {}

    def source(self, asked_by: str) -> BatchSource:
        """The scoring batches, for what scores with a loss.

        Raises:
            DataError: if the problem has no data.
        """
        if self.batches is None:
            raise DataError(f"{asked_by} scores with a loss and needs data: pass a batch, a DataLoader or a Dataset.")
        return self.batches

    def batch(self, number: int) -> Batch:
        """The scoring batch of round ``number``.

        Raises:
            DataError: if the problem has no data.
        """
        inputs, targets = self.source("This method")(number)
        here = self.here(inputs)
        if inputs is targets:  # a batch that only the user's own functions take apart
            return here, here
        device = device_of(self.model)
        return here, map_tensors(lambda tensor: tensor.to(device), targets)

    def here(self, inputs: Any) -> Any:
        """Inputs where the network is, in the precision that it is scored in."""
        device = device_of(self.model)
        return map_tensors(lambda tensor: at_least_float32(tensor.to(device)), inputs)

    def parameters(self) -> dict[str, Tensor]:
        """All parameters, as they are scored; complex ones as they are."""
        named = own_parameters(self.model)
        as_they_are = {name: named[name].detach() for name in self.complex_layers}
        return {**self.other_parameters(), **self.layout.views(self.weight), **as_they_are}

    def other_parameters(self) -> dict[str, Tensor]:
        """The parameters that are not prunable (biases, norms), detached."""
        masked = set(self.layout.names)
        return {n: at_least_float32(p.detach()) for n, p in own_parameters(self.model).items() if n not in masked}

    @cached_property
    def example(self) -> Example:
        """What the network is run on where only its paths matter."""
        if self.example_inputs is not None:
            return Example(self.example_inputs, self.forward)
        return Example.of_shape(self.model, self.input_shape or (), self.forward)

    @property
    def real_example(self) -> Example:
        """The first sample of the data, where there are any, in place of ``example``."""
        if self.batches is None or self.example_inputs is not None:
            return self.example
        return Example(first_sample(self.batches(0)[0]), self.forward)


@dataclass(frozen=True)
class Scoring:
    """How a method scores a problem, in all its rounds.

    Attributes:
        temperature: the logits are divided by it before the loss (GraSP's release uses 200).
        batch_statistics: score BatchNorm by the statistics of the batch; without, by its running ones, which change
            nothing in a fresh network (SNIP's release).
        loss: in place of the problem's.
        same_batch: every round, and every step inside one, scores the first batch.
        linear_paths: sum paths through the linearised network; without, take the network as it is in evaluation mode, with
            absolute values of all parameters: biases count, and norms shift and scale (SynFlow's release).
        dense_loss: take the loss and its derivatives at the dense network, as the Panning authors do for SNIP and GraSP;
            what needs no data stays at the mask.
    """

    temperature: float = 1.0
    batch_statistics: bool = True
    loss: Loss | None = None
    same_batch: bool = False
    linear_paths: bool = True
    dense_loss: bool = False


#: As the problem says: its own loss at the mask, a new batch in every round.
PLAIN = Scoring()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Networks of half precision are scored in float32: a gradient's derivative underflows in 16 bits."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def magnitude_of(tensor: Tensor) -> Tensor:
    return tensor.abs() if tensor.is_complex() else tensor
