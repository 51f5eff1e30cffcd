"""Callbacks for the Trainer of Hugging Face's transformers.

    masks = panning.prune(model, batch, density=0.1, method="snip")
    trainer = Trainer(model, args, train_dataset=data, callbacks=[EnforceMasks(masks)])
    trainer.train()

Masks lie in every checkpoint beside the network, as ``panning.safetensors``, and
``trainer.train(resume_from_checkpoint=True)`` goes on with them. Gradient accumulation, mixed precision and clipping are the
Trainer's as ever: what is done here hangs on the optimizer's steps.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from panning.foundation.errors import MaskError
from panning.foundation.extras import extra_packages
from panning.foundation.files import write_atomic
from panning.foundation.tensorfile import DAMAGE, packed, read_tensors, under
from panning.integrations.held import Enforced, Fit, Held, MaskSource, Moved, State
from panning.masks.masks import Masks
from panning.training.moving.method import Dynamic

with extra_packages():
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

#: In every checkpoint.
FILE = "panning.safetensors"
_KEY, _MOVING = "panning_callback", "moving."


class _Callback(TrainerCallback):
    """Base of callbacks that hold masks from the first step to the last.

    Attributes:
        masks: of the network, once the training has begun; of masks that move, once it has ended.
    """

    def __init__(self, held: Held, resume_from: str | Path | None) -> None:
        self.held, self.resume_from = held, resume_from

    @property
    def masks(self) -> Masks | None:
        return self.held.masks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loader = kwargs["train_dataloader"]
        try:
            steps = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
        except TypeError:  # a stream
            steps = None
        # Not the loader that accelerate has prepared: a pass through it that ends early confuses gradient accumulation.
        source = getattr(loader, "base_dataloader", loader)
        saved = None
        if state.global_step:
            folder = self.resume_from or Path(args.output_dir) / f"checkpoint-{state.global_step}"
            saved = _read(Path(folder) / FILE)
        self.held.begin(Fit(kwargs["model"], [kwargs["optimizer"]], source, state.max_steps, steps), saved)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and (held := self.held.state()) is not None:
            write_atomic(Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE, _dump(held))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.held.end()


class EnforceMasks(_Callback):
    """A callback that keeps masked weights, their gradients and optimizer states at zero while a Trainer trains.

    Args:
        masks: ``panning.Masks``; or a function of the network and the Trainer's DataLoader that returns them, called once,
            when a training begins afresh.
        resume_from: the checkpoint that the training goes on from, if it does not lie in the Trainer's own folder.

    Raises:
        MaskError: when the training begins, if the masks are of another network or the checkpoint is of other masks.

    Examples:
        >>> import torch, panning
        >>> from panning.integrations.huggingface import EnforceMasks
        >>> masks = panning.Masks.from_tensors({"weight": torch.tensor([[1, 0], [1, 1]])})
        >>> callback = EnforceMasks(masks)  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, masks: MaskSource, *, resume_from: str | Path | None = None) -> None:
        super().__init__(Enforced(masks), resume_from)


class MoveMasks(_Callback):
    """A callback that lets masks move while a Trainer trains (``panning.move_masks``); ``masks`` are then the final ones.

    Args:
        method: a row of ``panning.training.DYNAMICS``, or one with other numbers (``panning.make_dynamic``).
        density: at the end.
        n_steps, steps_per_epoch: optimizer steps, in place of what the Trainer says.
        resume_from: as of ``EnforceMasks``.
        options: of ``panning.move_masks``: ``masks``, ``all_alive``, ``data``, ``input_shape``, ``seed``, ... Without data
            and without the input's shape, batches come from the Trainer's DataLoader.

    Raises:
        MaskError: when the training begins, if masks cannot move so, or the checkpoint is of masks that moved otherwise.

    Examples:
        >>> from panning.integrations.huggingface import MoveMasks
        >>> callback = MoveMasks("dpf", density=0.1, input_shape=(16,))  # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self, method: str | Dynamic = "dpf", *, density: float, n_steps: int | None = None,
        steps_per_epoch: int | None = None, resume_from: str | Path | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(Moved(method, density, n_steps, steps_per_epoch, **options), resume_from)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end:
            raise MaskError(
                "load_best_model_at_end does not go with masks that move: the best network had another mask than the last."
            )
        super().on_train_begin(args, state, control, **kwargs)


def _dump(state: State) -> bytes:
    moving = dict(state.get("moving", {}))
    tensors: dict[str, Tensor] = {f"{_MOVING}{name}": tensor for name, tensor in moving.pop("tensors", {}).items()}
    return packed({"masks": state["masks"], **tensors}, {_KEY: json.dumps(moving, sort_keys=True)})


def _read(path: Path) -> State:
    try:
        moving, tensors = read_tensors(path, _KEY)
        return {"masks": tensors["masks"], "moving": {**moving, "tensors": under(tensors, _MOVING)}}
    except DAMAGE as error:
        raise MaskError(
            f"The training goes on from a checkpoint, but {path} cannot be read ({error}). Pass resume_from with the "
            "checkpoint's folder to the callback, or begin anew: masks made now would be of trained weights."
        ) from None
