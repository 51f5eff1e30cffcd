"""One training loop for dense networks, fixed masks and masks that move.

Masked weights are exactly zero before the first step and after every step (``panning.masks.enforce``). Where a fixed mask
leaves few units, the compact network is trained in the masked one's place: the same training, up to rounding. Masks that
move do so by hooks of the optimizer (``panning.training.moving``); the loop is the same.

Everything random in epoch e (order, augmentation, dropout) derives from (seed, e): a run that goes on from a checkpoint
gives the same weights, bit for bit on one thread, as one that was never interrupted.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.compaction.compaction import CompactResult
from panning.compaction.cost import cost
from panning.compaction.image_format import put_channels_last
from panning.data import ImageData, augment_batch
from panning.foundation.errors import NonFiniteError
from panning.foundation.records import content_key
from panning.foundation.seeding import derive_seed, isolated_torch_rng, torch_generator
from panning.masks.enforce import enforce_masks
from panning.masks.masks import Masks, digest_of
from panning.scoring.problem import Problem
from panning.training.checkpoint import Checkpoint, Entry, load_checkpoint, save_checkpoint
from panning.training.compact_training import made_small
from panning.training.evaluation import evaluate, forward
from panning.training.moving.checks import check_movement
from panning.training.moving.engine import MovingMasks
from panning.training.moving.method import Dynamic
from panning.training.recipe import Plan, Recipe, learning_rate_at


@dataclass(frozen=True, eq=False)
class Movement:
    """Masks that move while a network trains.

    Attributes:
        method: a row of ``DYNAMICS``, or one with other numbers.
        problem: of the network that is trained, with what methods may ask of it: its scoring batches, its input's shape.
        density: at the end.
        all_alive: after every move, give the budget of dead weights back.
    """

    method: Dynamic
    problem: Problem
    density: float
    all_alive: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What a training run gives.

    Attributes:
        history: an entry an epoch: ``epoch``, ``train_loss`` and, where it was looked at, ``accuracy`` and ``loss`` of the
            validation part; where masks move, ``density``, ``effective_density`` and ``n_grown``, the weights that came in.
        images_seen: what it cost.
        wall_s: of this call alone, without the epochs that it found in a checkpoint.
        final: the last entry.
        members: the entry and the weights (a ``state_dict``) of the epoch that was best on the validation part, the first
            of equals; empty if that was not asked for. Some methods (EDST) give several networks. Where masks move, only
            epochs at the final density count.
        masks: the final ones, where masks move.
        member_masks: of each member, where masks move.
        whole: the ``state_dict`` of the whole network as training ended, of methods that train it beside the masked one.
        dense_epochs: the multiply-adds of the training, in passes of the dense network over the training part.
    """

    history: tuple[Entry, ...]
    images_seen: int
    wall_s: float
    final: Entry = field(default_factory=dict)
    members: tuple[tuple[Entry, dict[str, Tensor]], ...] = ()
    masks: Masks | None = None
    dense_epochs: float = 0.0
    member_masks: tuple[Masks, ...] = ()
    whole: dict[str, Tensor] | None = None

    def networks(self, model: nn.Module) -> list[nn.Module]:
        """A network of the kind of ``model`` for each member, in evaluation mode."""
        return [_loaded(model, weights) for _, weights in self.members]

    def whole_network(self, model: nn.Module) -> nn.Module | None:
        """The same for ``whole``."""
        return None if self.whole is None else _loaded(model, self.whole)


