"""Weights that learn as products of two factors, for methods that ask for them (``TrainsFactors``)."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from panning.foundation.errors import MaskError
from panning.foundation.tensorfile import under
from panning.masks.masks import Masks
from panning.training.moving.abilities import TrainsFactors
from panning.training.moving.flat import FlatParameters, dense_tensor
from panning.training.moving.method import Clock, Memory, Movement
from panning.training.moving.state import TWIN
from panning.training.moving.weights import ZeroWeights


class FactoredWeights(ZeroWeights):
    """Kept weights are products a * b, and the optimizer moves the factors: its momentum and weight decay act on them.

    Its parameters are given the values and gradients of a for the length of a step. b has a twin of the optimizer, with the
    same numbers and a state of its own, so that nothing is added to the optimizer of the caller.
    """

    def __init__(self, movement: Movement, flat: FlatParameters, first: Tensor, memory: Memory) -> None:
        super().__init__(movement, flat, first, memory)
        assert isinstance(movement.method, TrainsFactors)
        self._method: TrainsFactors = movement.method
        self._a, self._b = (factor.clone() for factor in self._method.factors(flat.read()))
        self._views = list(flat.layout.views(self._b).values())  # share storage with _b, which is only written in place
        self._trusts_loads = False
        self._written: Tensor | None = None  # what the network was given last
        self._gradients: list[Tensor | None] = []  # of the products, while the step sees those of a
        self._optimizer: Optimizer | None = None
        self._twin: Optimizer | None = None
        self._of_twin: dict[str, Tensor] = {}  # its state, as ``load`` was given it

    @property
    def dense(self) -> Tensor:
        return self._a * self._b

    def hold(self, masks: Masks, optimizer: Optimizer, owner: object) -> None:
        super().hold(masks, optimizer, owner)
        self._optimizer, self._twin = optimizer, copy.copy(optimizer)  # a copy has no hooks
        place = {id(parameter): view for parameter, view in zip(self.flat.parameters, self._views, strict=True)}
        self._twin.state = defaultdict(dict)
        self._twin.param_groups = [
            {**group, "params": [place[id(one)] for one in group["params"] if id(one) in place]}
            for group in optimizer.param_groups
        ]
        self._load_twin()

    def release(self) -> None:
        super().release()
        for parameter in self.flat.parameters if self._optimizer is not None else ():
            assert self._optimizer is not None
            self._optimizer.state.pop(parameter, None)  # that of a says nothing of the product

    def adopt(self, mask: Tensor, clock: Clock) -> None:
        if self._written is None or self._trusts_loads:
            return
        now = self.flat.read()
        changed = (now != self._written) & mask
        a, b = self._method.factors(now)
        self._a = torch.where(changed, a, self._a)
        self._b.copy_(torch.where(changed, b, self._b))
        self._written = now

    def before_step(self, mask: Tensor, clock: Clock) -> None:
        self.adopt(mask, clock)
        assert self._optimizer is not None and self._twin is not None
        self._gradients = [parameter.grad for parameter in self.flat.parameters]
        firsts = self.flat.layout.views(self._a).values()
        for parameter, a, b in zip(self.flat.parameters, firsts, self._views, strict=True):
            if parameter.grad is not None:
                grad = dense_tensor(parameter.grad)
                b.grad, parameter.grad = grad * a, (grad * b).to(parameter.dtype)
        self.flat.write(self._a)
        for own, group in zip(self._optimizer.param_groups, self._twin.param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})
        for name in ("grad_scale", "found_inf"):  # what a GradScaler hands to optimizers that scale by themselves
            setattr(self._twin, name, getattr(self._optimizer, name, None))

    def after_step(self, mask: Tensor, clock: Clock) -> None:
        assert self._twin is not None
        self._a = torch.where(mask, self.flat.read(), 0.0)
        self._twin.step()
        self._b.masked_fill_(~mask, 0.0)
        for parameter, b, grad in zip(self.flat.parameters, self._views, self._gradients, strict=True):
            parameter.grad, b.grad = grad, None
        self._trusts_loads = False

    def put(self, weight: Tensor, mask: Tensor, clock: Clock) -> None:
        a, b = self._method.factors(weight)
        self._a = torch.where(mask, a, 0.0)
        self._b.copy_(torch.where(mask, b, 0.0))
        self.run(mask, clock)

    def run(self, mask: Tensor, clock: Clock) -> None:
        self.write(self.dense)

    def write(self, flat: Tensor) -> None:
        self.flat.write(flat)
        self._written = self.flat.read()

    def shipped(self, mask: Tensor) -> Tensor:
        return torch.where(mask, self.dense, 0.0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._a = tensors["factor"].to(self.flat.device).clone()
        self._b.copy_(tensors["other factor"])
        self._of_twin = under(tensors, TWIN)
        if self._twin is not None:
            self._load_twin()

    def _load_twin(self) -> None:
        """Give the twin the state that was loaded; a copy of moving masks has it before there is a twin."""
        assert self._twin is not None
        state: dict[int, dict[str, Tensor]] = {}
        for key, values in self._of_twin.items():
            parts = list(values) if len(values) == len(self._views) else self.flat.layout.views(values).values()
            for index, part in zip(self._order, parts, strict=True):
                state.setdefault(index, {})[key] = part.clone()
        self._twin.load_state_dict({**self._twin.state_dict(), "state": state})

    def saved(self) -> dict[str, Tensor]:
        assert self._twin is not None
        state = self._twin.state
        keys = {key for one in self._views for key, value in state.get(one, {}).items() if isinstance(value, Tensor)}
        return {
            "factor": self._a, "other factor": self._b,
            **{TWIN + key: self._all_of([state.get(one, {}).get(key) for one in self._views]) for key in sorted(keys)},
        }  # fmt: skip

    @property
    def _order(self) -> list[int]:
        """For each layer of the layout, where the twin counts its factor."""
        assert self._twin is not None
        counted = [id(one) for group in self._twin.param_groups for one in group["params"]]
        return [counted.index(id(one)) for one in self._views]

    def _all_of(self, values: list[Tensor | None]) -> Tensor:
        """One entry of the twin's state for all layers: flat [n_prunable], or a number for each [layers].

        A layer that never had a gradient has none yet, which is as good as zeros.
        """
        shapes = {value.shape for value in values if value is not None}
        if shapes == {torch.Size()}:
            return torch.stack([torch.zeros(()) if value is None else value for value in values])
        full = [torch.zeros_like(b) if v is None else v for v, b in zip(values, self._views, strict=True)]
        if any(value.shape != b.shape for value, b in zip(full, self._views, strict=True)):
            raise MaskError(
                f"{type(self._twin).__name__} keeps other things than one number a weight: train factors by SGD or Adam."
            )
        return torch.cat([value.reshape(-1) for value in full])

    def trust_loads(self) -> None:
        self._trusts_loads = True
