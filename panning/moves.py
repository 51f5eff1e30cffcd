"""``panning.move_masks``: masks that move while a network trains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from panning.api import Data, apart_from_the_caller, check_moment, check_plain
from panning.flow import Forward
from panning.foundation.errors import MaskError, PanningWarning
from panning.foundation.keywords import keywords
from panning.foundation.registry import lookup
from panning.foundation.wrappers import unwrapped
from panning.masks.masks import Masks, fitted
from panning.pruners import PRUNERS
from panning.pruners.targets import OF_FIRST_MASKS
from panning.scoring.interface import layout_of, problem_of
from panning.scoring.losses import Loss
from panning.training.moving.engine import MovingMasks
from panning.training.moving.in_shape import check_shape, density_in_shape, shape_to_lose
from panning.training.moving.method import Dynamic, Movement
from panning.training.moving.methods import DYNAMICS, first_mask


@keywords(
    "density",
    "n_steps of the training, and make_dynamic(method, {'every': ...}) to move masks more often",
    elsewhere=OF_FIRST_MASKS,
)
@apart_from_the_caller()
def move_masks(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: str | Dynamic = "dpf",
    *,
    density: float | None = None,
    n_steps: int,
    masks: Masks | None = None,
    steps_per_epoch: int | None = None,
    all_alive: bool = False,
    shape: str | None = None,
    data: Data | None = None,
    input_shape: Sequence[int] | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    loss: Loss | None = None,
    forward: Forward | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> MovingMasks:
    """Let masks move while ``model`` is trained by ``optimizer``, in a loop that stays as it is.

    >>> import panning, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> optimizer, method = torch.optim.SGD(model.parameters(), 0.1), panning.make_dynamic("rigl", {"every": 2})
    >>> moving = panning.move_masks(model, optimizer, method, density=0.5, n_steps=6, input_shape=(4,))
    >>> for _ in range(6):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(10, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> moving.finish().n_kept
    24

    Masks follow the optimizer's steps; between two steps the model holds the weights that its next forward pass runs with.
    Graphs of ``torch.compile`` are made anew (``torch.compiler.reset``), for they do not see hooks that come after them. A
    network under ``enforce_masks`` is refused.

    Args:
        model: at its initial weights, bare or inside DistributedDataParallel, ``torch.compile`` and the like.
        optimizer: one that holds every prunable parameter, none of them frozen. A closure of its step is called once.
        method: a row of ``panning.training.DYNAMICS``, or one with other numbers (``panning.make_dynamic``).
        density: at the end. With a shape ``n:m`` None keeps all weights of the layers that the shape does not cover.
        n_steps: of the schedule of learning rates. A method that goes through it several times (IMP) has
            ``moving.n_steps`` in all.
        masks: the first ones; None takes the row's own start, dense or random.
        steps_per_epoch: for methods that act once an epoch.
        all_alive: after every move, give the budget of dead weights to the best-ranked that can be alive.
        shape: every mask keeps exactly 2 of each 4 consecutive inputs (``2:4``) or whole blocks (``4x1``), as for ``prune``;
            the first mask is brought into the shape. For methods that exchange weights or keep dense ones.
        data: what a method that scores with a loss draws its batches from; gives the input's shape, too.
        input_shape: of one input, without the batch, unless ``data`` or the masks say it.
        example_inputs, loss, forward: as for ``prune``.
        seed: of everything random.
        include, exclude: as for ``prune``; not with ``masks``, which say what is prunable.

    Raises:
        PanningError: with what was given, what is allowed and what to do; the model is then as it was.
    """
    check_moment(method, PRUNERS, DYNAMICS, "finds a first mask, masks=panning.prune(..., method={}), and moves none")
    row = lookup(DYNAMICS, method, "dynamic method") if isinstance(method, str) else None
    chosen = row.method if row is not None else method
    if not isinstance(chosen, Dynamic):
        raise MaskError(f"method is a {type(method).__name__}; pass a name of panning.training.DYNAMICS or a Dynamic.")
    check_plain(density, None, input_shape)
    _check_steps(chosen, n_steps, steps_per_epoch)
    model = unwrapped(model)
    if masks is not None:
        masks = fitted(model, masks)
        if include is not None or exclude:
            raise MaskError("The masks say what is prunable: leave include and exclude away.")
        if example_inputs is None:
            input_shape = input_shape or masks.input_shape
    problem_with = partial(
        problem_of, model, data=data, input_shape=input_shape, example_inputs=example_inputs, forward=forward, loss=loss,
        seed=seed,
    )  # fmt: skip
    problem = problem_with(masks.layout if masks is not None else layout_of(model, include, exclude, problem_with))
    check_shape(chosen, shape, all_alive)
    if (doubt := shape_to_lose(chosen, masks, shape)) is not None:
        warnings.warn(doubt, PanningWarning, stacklevel=4)  # the caller's line: two frames are the decorators'
    target = density_in_shape(problem, shape, density)
    start = masks or first_mask(problem, chosen, target, row)
    movement = Movement(chosen, problem, target, all_alive, shape)
    return MovingMasks(movement, optimizer, start.flat, n_steps=n_steps, epoch=steps_per_epoch or n_steps)


def _check_steps(method: Dynamic, n_steps: int, steps_per_epoch: int | None) -> None:
    for name, value in (("n_steps", n_steps), ("steps_per_epoch", steps_per_epoch or 1)):
        if type(value) is not int or value < 1:
            raise MaskError(f"{name} must be a whole number of at least 1, given {value!r}.")
    if method.counts_epochs and method.every is None and steps_per_epoch is None:
        raise MaskError("This method acts once an epoch: pass steps_per_epoch, or a method with every=STEPS.")
