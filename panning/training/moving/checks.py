"""What can be wrong with moving masks, told before anything is changed or written."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import MaskError
from panning.foundation.wrappers import own_parameters
from panning.masks.holders import check_held, check_ranks_agree, first_enforced, first_moving
from panning.masks.masks import Masks, check_masks_fit, n_kept_at
from panning.training.moving.abilities import FollowsWholeGradient, length_of
from panning.training.moving.flat import check_momentum
from panning.training.moving.method import Clock, Movement
from panning.training.moving.selection import hidden_layers
from panning.training.moving.timing import FEWEST_FALLS, Ramp


def check_parts(movement: Movement, optimizer: Optimizer, start: Tensor) -> None:
    """Raise MaskError if masks that begin with the flat ``start`` cannot move in this network by this optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise MaskError(
            f"A {type(optimizer).__name__} is no torch.optim.Optimizer: move_masks takes one, which holds all that is "
            "prunable; of a trainer's wrapper pass what is inside."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MaskError(
            "LBFGS evaluates the network several times a step, between which no mask can move; use SGD or Adam."
        )
    problem = movement.problem
    masks = Masks(problem.layout, start.cpu())
    check_ranks_agree(masks)
    prunable = check_masks_fit(problem.model, masks)
    try:
        check_held(prunable, (optimizer,))
    except MaskError as error:
        raise MaskError(f"{error} Masks that move want one optimizer for all, with groups of parameters.") from None
    if found := problem.complex_layers:
        raise MaskError(f"'{found[0]}' has complex weights, and masks move by real ones: leave it out (exclude).")
    if frozen := [name for name, parameter in prunable.items() if not parameter.requires_grad]:
        raise MaskError(f"'{frozen[0]}' is frozen, and what moves there would be lost: leave it out (exclude).")
    if isinstance(movement.method, FollowsWholeGradient):
        check_momentum(optimizer)
    if first_moving(own_parameters(problem.model)) is not None:
        raise MaskError(
            "The masks of this network move already: call finish() of what move_masks gave before, or use it in a `with`."
        )
    if (name := first_enforced(prunable)) is not None:
        raise MaskError(
            f"'{name}' is held by enforce_masks, and what comes in there would stay zero: call remove() of what that gave "
            "before; move_masks keeps masked weights at zero itself. Where it is lost, take a copy of the network."
        )


def start_density(movement: Movement, start: Tensor) -> float:
    """``View.start`` of a flat mask."""
    return 1.0 if movement.method.prunes_units else int(start.sum()) / movement.problem.layout.n_prunable


def check_movement(movement: Movement, start: Tensor, n_steps: int, epoch: int) -> Clock:
    """Return the clock at the training's first step if nothing is wrong with it. Warns if the density falls at once.

    Args:
        start: flat bool, the first mask.
        n_steps, epoch: as in ``Clock.schedule`` and ``Clock.epoch``.

    Raises:
        MaskError: if the method cannot come from this start to this density, or not in so many steps.
        DensityError: if no mask of this density can be all alive, where that is asked for.
        DataError: if the method lacks data.
    """
    problem, method, density = movement.problem, movement.method, movement.density
    _check_densities(movement, start)
    first = start_density(movement, start)
    clock = Clock(0, length_of(method, n_steps, first, density, problem.layout.n_prunable), n_steps, epoch)
    method.check(clock, problem)
    if isinstance(method, Ramp) and density < first and method.is_abrupt(clock):
        warnings.warn(
            f"The density of this method falls from {first:g} to {density:g} in less than {FEWEST_FALLS} moves: "
            f"{method.tempo(clock)}.",
            stacklevel=1,  # the same place, whoever asks: shown once
        )
    return clock


def _check_densities(movement: Movement, start: Tensor) -> None:
    problem, method, density = movement.problem, movement.method, movement.density
    n_start, n_final = int(start.sum()), n_kept_at(density, problem.layout.n_prunable)
    if method.prunes_units:
        if movement.all_alive:
            raise MaskError(
                "This method prunes whole units, whose weights cannot be given to others: leave all_alive away."
            )
        if not hidden_layers(problem):
            raise MaskError(
                "This method prunes hidden units, and this network has none that may go: its outputs and depthwise "
                "convolutions stay whole. Take a method that prunes single weights."
            )
        return
    if movement.all_alive:
        Connectivity.of(problem).check_reachable(n_final)
    if (method.keeps_count or method.releases) and n_start != n_final:
        raise MaskError(
            f"This method keeps the number of weights: the start has {n_start}, and density {density:g} is {n_final}. "
            "Start from a mask of that density, or take a method whose density falls (gmp, dpf, granet)."
        )
    if method.only_prunes and n_start == n_final < problem.layout.n_prunable:
        raise MaskError(
            f"This method only prunes, and the start has the {n_final} weights of density {density:g} already: start "
            "from a mask that keeps more, or from the dense network."
        )
    if n_start < n_final:
        raise MaskError(
            f"This method starts from {n_start} weights, and density {density:g} is {n_final}: start from a mask that keeps "
            "more."
        )
