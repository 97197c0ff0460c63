"""One trial: a dense network, trained; and its expansion, trained for as long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.budget import count_nonzero
from fpe.checkpoint import save
from fpe.data import Dataset
from fpe.expansion import expand
from fpe.experiments.config import FitConfig, dense_network
from fpe.experiments.threads import one_thread
from fpe.interference import mean_cosine_similarity, total_capacity
from fpe.training import EarlyStopping, accuracy, adam, train


def run_trial(
    dataset: Dataset, config: FitConfig, hidden: int, trial: int, model_file: Path | None = None
) -> dict[str, Any]:
    """Train a dense network, go on from the warm-up as it is and expanded, and measure both.

    Both see the same mini-batches in the same order after the warm-up. On one thread, so that the
    result does not depend on what runs beside it.

    Parameters
    ----------
    dataset : Dataset
        What to learn and to test on.
    config : FitConfig
        How.
    hidden, trial : int
        Width of the dense network and number of the trial.
    model_file : Path, optional
        Gets the expanded model.

    Returns
    -------
    dict
        Accuracies, non-zeros and interference of the dense and the expanded network, accuracy at the
        expansion, and the history of each epoch.
    """
    seed = config.seed + trial
    with one_thread():
        X, y, X_test, y_test = (
            torch.from_numpy(a) for a in (dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test)
        )
        if config.standardize:
            mean, scale = _scaling(X)
            X, X_test = (X - mean) / scale, (X_test - mean) / scale
        options: dict[str, Any] = {"batch_size": config.batch_size}
        if config.patience is not None:
            X, y, options["early_stopping"] = _hold_out(X, y, config.patience, seed)
        options["generator"] = generator = torch.Generator().manual_seed(seed)

        dense = dense_network(dataset, hidden, seed)
        optimizer = adam(dense, config.lr, config.l2)
        history = {"warm-up": train(dense, X, y, epochs=config.warmup_epochs, optimizer=optimizer, **options)}

        wide = expand(dense, config.factor, config.split, config.prune, seed=seed)
        at_expansion = {"dense": accuracy(dense, X_test, y_test), "expanded": accuracy(wide, X_test, y_test)}

        order = generator.get_state()
        history["dense"] = train(dense, X, y, epochs=config.epochs, optimizer=optimizer, **options)
        generator.set_state(order)
        optimizer = adam(wide, config.lr, config.l2)
        history["expanded"] = train(wide, X, y, epochs=config.epochs, optimizer=optimizer, **options)

        record = {
            "hidden": hidden,
            "trial": trial,
            "seed": seed,
            "dense": _measures(dense, X, y, X_test, y_test),
            "expanded": _measures(wide, X, y, X_test, y_test),
            "accuracy_at_expansion": at_expansion,
            "history": history,
        }
        if model_file is not None:
            if config.standardize:
                _read_unscaled(wide, mean, scale)
            save(wide, model_file)
    return record


def _measures(network: nn.Module, X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor) -> dict[str, Any]:
    weight = network.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    neurons = len(weight)
    return {
        "neurons": neurons,
        "nonzero": count_nonzero(network),
        "accuracy": accuracy(network, X_test, y_test),
        "train_accuracy": accuracy(network, X, y),
        "capacity": total_capacity(weight),
        "cosine": mean_cosine_similarity(weight) if neurons > 1 else None,
    }


def _scaling(X: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature; 1 for one that is constant."""
    scale, mean = torch.std_mean(X, dim=0, correction=0)
    return mean, torch.where(scale > 0, scale, torch.ones_like(scale))


@torch.no_grad()
def _read_unscaled(network: nn.Module, mean: Tensor, scale: Tensor) -> None:
    """Let the first layer, in place, take on the scaling of its inputs; zeros stay zero."""
    first = network.get_submodule("0")
    assert isinstance(first, nn.Linear)
    first.weight.div_(scale)
    first.bias.sub_(first.weight @ mean)


def _hold_out(X: Tensor, y: Tensor, patience: int, seed: int) -> tuple[Tensor, Tensor, EarlyStopping]:
    """Take a tenth of the training data out, by which training stops."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    held, kept = order[: max(1, len(X) // 10)], order[max(1, len(X) // 10) :]
    return X[kept], y[kept], EarlyStopping(X[held], y[held], patience)
