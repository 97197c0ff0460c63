"""Deep MLPs wider, with masks that are random from the start."""

from __future__ import annotations

from typing import Any

import torch
import whole_mlp
from torch import Tensor
from trained import arrays

import fpe
from fpe.compare.runner import one_thread
from fpe.training.folds import hold_out
from fpe.training.loop import Cosine, accuracy, adam, train


def measure(layers: int, hidden: int, factor: int) -> dict[str, Any]:
    """Choose the rate of a deep MLP with random masks; return its test accuracies, one per seed.

    It is `factor` times as wide as the dense one of `hidden` neurons, whose count it has; trained as that is.
    """
    X, y, X_test, y_test = arrays("cifar100", "test")
    X, X_test, classes = X * 10, X_test * 10, int(y.max()) + 1
    rows, held = hold_out(y.numpy(), 0.2, 0)
    budget = fpe.count_nonzero(whole_mlp.deep(layers, hidden, False, X.shape[1], classes, 0))

    def trained(lr: float, seed: int, X: Tensor, y: Tensor) -> torch.nn.Module:
        wide = whole_mlp.deep(layers, factor * hidden, False, X.shape[1], classes, seed)
        model = fpe.random_masks_(fpe.with_masks(wide), budget, seed=seed)
        how: dict[str, Any] = {"optimizer": adam(model, lr), "decay": Cosine(whole_mlp.EPOCHS, 0)}
        how["generator"] = torch.Generator().manual_seed(seed)
        train(model, X, y, epochs=whole_mlp.EPOCHS, batch_size=whole_mlp.BATCH, **how)
        return model

    def score(lr: float) -> float:
        made = [trained(lr, seed, X[rows], y[rows]) for seed in whole_mlp.TUNING]
        return sum(accuracy(model, X[held], y[held]) for model in made)

    with one_thread():
        lr = max(whole_mlp.RATES, key=score)
        made = [trained(lr, seed, X, y) for seed in whole_mlp.SEEDS]
    found = [accuracy(model, X_test, y_test) for model in made]
    return {"accuracies": found, "nonzero": fpe.count_nonzero(made[0]), "lr": lr}
