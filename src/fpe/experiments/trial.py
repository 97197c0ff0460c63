"""Trials of one width: dense networks, trained; and their expansions, trained for as long.

Where masks move, dense networks of about twice the parameters too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe import ensemble
from fpe.budget import count_nonzero
from fpe.checkpoint import save
from fpe.data import Dataset
from fpe.experiments.config import FitConfig, dense_network
from fpe.experiments.threads import one_thread
from fpe.interference import mean_cosine_similarity, total_capacity
from fpe.rewiring.rewirer import Rewirer
from fpe.training import EarlyStopping, Record, accuracy, adam


@dataclass
class _Trial:
    """What one trial's networks learn from, in which order, and how that goes."""

    number: int
    seed: int
    X: Tensor
    y: Tensor
    early_stopping: EarlyStopping | None
    generator: torch.Generator
    history: dict[str, list[Record]]


def run_trials(
    dataset: Dataset, config: FitConfig, hidden: int, trials: Sequence[int], models: Path | None = None
) -> dict[str, Any]:
    """Train dense networks, go on from the warm-up as they are and expanded, and measure both.

    All trials are trained at once, all networks for as long and at the same learning rates. Those of one
    trial see the same mini-batches in the same order. On one thread, so
    that the result does not depend on what runs beside it.

    Parameters
    ----------
    dataset : Dataset
        What to learn and to test on.
    config : FitConfig
        How.
    hidden : int
        Width of the dense networks.
    trials : sequence of int
        Numbers of the trials.
    models : Path, optional
        A folder that gets the expanded models.

    Returns
    -------
    dict
        ``trials``: for each, accuracies, non-zeros and interference of the dense and the expanded
        network, accuracy at the expansion, and the history of each epoch. Where masks move, ``double`` too: a
        dense network of twice the hidden neurons, and so of about twice the parameters.
    """
    with one_thread():
        X, y, X_test, y_test = (
            torch.from_numpy(a) for a in (dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test)
        )
        if config.standardize:
            mean, scale = _scaling(X)
            X, X_test = (X - mean) / scale, (X_test - mean) / scale
        recipe = config.recipe
        every = [_make_trial(X, y, config, number) for number in trials]
        double: list[nn.Sequential] = []
        if recipe.policy is not None:
            double = [dense_network(dataset, 2 * hidden, trial.seed) for trial in every]
            begins = [trial.generator.get_state() for trial in every]
            optimizers = [adam(network, recipe.lr, config.l2) for network in double]
            _train("double", double, every, optimizers, recipe.warmup_epochs + recipe.epochs, config)
            for trial, begin in zip(every, begins, strict=True):
                trial.generator.set_state(begin)

        dense = [dense_network(dataset, hidden, trial.seed) for trial in every]
        optimizers = [adam(network, recipe.lr, config.l2) for network in dense]
        _train("warm-up", dense, every, optimizers, recipe.warmup_epochs, config)

        wide = [recipe.expand(network, trial.seed) for network, trial in zip(dense, every, strict=True)]
        at_expansion = [
            dict(zip(("dense", "expanded"), pair, strict=True))
            for pair in zip(*(ensemble.accuracies(n, X_test, y_test) for n in (dense, wide)), strict=True)
        ]
        orders = [trial.generator.get_state() for trial in every]
        _train("dense", dense, every, optimizers, recipe.epochs, config, recipe.warmup_epochs)
        for trial, order in zip(every, orders, strict=True):
            trial.generator.set_state(order)
        optimizers = [adam(network, recipe.lr, config.l2) for network in wide]
        rewirers = [
            recipe.rewirer(network, optimizer, len(trial.X), config.batch_size, trial.seed)
            for network, optimizer, trial in zip(wide, optimizers, every, strict=True)
        ]
        _train("expanded", wide, every, optimizers, recipe.epochs, config, recipe.warmup_epochs, rewirers)

        records = []
        for i, trial in enumerate(every):
            data = trial.X, trial.y, X_test, y_test
            records.append(
                {
                    "hidden": hidden,
                    "trial": trial.number,
                    "seed": trial.seed,
                    "dense": _measures(dense[i], *data),
                    "expanded": _measures(wide[i], *data),
                    **({"double": _measures(double[i], *data)} if double else {}),
                    "accuracy_at_expansion": at_expansion[i],
                    "history": trial.history,
                }
            )
            if models is not None:
                if config.standardize:
                    _read_unscaled(wide[i], mean, scale)
                save(wide[i], models / model_name(hidden, trial.number))
    return {"trials": records}


def model_name(hidden: int, trial: int) -> str:
    """Return the name of the file of an expanded model."""
    return f"h{hidden}-t{trial}.safetensors"


def _make_trial(X: Tensor, y: Tensor, config: FitConfig, number: int) -> _Trial:
    seed = config.seed + number
    early_stopping = None
    if config.patience is not None:
        X, y, early_stopping = _hold_out(X, y, config.patience, seed)
    return _Trial(number, seed, X, y, early_stopping, torch.Generator().manual_seed(seed), {})


def _train(
    stage: str,
    networks: Sequence[nn.Module],
    trials: Sequence[_Trial],
    optimizers: Sequence[torch.optim.Adam],
    epochs: int,
    config: FitConfig,
    behind: int = 0,
    rewirers: Sequence[Rewirer | None] | None = None,
) -> None:
    stops = [trial.early_stopping for trial in trials if trial.early_stopping is not None]
    histories = ensemble.train(
        networks,
        [trial.X for trial in trials],
        [trial.y for trial in trials],
        epochs=epochs,
        optimizers=optimizers,
        generators=[trial.generator for trial in trials],
        batch_size=config.batch_size,
        early_stopping=stops or None,
        rewirers=rewirers,
        decay=config.recipe.cosine(behind),
    )
    for trial, history in zip(trials, histories, strict=True):
        trial.history[stage] = history


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
