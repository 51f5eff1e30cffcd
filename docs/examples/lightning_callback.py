"""A LightningModule that a callback prunes when its training starts, and holds sparse from then on.

pip install 'panning[integrations]'
python docs/examples/lightning_callback.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import panning
from panning.integrations.lightning import EnforceMasks


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        self.losses: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch + 1}: loss {torch.stack(self.losses).mean():.3f}")
        self.losses.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.01)


def sparse(module: nn.Module, loader: DataLoader) -> panning.Masks:
    return panning.prune(module, loader, density=0.05, method="snip", all_alive=True)


torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32).div(16), torch.tensor(digits.target))
callback, module = EnforceMasks(sparse), Digits()
trainer = Trainer(max_epochs=5, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))
print(callback.masks)
