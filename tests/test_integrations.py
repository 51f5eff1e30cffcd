"""The callbacks for Hugging Face's and Lightning's Trainer, with the libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import panning
from panning.foundation.errors import MaskError
from panning.masks.masks import Masks

pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
transformers = pytest.importorskip("transformers")
pl = pytest.importorskip("lightning.pytorch")

from panning.integrations import huggingface, lightning  # noqa: E402

pytestmark = [
    # Of the libraries about their own defaults and about this machine.
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*", "ignore:.*:DeprecationWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*:UserWarning"),
]


def thinned(model: nn.Module, density: float = 0.25) -> Masks:
    """A random mask of every Linear layer."""
    generator = torch.Generator().manual_seed(0)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return Masks.from_tensors(
        {f"{n}.weight": torch.rand(m.weight.shape, generator=generator) < density for n, m in linear.items()}
    )


def assert_held(model: nn.Module, masks: Masks, optimizer: Any, states: bool = True) -> None:
    """Masked weights, and with ``states`` theirs, are exactly 0, and the others have learned."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        kept = [state for state in optimizer.state[parameters[name]].values() if state.dim() > 0]
        assert len(kept) > 0
        for tensor in (parameters[name], *(kept if states else ())):
            assert not tensor[~mask].any() and tensor[mask].any()


# --- Hugging Face ---


class Tokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sentences whose first token says the class."""

    def __init__(self) -> None:
        self.tokens = torch.randint(4, 30, (48, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": (self.tokens[index, 0] > 16).long()}


SENTENCES = (Tokens().tokens[:4], torch.zeros(4, dtype=torch.int64))


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2,
        max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def hf_trainer(folder: Path, callback: Any, model: Any = None, **changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 8, "save_steps": 4, "learning_rate": 0.01,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 100, "gradient_accumulation_steps": 2,
        "dataloader_pin_memory": False, "seed": 3,
    }  # fmt: skip
    return transformers.Trainer(
        model=model or bert(), args=transformers.TrainingArguments(**{**arguments, **changed}), train_dataset=Tokens(),
        eval_dataset=Tokens(), callbacks=[callback],
    )  # fmt: skip


def optimizer_of(trainer: Any) -> Any:
    return trainer.optimizer.optimizer


HF: dict[str, Callable[[], Any]] = {
    "enforced": lambda: huggingface.EnforceMasks(thinned(bert())),
    "made at the start": lambda: huggingface.EnforceMasks(lambda model, loader: thinned(model)),
    "dpf": lambda: huggingface.MoveMasks(
        panning.make_dynamic("dpf", {"every": 2}), density=0.3, include=["*dense.weight"]
    ),
    "rigl": lambda: huggingface.MoveMasks(
        panning.make_dynamic("rigl", {"every": 3}), density=thinned(bert()).density, masks=thinned(bert()), data=SENTENCES
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", HF)
def test_hugging_faces_trainer_holds_masks_and_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    kind: str, precision: dict[str, bool], tmp_path: Path
) -> None:
    callback = HF[kind]()
    whole = hf_trainer(tmp_path / "whole", callback, **precision)
    whole.train()
    assert callback.masks is not None and callback.masks.n_kept < callback.masks.n_prunable
    assert_held(whole.model, callback.masks, optimizer_of(whole), states=kind != "dpf")  # whose dense weights learn
    again = HF[kind]()
    resumed = hf_trainer(tmp_path / "whole", again, **precision)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == 8 and again.masks == callback.masks
    assert_held(resumed.model, again.masks, optimizer_of(resumed), states=kind != "dpf")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_hugging_face_a_checkpoint_of_other_masks_or_of_none_is_refused(tmp_path: Path) -> None:
    trainer = hf_trainer(tmp_path, huggingface.EnforceMasks(thinned(bert())), max_steps=4)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-4"

    def resume(callback: Any, folder: Path = tmp_path) -> None:
        hf_trainer(folder, callback).train(resume_from_checkpoint=str(checkpoint))

    with pytest.raises(MaskError, match="under other masks"):
        resume(huggingface.EnforceMasks(thinned(bert(), 0.5)))
    with pytest.raises(MaskError, match="whose masks moved otherwise"):
        resume(HF["rigl"]())
    with pytest.raises(MaskError, match="pass resume_from|Pass resume_from"):
        resume(huggingface.EnforceMasks(thinned(bert())), tmp_path / "elsewhere")
    resume(
        huggingface.EnforceMasks(lambda *_: pytest.fail("made anew"), resume_from=checkpoint), tmp_path / "elsewhere"
    )
    (checkpoint / huggingface.FILE).write_bytes(b"damaged")
    with pytest.raises(MaskError, match="begin anew"):
        resume(huggingface.EnforceMasks(thinned(bert())))


def test_hugging_face_the_best_network_has_its_masks_and_masks_that_move_have_no_best(tmp_path: Path) -> None:
    changed = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    masks = thinned(bert())
    trainer = hf_trainer(tmp_path, huggingface.EnforceMasks(masks), **changed)
    trainer.train()
    assert all(not dict(trainer.model.named_parameters())[name][~mask].any() for name, mask in masks.items())
    moving = huggingface.MoveMasks("rigl", density=masks.density, masks=masks, data=SENTENCES)
    with pytest.raises(MaskError, match="load_best_model_at_end does not go with masks that move"):
        hf_trainer(tmp_path, moving, **changed).train()


def test_what_is_no_mask_is_refused_at_once() -> None:
    for module in (huggingface, lightning):
        with pytest.raises(MaskError, match="masks is a float; pass panning.Masks, or a function"):
            module.EnforceMasks(0.1)


# --- Lightning ---


class Digits(pl.LightningModule):
    """An MLP on points; several optimizers if asked."""

    def __init__(self, n_optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        self.n_optimizers = n_optimizers
        self.automatic_optimization = n_optimizers == 1

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        parts = [self.net] if self.n_optimizers == 1 else [self.net[0], self.net[2]]
        return [torch.optim.AdamW(part.parameters(), 0.01) for part in parts]


def loader() -> Any:
    inputs = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1))
    return torch.utils.data.DataLoader(data, batch_size=4)


def fit(folder: Path, callback: Any, module: Any = None, ckpt_path: Path | None = None, **changed: Any) -> Any:
    save = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=6)
    module = module or Digits()
    arguments: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": 2, "accumulate_grad_batches": 2, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "gradient_clip_val": 1.0,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=[save, callback], **{**arguments, **changed})
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


LIGHTNING: dict[str, Callable[[], Any]] = {
    "enforced": lambda: lightning.EnforceMasks(thinned(Digits())),
    "made at the start": lambda: lightning.EnforceMasks(
        lambda module, data: panning.prune(module, data, density=0.25, method="snip")
    ),
    "dpf": lambda: lightning.MoveMasks(panning.make_dynamic("dpf", {"every": 2}), density=0.3),
    "rigl": lambda: lightning.MoveMasks(panning.make_dynamic("rigl", {"every": 3}), density=0.25),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", LIGHTNING)
def test_lightnings_trainer_holds_masks_and_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    kind: str, precision: str, tmp_path: Path
) -> None:
    callback = LIGHTNING[kind]()
    whole = fit(tmp_path, callback, precision=precision)
    assert whole.global_step == 12 and callback.masks is not None
    assert callback.masks.n_kept < callback.masks.n_prunable
    assert_held(whole.lightning_module, callback.masks, whole.optimizers[0], states=kind != "dpf")
    again = LIGHTNING[kind]()
    resumed = fit(tmp_path, again, precision=precision, ckpt_path=tmp_path / "step=6.ckpt")
    assert resumed.global_step == 12 and again.masks == callback.masks
    assert_held(resumed.lightning_module, again.masks, resumed.optimizers[0], states=kind != "dpf")
    for name, tensor in whole.lightning_module.state_dict().items():
        assert torch.equal(tensor, resumed.lightning_module.state_dict()[name]), name


def test_lightning_several_optimizers_hold_masks_and_cannot_move_them(tmp_path: Path) -> None:
    callback = lightning.EnforceMasks(thinned(Digits()))
    options = {"accumulate_grad_batches": 1, "gradient_clip_val": None}
    trainer = fit(tmp_path, callback, Digits(2), **options)
    first, second = callback.masks.items()
    for (name, mask), optimizer in zip((first, second), trainer.optimizers, strict=True):
        assert_held(trainer.lightning_module, Masks.from_tensors({name: mask}), optimizer)
    with pytest.raises(MaskError, match="one optimizer for all, and there are 2"):
        fit(tmp_path, lightning.MoveMasks(density=0.3), Digits(2), **options)


def test_lightning_a_checkpoint_of_other_masks_or_of_none_is_refused(tmp_path: Path) -> None:
    fit(tmp_path / "held", lightning.EnforceMasks(thinned(Digits())))
    fit(tmp_path / "dense", pl.Callback())
    with pytest.raises(MaskError, match="under other masks"):
        fit(tmp_path, lightning.EnforceMasks(thinned(Digits(), 0.5)), ckpt_path=tmp_path / "held" / "step=6.ckpt")
    with pytest.raises(MaskError, match="was made without these masks"):
        fit(tmp_path, lightning.MoveMasks("dpf", density=0.1), ckpt_path=tmp_path / "held" / "step=6.ckpt")
    dpf = panning.make_dynamic("dpf", {"every": 2})
    fit(tmp_path / "moved", lightning.MoveMasks(dpf, density=0.3))
    with pytest.raises(MaskError, match=r"whose masks moved otherwise\..*its density is 0.3, not 0.2"):
        fit(tmp_path, lightning.MoveMasks(dpf, density=0.2), ckpt_path=tmp_path / "moved" / "step=6.ckpt")
    with pytest.raises(MaskError, match="was made without these masks"):
        fit(tmp_path, lightning.EnforceMasks(thinned(Digits())), ckpt_path=tmp_path / "dense" / "step=6.ckpt")


def test_lightning_endless_training_needs_a_number_of_steps(tmp_path: Path) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 8

    def endless(callback: Any) -> Any:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, callbacks=[callback, Stops()],
        )  # fmt: skip
        trainer.fit(Digits(), loader())
        return trainer

    with pytest.raises(MaskError, match="does not know its number of steps: pass n_steps"):
        endless(lightning.MoveMasks("dpf", density=0.3))
    callback = lightning.MoveMasks(panning.make_dynamic("dpf", {"every": 2}), density=0.3, n_steps=8)
    assert endless(callback).global_step >= 8 and callback.masks.density == pytest.approx(0.3, abs=0.01)
