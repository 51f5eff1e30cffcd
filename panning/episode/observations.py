"""Observations: what a policy sees of an episode. Each is a number in [-1, 1] that every architecture has.

The first seven are the paper's: loss, gradient norm, their change by the last mask, effective density,
target, progress. The rest says where the budget lies and what kind of network it is. A new observation is a function and a
row in ``OBSERVATIONS``. A policy names the observations that it was made for, in the order of its input, so that a new
row changes no policy that exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from panning.foundation.config import DISTINCT, Grown, Name

if TYPE_CHECKING:
    from panning.episode.state import EpisodeState

#: log density is shown as a fraction of this one's: 1e-5 is sparser than anything that still trains.
SPARSEST = math.log(1e-5)
TINY = 1e-12


def _log_ratio(value: float, reference: float) -> float:
    return math.log10(max(value, TINY) / max(reference, TINY))


def _log_density(density: float) -> float:
    return math.log(max(density, 1e-5)) / SPARSEST


def loss(state: EpisodeState) -> float:
    """log10 of loss / dense loss; on the same scoring batch."""
    return _log_ratio(state.signals.loss, state.dense_loss)


def grad_norm(state: EpisodeState) -> float:
    """log10 of gradient norm / dense gradient norm, kept weights only, over 4."""
    return _log_ratio(state.signals.grad_norm, state.dense_grad_norm) / 4.0


def loss_change(state: EpisodeState) -> float:
    """log10 of loss / loss before the last round, times 5."""
    return 5.0 * _log_ratio(state.signals.loss, state.previous_loss)


def grad_norm_change(state: EpisodeState) -> float:
    """log10 of gradient norm / gradient norm before the last round, over 2."""
    return _log_ratio(state.signals.grad_norm, state.previous_grad_norm) / 2.0


def effective_density(state: EpisodeState) -> float:
    """log of the alive density: 0 dense, 1 at 1e-5."""
    return _log_density(state.effective_density)


def target_density(state: EpisodeState) -> float:
    """log of the target: 0 dense, 1 at 1e-5."""
    return _log_density(state.target_density)


def progress(state: EpisodeState) -> float:
    """The share of the way to the target, in log density."""
    return math.log(state.density) / math.log(state.target_density) if state.target_density < 1.0 else 1.0


def rounds_left(state: EpisodeState) -> float:
    """The share of the rounds still to come."""
    return state.rounds_left / state.n_rounds


def alive_share(state: EpisodeState) -> float:
    """Alive weights / kept weights."""
    return state.effective_density / state.density


def sparsest_layer(state: EpisodeState) -> float:
    """log of the lowest layer density, alive weights only; 1 if a layer has collapsed."""
    return _log_density(min(_layer_densities(state)))


def layer_contrast(state: EpisodeState) -> float:
    """Standard deviation of the layers' log densities, as a share of log 1e-5."""
    logs = [_log_density(density) for density in _layer_densities(state)]
    return float(np.std(logs)) * 2.0


def units_in_use(state: EpisodeState) -> float:
    """The share of output units with an alive weight, mean over layers: how spread out the mask is."""
    layers = state.problem.by_unit(state.alive).values()
    used = [units.view(torch.uint8).amax(1) for units in layers]  # any(1), of which torch takes its time
    return float(np.mean([float(units.float().mean()) for units in used]))


def last_spread(state: EpisodeState) -> float:
    """The spread of the last round."""
    return state.last_action.spread if state.last_action else 0.0


def network_size(state: EpisodeState) -> float:
    """log10 of the number of prunable weights, over 8."""
    return math.log10(state.problem.layout.n_prunable) / 8.0


def network_depth(state: EpisodeState) -> float:
    """log10 of the number of prunable layers, over 2."""
    return math.log10(len(state.problem.layout.names)) / 2.0


def linear_share(state: EpisodeState) -> float:
    """The share of the prunable weights that lies in Linear layers."""
    layout = state.problem.layout
    linear = sum(size for size, shape in zip(layout.sizes, layout.shapes, strict=True) if len(shape) == 2)
    return linear / layout.n_prunable


