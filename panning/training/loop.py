"""One training loop for dense networks, fixed masks and moving masks (``panning.training.regimes``).

Masked weights are exactly zero before the first step and after every step (``panning.masks.enforce``).

All randomness of epoch e (order, augmentation, dropout) derives from (seed, e). A run that resumes from a checkpoint
therefore gives the same weights as an uninterrupted one, bit for bit on one thread.

A step does not wait for the device: losses are added up there and read once an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from panning.compaction.image_format import put_channels_last
from panning.data import ImageData, augment_batch
from panning.foundation.device import device_of
from panning.foundation.errors import NonFiniteError
from panning.foundation.progress import Event, Listener, silent
from panning.foundation.records import content_key
from panning.foundation.seeding import derive_seed, isolated_torch_rng, torch_generator
from panning.foundation.stopping import step_done
from panning.masks.masks import Masks, digest_of, fitted
from panning.masks.start import Started
from panning.tasks import Task
from panning.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from panning.training.evaluation import evaluate, forward
from panning.training.moving.abilities import length_of
from panning.training.moving.checks import check_movement
from panning.training.moving.in_shape import first_in_shape
from panning.training.moving.method import Movement
from panning.training.recipe import Plan, Recipe
from panning.training.regimes import Dense, regime_of
from panning.training.result import Entry, TrainResult

#: Called with the network that is stepped, and how many steps it has made.
AfterStep = Callable[[nn.Module, int], None]


def train(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int,
    masks: Masks | None = None,
    movement: Movement | None = None,
    validate_every_epoch: bool = True,
    keep_best: bool = False,
    listen: Listener = silent,
    checkpoint: Path | None = None,
    after_step: AfterStep | None = None,
) -> TrainResult:
    """Train ``model`` in place on the training part; evaluate on the validation part only.

    Args:
        model: on the device where it is trained; ``data`` are brought there, as far as they are held in memory.
        seed: of the batch order, the augmentation and dropout.
        masks: which weights take part; None trains the dense network. Kept weights that no output depends on keep their
            value if the compact network is trained, and decay with ``weight_decay`` if it is not.
        movement: how the masks move; ``masks`` are then the first ones.
        keep_best: keep the weights of the epoch that is best on the validation part; evaluates every epoch.
        listen: hears of each epoch, with its entry in the history.
        checkpoint: file that is written after every epoch, the last included. If it exists, training resumes from it, or
            is over at once. The caller removes it once everything made from the result is written.
        after_step: called after each step with the network that is stepped and the number of steps so far. It may look at
            the network, and what it raises ends the training.

    Raises:
        NonFiniteError: if the loss becomes NaN or infinite.
        MaskError: if the mask belongs to another network, or cannot move so.
        PanningError: if the checkpoint is of another network, recipe, seed, mask or movement.

    >>> from panning.tasks import TaskSpec, load_task
    >>> from panning.training import Recipe, train
    >>> task = load_task(TaskSpec(model="mlp", data="digits", n_train=200), seed=0)
    >>> result = train(task.network(), task.data, Recipe(epochs=2, batch_size=50), seed=0)
    >>> len(result.history), result.images_seen
    (2, 400)
    """
    started, plan, device = time.perf_counter(), Plan.of(recipe, len(data.train)), device_of(model)
    data = data.to(device)
    few, _ = data.batch(data.train, torch.arange(min(2, len(data.train))), device)
    masks = None if masks is None else fitted(model, masks)
    given = Started("none")
    if masks is not None and recipe.start is not None:
        given, masks = recipe.start.give(model, masks, seed)
    regime = regime_of(model, recipe, plan, masks, movement, few, given.learning_rates)
    images = put_channels_last(regime.network, few, recipe.precision)
    bits = None if masks is None else digest_of(masks.flat)  # shapes alone do not tell two compact networks apart
    training = content_key([recipe.model_dump(mode="json"), seed, bits, keep_best, regime.identity])
    parts, n_epochs = (regime.network, regime.optimizer), plan.n_epochs(regime.n_steps)
    with regime.held:
        always = validate_every_epoch or keep_best
        done = Checkpoint()
        if checkpoint is not None:
            done = load_checkpoint(checkpoint, *parts, training, regime.moving, n_epochs, always) or done
        listen(Event("training", len(done.history), n_epochs))
        for epoch in range(len(done.history), n_epochs):
            with isolated_torch_rng(derive_seed(seed, "dropout", epoch)):
                loss = _train_epoch(regime, data, epoch, seed, images, after_step)
            entry = {"epoch": epoch + 1.0, "train_loss": loss, **regime.facts(done.history)}
            _close_epoch(regime, data, done, entry, always or epoch + 1 == n_epochs, keep_best)
            listen(Event("training", epoch + 1, n_epochs, "epoch", entry))
            if checkpoint is not None:
                save_checkpoint(checkpoint, *parts, done, training, regime.moving)
            step_done(epoch + 1, n_epochs, "epoch")
    result = _result(regime, data, done, started)
    return replace(result, masks=masks) if movement is None and recipe.has_own_masks else result


def _close_epoch(regime: Dense, data: ImageData, done: Checkpoint, entry: Entry, looks: bool, keep_best: bool) -> None:
    """Add an epoch's entry to the history, with the figures of the validation part if one ``looks`` at it."""
    with regime.shipped():
        if looks:
            entry.update(evaluate(regime.network, data, data.validation, regime.recipe.precision))
            if not math.isfinite(entry["loss"]):
                raise NonFiniteError(
                    f"The validation loss is {entry['loss']} in epoch {entry['epoch']:.0f}: lower the learning rate (now "
                    f"{regime.recipe.learning_rate})."
                )
        done.history.append(entry)
        if keep_best:
            done.keep_if_best(regime.member, entry, regime.network, regime.moving)


