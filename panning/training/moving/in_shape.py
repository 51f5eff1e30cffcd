"""Masks that move in a shape: 2 of each 4 consecutive inputs, or whole blocks, at any time.

A method decides as ever, and its decision is brought into the shape: in each group those weights stay that the method keeps,
the best of them where they are too many; where they are too few, the best of the others come in. For blocks the method is
shown a block's mean magnitude in place of each of its weights and gradients, so that it drops and grows blocks.

NOTE: where blocks do not fill a budget, single weights of other layers do, a few masked ones of them under GMP, too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.masks.masks import Masks
from panning.masks.shape import Shape, Shaped, check_unrepaired
from panning.pruners import Form
from panning.scoring.problem import Problem
from panning.training.moving.method import BLOCKS, N_OF_M, Dynamic, Move, Movement, View


def check_shape(method: Dynamic, shape: str | None, all_alive: bool) -> None:
    """Raise MaskError if the method cannot move masks of the shape, or ConfigError if there is no such shape."""
    if all_alive not in (True, False):
        raise MaskError(
            f"all_alive is {all_alive!r}, but of masks that move must be True or False: counts move with them."
        )
    if shape is None:
        return
    kinds = method.shapes
    wanted = BLOCKS if Shape.parse(shape).is_of_blocks else N_OF_M
    if wanted not in kinds or method.prunes_units:
        why = "Its moves would break the shape. Where its mask stays, give it one of this shape (masks=)"
        if wanted == N_OF_M and kinds == {BLOCKS}:
            why = "Its density falls, and this shape has one density from the first step on: take blocks ('4x1')"
        elif wanted == BLOCKS and kinds == {N_OF_M}:
            why = "It moves single weights: take a shape like '2:4'"
        raise MaskError(
            f"This method moves no masks of the shape '{shape}'. {why}; or take a method that exchanges weights (rigl, set, "
            "granet) or keeps dense ones (dpf, surgery)."
        )
    check_unrepaired(shape, all_alive)


def shape_to_lose(method: Dynamic, first: Masks | None, shape: str | None) -> str | None:
    """What to say where the first masks have a shape that the method could keep, and was not asked to."""
    had = None if first is None else first.manifest.get("shape")
    if shape is not None or not isinstance(had, str) or not method.shapes:
        return None
    return f"The masks have the shape {had!r}, which the first move breaks: shape={had!r} keeps it."


def density_in_shape(problem: Problem, shape: str | None, density: float | None) -> float:
    """The density as it is asked for; None is the largest that the shape can have.

    Raises:
        DensityError: if the shape cannot have it, or it is None where no shape says it.
    """
    n_kept = Form(shape=shape).n_kept(problem.model, problem.layout, density)
    return n_kept / problem.layout.n_prunable if density is None else density


def first_in_shape(movement: Movement, start: Tensor) -> Tensor:
    """The flat first mask in the movement's shape, if it has one.

    Weights of ``start`` come first. What is chosen among them, and comes in besides, is drawn by lot; under feedback it is
    the largest.

    Raises:
        PanningError: as ``check_shape``, or if the shape cannot have the density.
    """
    check_shape(movement.method, movement.shape, movement.all_alive)
    if (shaped := movement.shaped) is None:
        return start
    problem, n_kept = movement.problem, shaped.n_kept(movement.density)
    if shaped.shape.is_of_blocks:
        n_kept = shaped.near(int(start.sum()))
    scores = problem.weight.abs() if movement.method.holds == "feedback" else problem.noise
    return _best(shaped, start.cpu().double() + _ranks(scores.cpu()), n_kept).to(start.device)


def seen_in_shape(shaped: Shaped | None, view: View) -> View:
    """What a method sees where its masks have this shape."""
    if shaped is None or not shaped.shape.is_of_blocks:
        return view
    grad = None if view.grad is None else shaped.pooled(view.grad)
    return replace(view, weight=shaped.pooled(view.weight), grad=grad)


def move_in_shape(shaped: Shaped, view: View, move: Move, holds: str) -> Tensor:
    """The mask of a move, in the shape.

    Weights that stay come first, then those that the method has grown, then all others; under feedback, where masked weights
    have values of their own, what the method keeps and what it does not.
    """
    magnitude = view.weight.abs()
    others = _ranks(magnitude if move.revival is None else move.revival)
    if holds == "feedback" or shaped.shape.is_of_blocks:
        scores = move.mask.double() + (_ranks(magnitude) if holds == "feedback" else others)
    else:
        stays = move.mask & view.mask
        scores = torch.where(stays, 2.0 + _ranks(magnitude), move.mask.double() + others)
    n_kept = int(move.mask.sum())
    if shaped.shape.is_of_blocks:
        n_kept = shaped.near(n_kept)
    return _best(shaped, scores.cpu(), n_kept).to(move.mask.device)


def _best(shaped: Shaped, scores: Tensor, n_kept: int) -> Tensor:
    return shaped.mask(scores, n_kept / shaped.layout.n_prunable)


def _ranks(scores: Tensor) -> Tensor:
    """The ranks of flat scores, float64 in [0, 1)."""
    ranks = torch.empty(scores.numel(), dtype=torch.float64, device=scores.device)
    ranks[scores.argsort(stable=True)] = torch.arange(scores.numel(), dtype=torch.float64, device=scores.device)
    return ranks / scores.numel()