def _loaded(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy with these weights, in evaluation mode."""
    network = copy.deepcopy(model).eval()
    network.load_state_dict(weights)
    return network


EpochCallback = Callable[[Entry], None]


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
    on_epoch: EpochCallback | None = None,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Train ``model`` in place on the training part; look at the validation part only.

    Args:
        masks: which weights take part; None trains the dense network. Kept weights that no output depends on stay as they
            are where the compact network is trained, and decay with ``weight_decay`` where it is not.
        movement: how ``masks``, then the first ones, move.
        seed: of the batch order, the augmentation and dropout.
        keep_best: keep the weights of the epoch that is best on the validation part, which is then looked at every epoch.
        checkpoint: written after every epoch, the last one included; where it exists, training goes on from it, or is over
            at once. It stays: what is made of the result can fail, too, so the caller removes it once that is written.

    Raises:
        NonFiniteError: if the loss becomes NaN or infinite.
        MaskError: if the mask belongs to another network, or cannot move so.
        PanningError: if the checkpoint is of another network, recipe, seed, mask or movement.
    """
    started = time.perf_counter()
    plan = Plan.of(recipe, len(data.train))
    few, _ = data.batch(data.train, torch.arange(min(2, len(data.train))))
    fixed = masks if movement is None else None
    small = made_small(model, fixed, plan.n_steps, few) if fixed is not None and recipe.compact else None
    network, fixed = (model, fixed) if small is None else (small.model, small.masks)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )  # fmt: skip
    moving = None if movement is None else _moving(network, optimizer, movement, masks, plan)
    held: AbstractContextManager[object] = moving or nullcontext()
    if fixed is not None:
        held = enforce_masks(network, fixed, optimizer)
    images = put_channels_last(network, few)
    training = _name(recipe, seed, masks, moving, keep_best)
    n_steps = plan.n_steps if moving is None else moving.n_steps
    last = plan.n_epochs(n_steps)
    rate = learning_rate_at if movement is None else movement.method.learning_rate
    with held:
        saved = None if checkpoint is None else load_checkpoint(checkpoint, network, optimizer, training, moving)
        saved = saved or Checkpoint()
        history, best, best_masks = saved.history, saved.best, saved.masks
        for epoch in range(len(history), last):
            steps = range(epoch * plan.steps_per_epoch, min((epoch + 1) * plan.steps_per_epoch, n_steps))
            rates = [rate(recipe, step, plan.n_steps) for step in steps]
            with isolated_torch_rng(derive_seed(seed, "dropout", epoch)):
                loss = _train_epoch(network, data, recipe, plan, optimizer, epoch, seed, rates, images)
            entry = {"epoch": epoch + 1.0, "train_loss": loss, **_facts_of_masks(moving, history)}
            with moving.shipped() if moving is not None else nullcontext():
                if validate_every_epoch or keep_best or epoch + 1 == last:
                    entry.update(evaluate(network, data, data.validation, recipe.precision))
                history.append(entry)
                member = 0 if moving is None else moving.member
                if keep_best and member is not None and _is_better(entry, best.get(member)):
                    best[member] = (entry, {name: tensor.clone() for name, tensor in network.state_dict().items()})
                    if moving is not None:
                        best_masks[member] = moving.mask.cpu()
            if on_epoch is not None:
                on_epoch(entry)
            if checkpoint is not None:
                save_checkpoint(checkpoint, network, optimizer, Checkpoint(history, best, best_masks), training, moving)
    model.train()
    members = [best[number] for number in sorted(best)]
    if small is not None:
        model.load_state_dict(small.expand().state_dict())
        members = [(entry, _expanded(small, weights)) for entry, weights in members]
    of_step = min(recipe.batch_size, plan.images_per_epoch)
    n_images = n_steps * of_step
    return TrainResult(
        tuple(history), n_images, time.perf_counter() - started, dict(history[-1]), tuple(members),
        None if moving is None else moving.masks, _dense_epochs(moving, model, masks, n_images, of_step, data),
        tuple(Masks(moving.problem.layout, best_masks[number]) for number in sorted(best)) if moving is not None else (),
        None if moving is None else _whole(moving, model),
    )  # fmt: skip


def _whole(moving: MovingMasks, model: nn.Module) -> dict[str, Tensor] | None:
    """Of a method that trains the whole network, too: that one's ``state_dict``, of which all but the weights is shared."""
    if not moving.method.trains_whole:
        return None
    whole = copy.deepcopy(model)  # not its state_dict alone: of tied weights, dense ones have the first name only
    whole.load_state_dict(moving.dense_weights(), strict=False)
    return whole.state_dict()