def _result(regime: Dense, data: ImageData, done: Checkpoint, started: float) -> TrainResult:
    model, moving = regime.model.train(), regime.moving
    if regime.network is not model:
        model.load_state_dict(regime.for_model(regime.network.state_dict()))
    best = [done.best[member] for member in sorted(done.best)]
    return TrainResult(
        history=tuple(done.history),
        images_seen=regime.n_images,
        wall_s=time.perf_counter() - started,
        final=dict(done.history[-1]),
        members=tuple((entry, regime.for_model(weights)) for entry, weights in best),
        masks=None if moving is None else moving.masks,
        dense_epochs=regime.dense_epochs(len(data.train), data.input_shape),
        member_masks=() if moving is None else done.member_masks(moving.problem.layout),
        whole=regime.whole(),
    )


def _train_epoch(
    regime: Dense, data: ImageData, epoch: int, seed: int, images: torch.memory_format, after_step: AfterStep | None
) -> float:
    """Train one epoch; returns the mean training loss of its steps."""
    network, optimizer, recipe, plan = regime.network, regime.optimizer, regime.recipe, regime.plan
    steps = range(epoch * plan.steps_per_epoch, min((epoch + 1) * plan.steps_per_epoch, regime.n_steps))
    generator = torch_generator(seed, "epoch", epoch)
    device = device_of(network)
    order = torch.randperm(len(data.train), generator=generator)[: plan.images_per_epoch].to(data.train.labels.device)
    total = torch.zeros((), device=device)
    network.train()
    for step, indices in zip(steps, order.split(recipe.batch_size), strict=False):  # a last, smaller batch is left out
        inputs, labels = data.batch(data.train, indices, device)
        if recipe.augment:
            inputs = augment_batch(inputs, data.augmentation, generator)
        loss = F.cross_entropy(forward(network, inputs, recipe.precision, images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = regime.learning_rate(step) * group.get("factor", 1.0)
        optimizer.step()
        total += loss.detach()
        if after_step is not None:
            after_step(network, step + 1)
    mean = float(total) / len(steps)
    if not math.isfinite(mean):
        raise NonFiniteError(
            f"The training loss is {mean} in epoch {epoch + 1}: lower the learning rate (now {recipe.learning_rate})."
        )
    return mean


def n_epochs(recipe: Recipe, n_train: int, movement: Movement | None = None, masks: Masks | None = None) -> int:
    """Number of entries in a training's history; methods that repeat the schedule have more than the recipe's epochs.

    >>> from panning.training import Recipe, n_epochs
    >>> n_epochs(Recipe(epochs=2.5), n_train=1000)
    3
    """
    plan = Plan.of(recipe, n_train)
    if movement is None:
        return plan.n_epochs(plan.n_steps)
    start = 1.0 if masks is None else masks.density
    n_prunable = movement.problem.layout.n_prunable
    return plan.n_epochs(length_of(movement.method, plan.n_steps, start, movement.density, n_prunable))


def train_copy(
    task: Task, masks: Masks | None, recipe: Recipe, seed: int, after_step: AfterStep | None = None
) -> tuple[nn.Module, TrainResult]:
    """How good is this mask, cheaply? Train a copy of the task's network under it; looks at the validation part only.

    The task's own model keeps its initial weights. Equal (task, masks, recipe, seed) give equal results, and two masks with
    one seed see the same batches.
    """
    model = task.network()
    result = train(model, task.data, recipe, seed=seed, masks=masks, validate_every_epoch=False, after_step=after_step)
    return model, result


def check_training(recipe: Recipe, n_train: int, movement: Movement, masks: Masks) -> None:
    """Raise what ``train`` would raise about how ``masks`` move, before anything is trained or written."""
    plan, problem = Plan.of(recipe, n_train), replace(movement.problem, layout=masks.layout)
    movement = replace(movement, problem=problem)
    check_movement(movement, first_in_shape(movement, masks.flat), plan.n_steps, plan.steps_per_epoch)
