"""Callbacks for the Trainer of Lightning.

    masks = panning.prune(module, loader, density=0.1, method="snip")
    trainer = Trainer(max_epochs=5, callbacks=[EnforceMasks(masks)])
    trainer.fit(module, loader)

Masks are in every checkpoint, and ``trainer.fit(..., ckpt_path=...)`` goes on with them. They are made and held when the
training starts: only then are there the DataLoader, the optimizers and what a checkpoint says of them. Gradient
accumulation, mixed precision and clipping are Lightning's as ever: what is done here hangs on the optimizers' steps.
"""

from __future__ import annotations

import math
from typing import Any

from panning.foundation.extras import extra_packages
from panning.integrations.held import Enforced, Fit, Held, MaskSource, Moved, State
from panning.masks.masks import Masks
from panning.training.moving.method import Dynamic

with extra_packages():
    from lightning.pytorch import Callback, LightningModule, Trainer


class _Callback(Callback):
    """Base of callbacks that hold masks from the first step to the last.

    Attributes:
        masks: of the network, once the training has begun; of masks that move, once it has ended.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self._loaded: State | None = None

    @property
    def masks(self) -> Masks | None:
        return self.held.masks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_training_batches
        steps = max(1, math.ceil(batches / trainer.accumulate_grad_batches)) if math.isfinite(batches) else None
        n_steps = trainer.estimated_stepping_batches
        known = int(n_steps) if math.isfinite(n_steps) and n_steps > 0 else None
        # A checkpoint without a state of this callback holds no masks: making them from trained weights would be wrong.
        loaded, self._loaded = {} if trainer.ckpt_path and self._loaded is None else self._loaded, None
        self.held.begin(Fit(pl_module, trainer.optimizers, trainer.train_dataloader, known, steps), loaded)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.held.end()

    def state_dict(self) -> State:
        return self.held.state() or {}

    def load_state_dict(self, state_dict: State) -> None:
        self._loaded = state_dict


class EnforceMasks(_Callback):
    """A callback that keeps masked weights, their gradients and optimizer states at zero while a Trainer trains.

    Args:
        masks: ``panning.Masks``; or a function of the module and its DataLoader that returns them, called once, when a
            training begins afresh.

    Raises:
        MaskError: when the training begins, if the masks are of another network or the checkpoint is of other masks.

    Examples:
        >>> import torch, panning
        >>> from panning.integrations.lightning import EnforceMasks
        >>> masks = panning.Masks.from_tensors({"net.weight": torch.tensor([[1, 0], [1, 1]])})
        >>> callback = EnforceMasks(masks)  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, masks: MaskSource) -> None:
        super().__init__(Enforced(masks))


class MoveMasks(_Callback):
    """A callback that lets masks move while a Trainer trains (``panning.move_masks``); ``masks`` are then the final ones.

    Args:
        method: a row of ``panning.training.DYNAMICS``, or one with other numbers (``panning.make_dynamic``).
        density: at the end.
        n_steps, steps_per_epoch: optimizer steps, in place of what the Trainer says.
        options: of ``panning.move_masks``: ``masks``, ``all_alive``, ``data``, ``input_shape``, ``seed``, ... Without data
            and without the input's shape, batches come from the Trainer's DataLoader.

    Raises:
        MaskError: when the training begins, if masks cannot move so, or the checkpoint is of masks that moved otherwise.

    Examples:
        >>> from panning.integrations.lightning import MoveMasks
        >>> callback = MoveMasks("dpf", density=0.1, input_shape=(16,))  # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self, method: str | Dynamic = "dpf", *, density: float, n_steps: int | None = None,
        steps_per_epoch: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(Moved(method, density, n_steps, steps_per_epoch, **options))
