"""One training loop for dense and masked networks.

Masked weights are exactly zero before the first step and after every step (``panning.enforce``). Where a mask
leaves few units, the compact network is trained in the masked one's place: the same training, up to rounding.

Everything random in epoch e (order, augmentation, dropout) derives from (seed, e): a run that goes on from a checkpoint
gives the same weights, bit for bit on one thread, as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from panning.config import Config
from panning.data import ImageData, Split, augment_batch
from panning.enforce import enforce_masks
from panning.errors import ModelError, NonFiniteError
from panning.export.compaction import CompactResult, compact
from panning.export.cost import multiply_adds_left
from panning.export.trace import as_it_was
from panning.image_format import adds_parts, image_format, put_channels_last
from panning.masks import Masks
from panning.records import content_key
from panning.seeding import derive_seed, isolated_torch_rng, torch_generator
from panning.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

EVALUATION_BATCH = 1000
#: Making a network compact takes about as long as twenty of its steps, and narrow layers do fewer multiply-adds a second.
COMPACT_FROM_STEPS, COMPACT_BELOW = 100, 0.8
#: Adding parts of the units takes time, too: a compact ResNet-20 with 0.35 of its multiply-adds left is no faster in
#: bfloat16, with 0.08 it takes two thirds of the time.
COMPACT_BELOW_IN_PARTS = 0.25


class Recipe(Config):
    """How a network is trained.

    Attributes:
        epochs: may be a fraction; the last epoch is then cut short.
        schedule: ``cosine`` falls from ``learning_rate`` to 0, ``one_cycle`` rises over the first quarter and falls
            linearly to 0, ``constant`` stays, ``steps`` is multiplied by ``gamma`` at each of ``milestones``.
        milestones: shares of the whole training.
        precision: ``bfloat16`` runs the forward pass under autocast; weights stay float32.
        n_images: train on the first so many images of each epoch's order only; None uses all. Short trainings use it.
        compact: train the compact network (``panning.compact``) where that is worth it.
    """

    epochs: Annotated[float, Field(gt=0)] = 10.0
    batch_size: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    nesterov: bool = False
    schedule: Literal["cosine", "one_cycle", "constant", "steps"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: bool = True
    n_images: Annotated[int, Field(ge=1)] | None = None
    compact: bool = True


@dataclass(frozen=True)
class TrainResult:
    """What a training run gives.

    Attributes:
        history: an entry an epoch: ``epoch``, ``train_loss`` and, where it was looked at, ``accuracy`` and ``loss`` of the
            validation part.
        images_seen: what it cost.
        final: the last entry.
        best: the entry and the weights (a ``state_dict``) of the epoch that was best on the validation part, the first of
            equals; None if it was not asked for.
    """

    history: tuple[dict[str, float], ...]
    images_seen: int
    wall_s: float
    final: dict[str, float] = field(default_factory=dict)
    best: tuple[dict[str, float], dict[str, Tensor]] | None = None


EpochCallback = Callable[[dict[str, float]], None]


def train(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int,
    masks: Masks | None = None,
    validate_every_epoch: bool = True,
    keep_best: bool = False,
    on_epoch: EpochCallback | None = None,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Train ``model`` in place on the training part; look at the validation part only.

    Args:
        masks: which weights take part; None trains the dense network. Kept weights that no output depends on stay as they
            are where the compact network is trained, and decay with ``weight_decay`` where it is not.
        seed: of the batch order, the augmentation and dropout.
        keep_best: keep the weights of the epoch that is best on the validation part, which is then looked at every epoch.
        checkpoint: written after every epoch and removed at the end; where it exists, training goes on from it.

    Raises:
        NonFiniteError: if the loss becomes NaN or infinite.
        MaskError: if the mask belongs to another network.
        PanningError: if the checkpoint is of another network, recipe, seed or mask.
    """
    started = time.perf_counter()
    plan = _Plan.of(recipe, len(data.train))
    few, _ = data.batch(data.train, torch.arange(min(2, len(data.train))))
    small = _made_small(model, masks, recipe, plan, few)
    network, kept = (model, masks) if small is None else (small.model, small.masks)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )  # fmt: skip
    enforcement = nullcontext() if kept is None else enforce_masks(network, kept, optimizer)
    images = put_channels_last(network, few)
    saved, training = Checkpoint([]), _name(recipe, seed, masks, keep_best)
    if checkpoint is not None:
        saved = load_checkpoint(checkpoint, network, optimizer, training) or saved
    history, best = saved.history, saved.best
    with enforcement:
        for epoch in range(len(history), plan.n_epochs):
            with isolated_torch_rng(derive_seed(seed, "dropout", epoch)):
                loss = _train_epoch(network, data, recipe, plan, optimizer, epoch, seed, images)
            entry = {"epoch": epoch + 1.0, "train_loss": loss}
            if validate_every_epoch or keep_best or epoch + 1 == plan.n_epochs:
                entry.update(evaluate(network, data, data.validation, recipe.precision))
            history.append(entry)
            if keep_best and _best(history) is entry:
                best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            if on_epoch is not None:
                on_epoch(entry)
            if checkpoint is not None and epoch + 1 < plan.n_epochs:
                save_checkpoint(checkpoint, network, optimizer, Checkpoint(history, best), training)
    model.train()
    kept_best = None
    if small is not None:
        model.load_state_dict(small.expand().state_dict())
    if keep_best:
        if small is not None:
            small.model.load_state_dict(best)
            best = small.expand().state_dict()
        kept_best = (dict(_best(history)), best)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    n_images = min(plan.n_steps * recipe.batch_size, int(math.ceil(recipe.epochs * plan.images_per_epoch)))
    return TrainResult(tuple(history), n_images, time.perf_counter() - started, dict(history[-1]), kept_best)


