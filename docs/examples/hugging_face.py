"""A network of transformers, pruned before it is trained and held sparse by a callback of its Trainer.

pip install 'panning[integrations]'
python docs/examples/hugging_face.py
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import panning
from panning.integrations.huggingface import EnforceMasks


class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Made up: the first token says the class."""

    def __init__(self, n: int) -> None:
        self.tokens = torch.randint(4, 50, (n, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": (self.tokens[index, 0] > 26).long()}


torch.manual_seed(0)
config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                    max_position_embeddings=16, num_labels=2)  # fmt: skip
model, data = BertForSequenceClassification(config), Sentences(2000)
masks = panning.prune(model, data, density=0.2, method="snip")  # scored by the loss that the network computes itself

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(folder, max_steps=80, learning_rate=3e-3, per_device_train_batch_size=32, use_cpu=True,
                                  report_to=[], disable_tqdm=True, logging_steps=20, save_steps=40)  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[EnforceMasks(masks)])
    trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on with the masks of the last checkpoint
for entry in trainer.state.log_history[:-1]:
    print(f"step {entry['step']}: loss {entry['loss']:.3f}")
weights = dict(model.named_parameters())
print(
    "masked weights that are not zero:", sum(int(weights[name][~mask].count_nonzero()) for name, mask in masks.items())
)