def norm_layers(state: EpisodeState) -> float:
    """Modules that normalise / prunable layers, at most 1: told by their class's name."""
    return min(1.0, _n_norms(state) / len(state.problem.layout.names))


def normalised(state: EpisodeState) -> float:
    """Modules that normalise / prunable layers but the last, at most 1: 1 where every layer but the last is normalised."""
    return min(1.0, _n_norms(state) / max(1, len(state.problem.layout.names) - 1))


def skipped_layers(state: EpisodeState) -> float:
    """The share of the prunable layers that the shortest path goes around: 0 without residual sums."""
    return 1.0 - state.connectivity.smallest_alive() / len(state.problem.layout.names)


def kept_fan_in(state: EpisodeState) -> float:
    """log10 of the inputs that a unit would keep at the target in every layer alike, mean over layers, over 3."""
    return float(np.mean(_kept_fan_ins(state))) / 3.0


def least_kept_fan_in(state: EpisodeState) -> float:
    """The same of the layer where they are fewest."""
    return min(_kept_fan_ins(state)) / 3.0


def network_width(state: EpisodeState) -> float:
    """log10 of the units of a layer, median over layers, over 4."""
    return math.log10(float(np.median([len(units) for units in state.problem.by_unit(state.mask).values()]))) / 4.0


def classes(state: EpisodeState) -> float:
    """log10 of the number of output entries, over 3."""
    return math.log10(max(1, state.connectivity.n_outputs)) / 3.0


def input_size(state: EpisodeState) -> float:
    """log10 of the number of input entries, over 6."""
    return math.log10(max(1, state.problem.example.n_entries)) / 6.0


def _n_norms(state: EpisodeState) -> int:
    return sum("Norm" in type(module).__name__ for module in state.problem.model.modules())


def _kept_fan_ins(state: EpisodeState) -> list[float]:
    return [
        math.log10(max(TINY, units.shape[1] * state.target_density))
        for units in state.problem.by_unit(state.mask).values()
    ]


def _layer_densities(state: EpisodeState) -> list[float]:
    layout = state.problem.layout
    return [count / size for count, size in zip(layout.counts(state.alive), layout.sizes, strict=True)]


OBSERVATIONS: dict[str, Callable[[EpisodeState], float]] = {
    function.__name__: function
    for function in (
        loss, grad_norm, loss_change, grad_norm_change, effective_density, target_density, progress, rounds_left,
        alive_share, sparsest_layer, layer_contrast, units_in_use, last_spread, network_size, network_depth, linear_share,
        norm_layers, normalised, skipped_layers, kept_fan_in, least_kept_fan_in, network_width, classes, input_size,
    )
}  # fmt: skip

#: The observations of a policy that names none. The list stays as it is when rows join the table.
STANDARD = (
    "loss", "grad_norm", "loss_change", "grad_norm_change", "effective_density", "target_density", "progress", "rounds_left",
    "alive_share", "sparsest_layer", "layer_contrast", "units_in_use", "last_spread", "network_size", "network_depth",
    "linear_share",
)  # fmt: skip

#: What tells networks and targets apart before the first round; none of it depends on weights or data.
OF_NETWORKS = (
    "target_density", "network_size", "network_depth", "linear_share", "norm_layers", "skipped_layers", "kept_fan_in",
    "least_kept_fan_in", "network_width", "classes", "input_size",
)  # fmt: skip


class ObservationSpec(Grown):
    """The observations that a policy sees, in the order of the vector.

    Attributes:
        observations: rows of ``OBSERVATIONS``.
    """

    later = frozenset({"observations"})

    observations: Annotated[
        tuple[Annotated[str, Name(OBSERVATIONS, "observation")], ...], Field(min_length=1), DISTINCT
    ] = STANDARD


def observe(state: EpisodeState, names: Sequence[str] = STANDARD) -> NDArray[np.float32]:
    """The observation vector, float32 [len(names)], each entry clipped to [-1, 1]."""
    with torch.no_grad():
        values = [OBSERVATIONS[name](state) for name in names]
    return np.clip(np.array(values, dtype=np.float32), -1.0, 1.0)
