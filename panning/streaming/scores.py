"""Scores of a layer at a time: the indices that need no more than a layer's weights and one gradient of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panning.foundation.errors import NonFiniteError
from panning.foundation.seeding import torch_generator
from panning.masks.selection import all_finite
from panning.scoring.problem import Scoring
from panning.scoring.signals.path import SCALES
from panning.streaming.layers import Layers, LayerSite, Take, TooLarge, loss_gradients, path_gradients


@dataclass(frozen=True)
class Formula:
    """How an index scores a layer.

    Attributes:
        gradient: that it reads: ``loss``, ``paths``, ``squared paths``; None: weights alone.
        of: scores of a layer's dense weights and their gradient, flat both; the gradient may be written into.
        in_float64: the scores are; else they are as the weights.
    """

    gradient: str | None
    of: Callable[[Tensor, Tensor], Tensor]
    in_float64: bool = False

    def dtype(self, layers: Layers) -> torch.dtype:
        return torch.float64 if self.in_float64 else layers.dtype


def _normalised(weight: Tensor, _: Tensor) -> Tensor:
    return weight.abs() / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)


def _flow(weight: Tensor, grad: Tensor) -> Tensor:
    return grad.mul_(weight.double().abs_())


#: Indices of ``INDICES`` -> the same a layer at a time. ``random`` draws, in the order of the layers.
FORMULAS: dict[str, Formula] = {
    "random": Formula(None, lambda weight, drawn: drawn, in_float64=True),
    "magnitude": Formula(None, lambda weight, _: weight.abs()),
    "magnitude_l2norm": Formula(None, _normalised),
    "snip": Formula("loss", lambda weight, grad: grad.mul_(weight).abs_()),
    "synflow": Formula("paths", _flow, in_float64=True),
    "synflow_l2": Formula("squared paths", _flow, in_float64=True),
    "synflow_l2_squared": Formula(
        "squared paths", lambda weight, grad: grad.mul_(weight.double().square_()), in_float64=True
    ),
}


@dataclass(eq=False)
class Scorer:
    """The scores of one index in the rounds of a method.

    Attributes:
        index: a row of ``FORMULAS``.
        scale: place in ``path.SCALES`` of the first that leaves gradients finite; found in a round's first pass.
    """

    index: str
    scoring: Scoring
    scale: int = 0

    def scores(self, layers: Layers, round_number: int, take: Take, again: Callable[[], None]) -> None:
        """One pass: give ``take`` the scores of each layer once.

        Args:
            again: called where the pass begins once more, at another scale.

        Raises:
            NonFiniteError: with the layer, if scores are not finite.
        """
        formula = FORMULAS[self.index]
        if formula.gradient is None:
            self._of_weights(layers, take)
            return
        site = LayerSite.of(layers, round_number, self.scoring)
        waiting = set(range(len(layers.problem.layout.names)))

        def scored(layer: int, grad: Tensor) -> None:
            waiting.discard(layer)
            take(layer, self._finite(layers, layer, formula.of(layers.weight(layer), grad)))

        with torch.enable_grad():  # callers may score inside an evaluation loop
            if formula.gradient == "loss":
                loss_gradients(site, lambda layer, grad: scored(layer, self._finite(layers, layer, grad, "grad")))
            else:
                self._along_paths(site, formula, scored, waiting, again)
        for layer in sorted(waiting):  # what nothing depends on
            scored(layer, torch.zeros(layers.problem.layout.sizes[layer], dtype=formula.dtype(layers)))

    def _along_paths(
        self, site: LayerSite, formula: Formula, take: Take, waiting: set[int], again: Callable[[], None]
    ) -> None:
        n_layers, squared = len(waiting), formula.gradient == "squared paths"
        last = len(SCALES) - 1 if site.scoring.linear_paths else 0
        while True:
            try:
                path_gradients(site, take, squared=squared, scale=self.scale)
                return
            except TooLarge:
                if self.scale >= last:
                    raise
                self.scale += 1
                waiting |= set(range(n_layers))
                again()

    def _of_weights(self, layers: Layers, take: Take) -> None:
        problem, formula = layers.problem, FORMULAS[self.index]
        generator = torch_generator(problem.seed, "noise")
        for layer, size in enumerate(problem.layout.sizes):
            # The draws of one generator, whoever takes them: ``Problem.noise`` takes them all at once.
            drawn = torch.rand(size if self.index == "random" else 0, generator=generator, dtype=torch.float64)
            weight = layers.weight(layer)
            take(layer, self._finite(layers, layer, formula.of(weight, drawn)))

    def _finite(self, layers: Layers, layer: int, values: Tensor, signal: str | None = None) -> Tensor:
        if not all_finite(values):
            name = layers.problem.layout.names[layer]
            if signal is None:
                raise NonFiniteError(f"Layer '{name}' has NaN or infinite scores; no mask was made.")
            raise NonFiniteError(
                f"The signal '{signal}' is NaN or infinite in layer '{name}' at density {layers.density:.3g}."
            )
        return values
