"""The configuration of ``fpe fit``: a value that is checked, stored and compared with earlier ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fpe import __version__
from fpe.data import Dataset
from fpe.errors import DataError
from fpe.expansion.planner import plan
from fpe.models import mlp
from fpe.training.folds import hold_out
from fpe.training.recipe import Recipe, check_parameters

#: Default epochs before and after the expansion.
EPOCHS = (100, 100)


@dataclass(frozen=True)
class FitConfig:
    """What `run_fit` does; the defaults of ``fpe fit``. None stands for a default of `Recipe.choose`.

    Each width in `hidden` is tried with `trials` networks; trial t has seed ``seed + t``.
    `validation_fraction` of the training samples is held out, to choose the best model and for `patience`.
    With `standardize` networks are trained on features of mean 0 and standard deviation 1; the saved model
    does this itself.
    """

    hidden: tuple[int, ...] = (4, 8, 16)
    factor: int | None = None
    split: str | None = None
    prune: str | None = None
    rewire: bool | str = False
    trials: int = 5
    warmup_epochs: int | None = None
    epochs: int | None = None
    lr: float | None = None
    decay: bool | None = None
    batch_size: int | None = None
    l2: float = 0.0
    patience: int | None = None
    validation_fraction: float = 0.1
    standardize: bool = False
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """How networks are expanded and trained, with all defaults filled in."""
        return Recipe.of(vars(self), "the configuration", EPOCHS)

    def filled(self) -> dict[str, Any]:
        """Return all settings by name, with all defaults filled in."""
        recipe = self.recipe
        return {k: getattr(recipe, k, v) for k, v in dataclasses.asdict(self).items()}

    def check(self, dataset: Dataset) -> None:
        """Raise if this cannot be done with this data, before anything is trained or written."""
        check_parameters(vars(self), "the configuration")
        if not len(self.held_out(dataset)[1]):
            raise DataError(
                f"{dataset.name} has {len(dataset.y_train)} training samples, no two of one class, so that "
                "none can be held out to choose the best model; give more samples."
            )
        recipe = self.recipe
        for hidden in self.hidden:
            dense = dense_network(dataset, hidden, self.seed)
            plan(dense, recipe.factor, split=recipe.split, prune=recipe.prune, seed=self.seed)

    def held_out(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the samples to train on and of the held-out ones; see `hold_out`."""
        return hold_out(dataset.y_train, self.validation_fraction, self.seed)

    def identity(self, dataset: Dataset) -> dict[str, Any]:
        """Return what a trial's result depends on, beside its width and number."""
        own = {k: v for k, v in self.filled().items() if k not in ("hidden", "trials")}
        return {"data": dataset.name, "fingerprint": dataset.fingerprint, "fpe": __version__, **own}

    def digest(self, dataset: Dataset) -> str:
        """Return a hash of the identity."""
        text = json.dumps(self.identity(dataset), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def folder(self, dataset: Dataset) -> Path:
        """Return the default folder of the results, named by data, split and configuration."""
        recipe = self.recipe
        split = str(recipe.split).replace(":", "-")
        return Path("fpe-out", f"{dataset.name}-{split}-x{recipe.factor}-{self.digest(dataset)[:6]}")


def dense_network(dataset: Dataset, hidden: int, seed: int) -> nn.Sequential:
    """Make the untrained dense network for this data: one logit for two classes."""
    classes = len(dataset.classes)
    return mlp(dataset.X_train.shape[1], hidden, 1 if classes == 2 else classes, seed=seed)