def _name(recipe: Recipe, seed: int, masks: Masks | None, keep_best: bool) -> str:
    """What a checkpoint must agree in: with other masks, say, its weights would stand in other units."""
    bits = None if masks is None else hashlib.sha256(masks.flat.cpu().numpy().tobytes()).hexdigest()
    return content_key([recipe.model_dump(mode="json"), seed, bits, keep_best])


def _made_small(
    model: nn.Module, masks: Masks | None, recipe: Recipe, plan: _Plan, inputs: Tensor
) -> CompactResult | None:
    """The compact network if training it is worth making it; decided by counts, so equally on every machine.

    None for a network that draws random numbers in training: with fewer units it would draw others.
    """
    if masks is None or not recipe.compact or plan.n_steps < COMPACT_FROM_STEPS:
        return None
    try:
        small = compact(model, masks, tuple(inputs.shape[1:]))
        most = COMPACT_BELOW_IN_PARTS if adds_parts(small.model) else COMPACT_BELOW
        if multiply_adds_left(small) >= most or _draws(model, inputs):
            return None
    except ModelError:  # it has no compact form, and trains as it is
        return None
    return small


def _draws(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a forward pass in training draws random numbers: dropout, for instance."""
    with as_it_was(model), torch.no_grad(), isolated_torch_rng(0):
        before = torch.get_rng_state()
        model.train()(inputs)
        return not torch.equal(before, torch.get_rng_state())


def _best(history: list[dict[str, float]]) -> dict[str, float]:
    """The first of the entries that are best on the validation part."""
    return max(history, key=lambda entry: entry["accuracy"])


def evaluate(model: nn.Module, data: ImageData, split: Split, precision: str = "float32") -> dict[str, float]:
    """Accuracy in [0, 1] and mean cross-entropy of ``model`` on a part of the data; modes and weights stay."""
    was_training = model.training
    model.eval()
    correct, loss, images = 0, 0.0, None
    try:
        with torch.no_grad():
            for indices in torch.arange(len(split)).split(EVALUATION_BATCH):
                inputs, labels = data.batch(split, indices)
                images = images or image_format(model, inputs[:2])
                logits = _forward(model, inputs, precision, images)
                correct += int((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    finally:
        model.train(was_training)
    return {"accuracy": correct / len(split), "loss": loss / len(split)}


@dataclass(frozen=True)
class _Plan:
    images_per_epoch: int
    steps_per_epoch: int
    n_steps: int
    n_epochs: int

    @classmethod
    def of(cls, recipe: Recipe, n_train: int) -> _Plan:
        images = min(n_train, recipe.n_images or n_train)
        steps = max(1, images // recipe.batch_size)  # the ragged last batch is left out, as BatchNorm likes it
        n_steps = max(1, round(recipe.epochs * steps))
        return cls(images, steps, n_steps, math.ceil(n_steps / steps))


def learning_rate_at(recipe: Recipe, step: int, n_steps: int) -> float:
    """The learning rate of step ``step`` of ``n_steps``, counted from 0."""
    progress = step / n_steps
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "one_cycle":
        rising = (step + 1) / (0.25 * n_steps)
        return recipe.learning_rate * max(0.0, min(1.0, rising, (1.0 - progress) / 0.75))
    if recipe.schedule == "steps":
        return recipe.learning_rate * recipe.gamma ** sum(progress >= milestone for milestone in recipe.milestones)
    return recipe.learning_rate


def _train_epoch(
    model: nn.Module, data: ImageData, recipe: Recipe, plan: _Plan, optimizer: torch.optim.Optimizer,
    epoch: int, seed: int, images: torch.memory_format,
) -> float:  # fmt: skip
    """One epoch; returns the mean training loss of its steps."""
    model.train()
    generator = torch_generator(seed, "epoch", epoch)
    order = torch.randperm(len(data.train), generator=generator)[: plan.images_per_epoch]
    total, n_batches = torch.zeros(()), 0
    first_step = epoch * plan.steps_per_epoch
    for step in range(first_step, min(first_step + plan.steps_per_epoch, plan.n_steps)):
        start = (step - first_step) * recipe.batch_size
        inputs, labels = data.batch(data.train, order[start : start + recipe.batch_size])
        if recipe.augment:
            inputs = augment_batch(inputs, data.augmentation, generator)
        loss = F.cross_entropy(_forward(model, inputs, recipe.precision, images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(recipe, step, plan.n_steps)
        optimizer.step()
        total += loss.detach()
        n_batches += 1
    mean = float(total) / n_batches
    if not math.isfinite(mean):
        raise NonFiniteError(
            f"The training loss is {mean} in epoch {epoch + 1}: lower the learning rate (now {recipe.learning_rate})."
        )
    return mean


def _forward(model: nn.Module, inputs: Tensor, precision: str, images: torch.memory_format) -> Tensor:
    inputs = inputs.contiguous(memory_format=images)
    if precision == "float32":
        logits: Tensor = model(inputs)
        return logits
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model(inputs)
    return logits.float()