def _dense_epochs(
    moving: MovingMasks | None, model: nn.Module, masks: Masks | None, n_images: int, of_step: int, data: ImageData
) -> float:
    """``of_step``: images of a step, fewer than the recipe's batch where an epoch has no more."""
    n_train = len(data.train)
    if moving is not None:
        return moving.dense_steps * of_step / n_train
    of_mask = cost(model, data.input_shape, masks)
    return n_images / n_train * of_mask.masked_multiply_adds / max(of_mask.multiply_adds, 1)


def n_epochs(recipe: Recipe, n_train: int, movement: Movement | None = None, masks: Masks | None = None) -> int:
    """How many entries the history of a training has: more than the recipe's epochs where that is repeated."""
    plan = Plan.of(recipe, n_train)
    if movement is None:
        return plan.n_epochs(plan.n_steps)
    start = 1.0 if masks is None else masks.density
    n_prunable = movement.problem.layout.n_prunable
    return plan.n_epochs(movement.method.length(plan.n_steps, start, movement.density, n_prunable))


def check_training(recipe: Recipe, n_train: int, movement: Movement, masks: Masks) -> None:
    """Raise what ``train`` would raise about how ``masks`` move, before anything is trained or written."""
    plan, problem = Plan.of(recipe, n_train), dataclasses.replace(movement.problem, layout=masks.layout)
    check_movement(
        problem, movement.method, movement.density, masks.flat, plan.n_steps, plan.steps_per_epoch, movement.all_alive
    )


def _moving(
    model: nn.Module, optimizer: torch.optim.Optimizer, movement: Movement, masks: Masks | None, plan: Plan
) -> MovingMasks:
    first = Masks.dense(movement.problem.layout) if masks is None else masks
    problem = dataclasses.replace(movement.problem, model=model, layout=first.layout)
    return MovingMasks(
        problem, optimizer, movement.method, density=movement.density, start=first.flat, n_steps=plan.n_steps,
        epoch=plan.steps_per_epoch, all_alive=movement.all_alive,
    )  # fmt: skip


def _name(recipe: Recipe, seed: int, masks: Masks | None, moving: MovingMasks | None, keep_best: bool) -> str:
    """What a checkpoint must agree in: with other masks, say, its weights would stand in other units."""
    bits = None if masks is None else digest_of(masks.flat)
    moves = None if moving is None else moving.identity
    return content_key([recipe.model_dump(mode="json"), seed, bits, keep_best, moves])


def _facts_of_masks(moving: MovingMasks | None, history: list[Entry]) -> Entry:
    """What an epoch's entry says of masks that move."""
    if moving is None:
        return {}
    facts = moving.report()
    n_grown = moving.n_grown - sum(entry.get("n_grown", 0.0) for entry in history)
    return {"density": facts.density, "effective_density": facts.effective_density, "n_grown": float(n_grown)}


def _is_better(entry: Entry, best: tuple[Entry, dict[str, Tensor]] | None) -> bool:
    return best is None or entry["accuracy"] > best[0]["accuracy"]


def _expanded(small: CompactResult, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the compact network as those of the whole one."""
    small.model.load_state_dict(weights)
    return small.expand().state_dict()


def _train_epoch(
    model: nn.Module, data: ImageData, recipe: Recipe, plan: Plan, optimizer: torch.optim.Optimizer,
    epoch: int, seed: int, rates: list[float], images: torch.memory_format,
) -> float:  # fmt: skip
    """One epoch, a step for each of ``rates``; returns the mean training loss of its steps."""
    model.train()
    generator = torch_generator(seed, "epoch", epoch)
    order = torch.randperm(len(data.train), generator=generator)[: plan.images_per_epoch]
    total = torch.zeros(())
    for number, rate in enumerate(rates):
        inputs, labels = data.batch(data.train, order[number * recipe.batch_size : (number + 1) * recipe.batch_size])
        if recipe.augment:
            inputs = augment_batch(inputs, data.augmentation, generator)
        loss = F.cross_entropy(forward(model, inputs, recipe.precision, images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        total += loss.detach()
    mean = float(total) / len(rates)
    if not math.isfinite(mean):
        raise NonFiniteError(
            f"The training loss is {mean} in epoch {epoch + 1}: lower the learning rate (now {recipe.learning_rate})."
        )
    return mean
