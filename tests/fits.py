"""Short trainings by Lightning and by the Trainer of transformers, for the tests of the callbacks."""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fpe
from fpe.integrations import huggingface


class Module(L.LightningModule):
    """A small classifier."""

    def __init__(self):
        super().__init__()
        self.network = fpe.mlp(8, 4, 2, seed=0)
        self.losses = []

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def data():
    X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(X, (X[:, 0] > X[:, 1]).long()), 16)


def lightning(folder, *callbacks, epochs=4, **settings):
    """Return a quiet Trainer of Lightning; an epoch has four steps."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": epochs, "accelerator": "cpu", "default_root_dir": folder, **quiet, **settings}
    return L.Trainer(callbacks=list(callbacks), **settings)


def fitted(folder, *callbacks, epochs=4, ckpt_path=None):
    """Train a new module, save a checkpoint, and return the module."""
    module, trainer = Module(), lightning(folder, *callbacks, epochs=epochs)
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"after-{epochs}.ckpt")
    return module


def transformers(model, folder, *callbacks, epochs=3, windows=None, held_out=None, **arguments):
    """Return a quiet Trainer of transformers; an epoch of the default windows has three steps."""
    from transformers import Trainer, TrainingArguments

    if windows is None:
        windows = [{"input_ids": w, "labels": w} for w in torch.arange(240).view(-1, 8) % 27 + 3]
    given = {
        "num_train_epochs": epochs, "per_device_train_batch_size": 10, "learning_rate": 1e-2, "report_to": [],
        "save_strategy": "epoch", "use_cpu": True, "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    settings = TrainingArguments(str(folder), **{**given, **arguments})
    return Trainer(model, settings, train_dataset=windows, eval_dataset=held_out, callbacks=list(callbacks))


def trainer_for(model, folder, *others, epochs=3, **callback):
    """Return a Trainer of transformers that expands after one epoch."""
    return transformers(model, folder, huggingface.Expand(1, factor=2, **callback), *others, epochs=epochs)
