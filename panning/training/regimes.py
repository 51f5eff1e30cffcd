"""Three ways to train a network: dense, under a fixed mask, or with moving masks.

The training loop is the same for all. It steps the regime's ``network`` with the regime's ``optimizer`` and asks the regime
for everything in which they differ.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from panning.compaction.compaction import CompactResult, compact
from panning.compaction.cost import cost, multiply_adds_left
from panning.compaction.image_format import adds_parts
from panning.foundation.errors import ModelError
from panning.foundation.modes import as_it_was
from panning.foundation.seeding import isolated_torch_rng
from panning.masks.enforce import enforce_masks
from panning.masks.masks import Masks
from panning.training.moving.abilities import SetsLearningRate, TrainsWholeNetwork
from panning.training.moving.engine import MovingMasks
from panning.training.moving.method import Movement
from panning.training.recipe import Plan, Recipe, learning_rate_at
from panning.training.result import Entry

#: Making a network compact takes about as long as twenty of its steps, and narrow layers do fewer multiply-adds a second.
COMPACT_FROM_STEPS, COMPACT_BELOW = 100, 0.8
#: Adding parts of the units takes time, too. A compact ResNet-20 with 0.35 of its multiply-adds left takes 0.7 of the dense
#: network's time in bfloat16, and with 0.55 of them 0.9.
COMPACT_BELOW_IN_PARTS = {"float32": 0.25, "bfloat16": 0.4}


#: Parameter -> by what its learning rate is multiplied.
Factors = Mapping[str, float]
NONE: Factors = MappingProxyType({})


class Dense:
    """Trains ``model`` as it is. Base class of the other regimes, which override what differs.

    Attributes:
        model: the caller's network.
        network: what is stepped: ``model``, or its compact network.
        held: context in which the network trains.
        n_steps: optimizer steps of the whole training.
        masks: the mask that stays, if there is one.
        moving: the masks that move, if there are any.
        identity: what two trainings with moving masks must share to resume one another's checkpoints.
    """

    masks: Masks | None = None
    moving: MovingMasks | None = None
    identity: dict[str, Any] | None = None

    def __init__(
        self, model: nn.Module, recipe: Recipe, plan: Plan, network: nn.Module | None = None, factors: Factors = NONE
    ) -> None:
        self.model, self.recipe, self.plan = model, recipe, plan
        self.network = network or model
        self.n_steps = plan.n_steps
        self.held: AbstractContextManager[object] = nullcontext()
        self.optimizer = torch.optim.SGD(
            _groups(self.network, factors), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )  # fmt: skip

    @property
    def n_images(self) -> int:
        """Images of the whole training."""
        return self.n_steps * self.plan.images_per_step

    @property
    def member(self) -> int | None:
        """The member of ``TrainResult.members`` that the present network may become; None if it is no candidate."""
        return 0

    def learning_rate(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0."""
        return learning_rate_at(self.recipe, step, self.plan.n_steps)

    def shipped(self) -> AbstractContextManager[None]:
        """Context in which the network is what would be shipped now."""
        return nullcontext()

    def facts(self, history: list[Entry]) -> Entry:
        """What an epoch's entry says about the masks, given the entries before it."""
        return {}

    def for_model(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A ``state_dict`` of ``network`` as one of ``model``."""
        return weights

    def dense_epochs(self, n_train: int, input_shape: tuple[int, ...]) -> float:
        """Multiply-adds of the training, in passes of the dense network over ``n_train`` images."""
        masked = cost(self.model, input_shape, self.masks)
        return self.n_images / n_train * masked.masked_multiply_adds / max(masked.multiply_adds, 1)

    def whole(self) -> dict[str, Tensor] | None:
        """``state_dict`` of the unmasked network, for methods that also train it."""
        return None


class Fixed(Dense):
    """Trains under a mask that stays.

    Args:
        compact: trained in the masked network's place: the same training, up to rounding.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, plan: Plan, masks: Masks, compact: CompactResult | None,
        factors: Factors = NONE,
    ) -> None:  # fmt: skip
        super().__init__(model, recipe, plan, None if compact is None else compact.model, factors)
        self.masks, self.compact = masks, compact
        if (held := masks if compact is None else compact.masks) is not None:
            self.held = enforce_masks(self.network, held, self.optimizer)

    def for_model(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.compact is None:
            return weights
        self.network.load_state_dict(weights)
        return self.compact.expand().state_dict()


class Moving(Dense):
    """Trains while masks move; ``masks`` are the first ones, None begins dense."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, plan: Plan, masks: Masks | None, movement: Movement,
        factors: Factors = NONE,
    ) -> None:  # fmt: skip
        super().__init__(model, recipe, plan, factors=factors)
        first = Masks.dense(movement.problem.layout) if masks is None else masks
        problem = replace(movement.problem, model=model, layout=first.layout)
        self.moving: MovingMasks = MovingMasks(
            replace(movement, problem=problem), self.optimizer, first.flat, n_steps=plan.n_steps, epoch=plan.steps_per_epoch
        )  # fmt: skip
        self.held, self.n_steps, self.identity = self.moving, self.moving.n_steps, self.moving.identity

    @property
    def member(self) -> int | None:
        return self.moving.member

    def learning_rate(self, step: int) -> float:
        method = self.moving.method
        rate = method.learning_rate if isinstance(method, SetsLearningRate) else learning_rate_at
        return rate(self.recipe, step, self.plan.n_steps)

    def shipped(self) -> AbstractContextManager[None]:
        return self.moving.shipped()

    def facts(self, history: list[Entry]) -> Entry:
        seen = self.moving.report()
        n_grown = self.moving.n_grown - sum(entry.get("n_grown", 0.0) for entry in history)
        return {"density": seen.density, "effective_density": seen.effective_density, "n_grown": float(n_grown)}

    def dense_epochs(self, n_train: int, input_shape: tuple[int, ...]) -> float:
        return self.moving.dense_steps * self.plan.images_per_step / n_train

    def whole(self) -> dict[str, Tensor] | None:
        if not isinstance(self.moving.method, TrainsWholeNetwork):
            return None
        whole = copy.deepcopy(self.model)  # dense_weights names tied weights once, a state_dict names them twice
        whole.load_state_dict(self.moving.dense_weights(), strict=False)
        return whole.state_dict()


def regime_of(
    model: nn.Module, recipe: Recipe, plan: Plan, masks: Masks | None, movement: Movement | None, inputs: Tensor,
    factors: Factors = NONE,
) -> Dense:  # fmt: skip
    """The regime for these masks.

    Args:
        inputs: a small batch, to try the compact network on.
        factors: parameter -> by what its learning rate is multiplied. A network with such a parameter trains as it is, for
            its compact network has parameters of its own.
    """
    if movement is not None:
        return Moving(model, recipe, plan, masks, movement, factors)
    if masks is None:
        return Dense(model, recipe, plan)
    tries = recipe.compact and not factors
    smaller = worthwhile_compact(model, masks, plan.n_steps, inputs, recipe.precision) if tries else None
    return Fixed(model, recipe, plan, masks, smaller, factors)


def _groups(network: nn.Module, factors: Factors) -> list[dict[str, Any]]:
    """Groups for the optimizer: all parameters without a factor, and one for each with."""
    named = dict(network.named_parameters())
    plain = [parameter for name, parameter in named.items() if name not in factors]
    return [{"params": plain}, *({"params": [named[name]], "factor": factor} for name, factor in factors.items())]


def worthwhile_compact(
    model: nn.Module, masks: Masks, n_steps: int, inputs: Tensor, precision: str
) -> CompactResult | None:
    """The compact network if training it repays making it; decided by counts, so equally on every machine.

    None for a network that draws random numbers in training: its compact network would draw others.

    Args:
        inputs: a small batch.
        precision: of the training.
    """
    if n_steps < COMPACT_FROM_STEPS:
        return None
    try:
        result = compact(model, masks, tuple(inputs.shape[1:]))
        most = COMPACT_BELOW_IN_PARTS[precision] if adds_parts(result.model) else COMPACT_BELOW
        if multiply_adds_left(result) >= most or _draws(model, inputs):
            return None
    except ModelError:  # it has no compact form, and trains as it is
        return None
    return result


def _draws(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a forward pass in training draws random numbers on its device: dropout, for instance."""
    generators = torch if inputs.device.type == "cpu" else torch.get_device_module(inputs.device)
    with as_it_was(model), torch.no_grad(), isolated_torch_rng(0):
        before = generators.get_rng_state()
        model.train()(inputs)
        return not torch.equal(before, generators.get_rng_state())
