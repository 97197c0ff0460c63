"""A trial of one width: a dense network, trained; and its expansion, trained for as long.

Where masks move, a dense network of about twice the parameters too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.compare.config import FitConfig, dense_network
from fpe.compare.runner import one_thread
from fpe.data import Dataset
from fpe.errors import ArgumentError
from fpe.io.checkpoint import save
from fpe.masked import count_nonzero
from fpe.metrics import mean_cosine_similarity, total_capacity
from fpe.models import standardized
from fpe.rewiring.rewirer import Rewirer
from fpe.training.loop import EarlyStopping, Record, accuracy, adam, as_tensor, evaluate_loss, train

#: Inputs and class numbers, by part of the data.
Parts = dict[str, tuple[Tensor, Tensor]]


def run_trial(
    dataset: Dataset, config: FitConfig, hidden: int, trial: int, models: Path | None = None
) -> dict[str, Any]:
    """Train a dense network, go on from the warm-up as it is and expanded, and measure both.

    All networks are trained for as long, at the same learning rates, and see the same mini-batches in the
    same order. On one thread, so that the result does not depend on what runs beside it.

    Parameters
    ----------
    dataset : Dataset
        What to learn and to test on. A part of the training samples is held out, as `FitConfig.held_out`
        says, and not trained on.
    config : FitConfig
        How.
    hidden : int
        Width of the dense network.
    trial : int
        Its number.
    models : Path, optional
        A folder that gets the expanded model.

    Returns
    -------
    dict
        Accuracies on all parts, non-zeros and interference of the dense and the expanded network, test
        accuracy at the expansion, and the history of each epoch. Where masks move, ``double`` too: a dense
        network of twice the hidden neurons, and so of about twice the parameters.
    """
    with one_thread():
        parts, recipe, seed = _parts(dataset, config), config.recipe, config.seed + trial
        if config.standardize:
            mean, scale = _scaling(parts["training"][0])
            parts = {name: ((X - mean) / scale, y) for name, (X, y) in parts.items()}
        early_stopping = None
        if config.patience is not None:
            early_stopping = EarlyStopping(*parts["validation"], config.patience)
        generator = torch.Generator().manual_seed(seed)
        begin = generator.get_state()
        history: dict[str, list[Record]] = {}

        def go_on(
            stage: str,
            network: nn.Module,
            optimizer: torch.optim.Adam,
            epochs: int,
            behind: int = 0,
            rewirer: Rewirer | None = None,
        ) -> None:
            try:
                history[stage] = train(
                    network,
                    *parts["training"],
                    epochs=epochs,
                    optimizer=optimizer,
                    generator=generator,
                    batch_size=config.batch_size,
                    early_stopping=early_stopping,
                    rewirer=rewirer,
                    decay=recipe.cosine(behind),
                )
            except ArgumentError as error:  # it diverges
                raise ArgumentError(f"width {hidden}, trial {trial}, {stage}: {error}") from error

        double = None
        if recipe.policy is not None:
            double = dense_network(dataset, 2 * hidden, seed)
            total = recipe.warmup_epochs + recipe.epochs
            go_on("double", double, adam(double, recipe.lr, config.l2), total)
            generator.set_state(begin)

        dense = dense_network(dataset, hidden, seed)
        optimizer = adam(dense, recipe.lr, config.l2)
        go_on("warm-up", dense, optimizer, recipe.warmup_epochs)
        wide = recipe.expand(dense, seed)
        at_expansion = {
            "dense": accuracy(dense, *parts["test"]),
            "expanded": accuracy(wide, *parts["test"]),
        }
        begin = generator.get_state()
        go_on("dense", dense, optimizer, recipe.epochs, recipe.warmup_epochs)
        generator.set_state(begin)
        optimizer = adam(wide, recipe.lr, config.l2)
        samples = len(parts["training"][0])
        rewirer = recipe.rewirer(wide, optimizer, samples, seed)
        go_on("expanded", wide, optimizer, recipe.epochs, recipe.warmup_epochs, rewirer)

        record = {
            "hidden": hidden,
            "trial": trial,
            "seed": seed,
            "dense": _measures(dense, parts),
            "expanded": _measures(wide, parts),
            **({} if double is None else {"double": _measures(double, parts)}),
            "accuracy_at_expansion": at_expansion,
            "history": history,
        }
        if models is not None:
            whole = standardized(wide, mean, scale) if config.standardize else wide
            save(whole, models / model_name(hidden, trial))
    return record


def model_name(hidden: int, trial: int) -> str:
    """Return the name of the file of an expanded model."""
    return f"h{hidden}-t{trial}.safetensors"


def _parts(dataset: Dataset, config: FitConfig) -> Parts:
    """Return what is learnt, what the best model is chosen on, and what is tested on."""
    kept, held = config.held_out(dataset)
    X, y = dataset.X_train, dataset.y_train
    arrays = {
        "training": (X[kept], y[kept]),
        "validation": (X[held], y[held]),
        "test": (dataset.X_test, dataset.y_test),
    }
    return {name: (as_tensor(X), as_tensor(y)) for name, (X, y) in arrays.items()}


def _measures(network: nn.Module, parts: Parts) -> dict[str, Any]:
    weight = network.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    neurons = len(weight)
    return {
        "neurons": neurons,
        "nonzero": count_nonzero(network),
        "accuracy": accuracy(network, *parts["test"]),
        "train_accuracy": accuracy(network, *parts["training"]),
        "validation_accuracy": accuracy(network, *parts["validation"]),
        "validation_loss": evaluate_loss(network, *parts["validation"]),
        "capacity": total_capacity(weight),
        "cosine": mean_cosine_similarity(weight) if neurons > 1 else None,
    }


def _scaling(X: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature; 1 for one that is constant but for rounding."""
    scale, mean = torch.std_mean(X, dim=0, correction=0)
    varies = scale > 10 * torch.finfo(X.dtype).eps * mean.abs()
    return mean, torch.where(varies, scale, torch.ones_like(scale))
