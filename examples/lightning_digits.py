"""Expand a network in a Lightning script: two more lines.

Run: python examples/lightning_digits.py
"""

import lightning.pytorch as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fpe
from fpe.integrations.lightning import Expand  # the first line


class Classifier(L.LightningModule):
    """An ordinary LightningModule around a network."""

    def __init__(self):
        super().__init__()
        self.network = fpe.mlp(64, 8, 10, seed=0)

    def training_step(self, batch):
        """Return the loss of a batch."""
        X, y = batch
        return nn.functional.cross_entropy(self.network(X), y)

    def configure_optimizers(self):
        """Return Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


X, y = load_digits(return_X_y=True)
data = DataLoader(TensorDataset(torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)), 64, shuffle=True)
module = Classifier()
before = fpe.count_nonzero(module)
trainer = L.Trainer(
    max_epochs=4,
    callbacks=[Expand(epoch=2, factor=2)],  # the second line
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(module, data)

hits = (module.network(data.dataset.tensors[0]).argmax(1) == data.dataset.tensors[1]).float().mean()
print(f"{before:,} non-zeros before, {fpe.count_nonzero(module):,} after; accuracy {hits:.2f}")
