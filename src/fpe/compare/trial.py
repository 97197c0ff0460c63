"""A trial of one width: a dense network and its expansion, and with rewiring a double one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.compare.best import with_origin
from fpe.compare.config import FitConfig, dense_network
from fpe.compare.runner import one_thread
from fpe.data import Dataset
from fpe.errors import ArgumentError
from fpe.io.checkpoint import save
from fpe.masked import count_nonzero
from fpe.metrics import mean_cosine_similarity, total_capacity
from fpe.models import ABOUT, CLASSES, standardized
from fpe.training.loop import EarlyStopping, Record, accuracy, as_tensor, evaluate_loss
from fpe.training.trials import Trial, train_trials

#: Inputs and class numbers, by part of the data.
Parts = dict[str, tuple[Tensor, Tensor]]


def run_trial(
    dataset: Dataset, config: FitConfig, hidden: int, trial: int, models: Path | None = None
) -> dict[str, Any]:
    """Train a dense network, continue from the warm-up as it is and expanded, and measure both.

    All networks are trained for as long, at the same learning rates, with the same mini-batches in the same
    order; on one thread, so that the result does not depend on what runs beside it. With rewiring there is
    also ``double``: a dense network of twice the hidden neurons, and so of about twice the parameters. The
    folder `models` gets the expanded model.
    """
    recipe, seed = config.recipe, config.seed + trial
    with one_thread():
        parts = _parts(dataset, config)
        if config.standardize:
            mean, scale = _scaling(parts["training"][0])
            parts = {name: ((X - mean) / scale, y) for name, (X, y) in parts.items()}
        early_stopping = None
        if config.patience is not None:
            early_stopping = EarlyStopping(*parts["validation"], config.patience)
        networks: dict[str, nn.Module] = {}
        history: dict[str, list[Record]] = {}

        def run(stage: str, own: Trial, until: int | None = None) -> None:
            before = len(own.history)
            try:
                if until != 0:
                    train_trials([own], *parts["training"], until=until, early_stopping=early_stopping)
            except ArgumentError as error:  # it diverges
                raise ArgumentError(f"width {hidden}, trial {trial}, {stage}: {error}") from error
            networks[stage], new = own.model, own.history[before:]
            history[stage] = [
                {**{k: v for k, v in record.items() if k != "stage"}, "epoch": epoch}
                for epoch, record in enumerate(new, 1)
            ]

        if recipe.policy is not None:
            whole = replace(recipe, factor=1, warmup_epochs=0, epochs=recipe.total_epochs)
            run("double", Trial.start(whole, dense_network(dataset, 2 * hidden, seed), seed))
        warm = Trial.start(recipe, dense_network(dataset, hidden, seed), seed)
        run("warm-up", warm, recipe.warmup_epochs)
        wide = recipe.expand(warm.dense, seed)
        at_expansion = {
            "dense": accuracy(warm.dense, *parts["test"]),
            "expanded": accuracy(wide, *parts["test"]),
        }
        run("dense", warm.baseline())
        warm.expand(len(parts["training"][0]), wide)  # factor 1 is a control: the dense network, a fresh Adam
        run("expanded", warm)

        kinds = [kind for kind in ("dense", "expanded", "double") if kind in networks]
        measures: dict[str, Any] = {kind: _measures(networks[kind], parts) for kind in kinds}
        if models is not None:
            whole_model = standardized(wide, mean, scale) if config.standardize else wide
            setattr(whole_model, CLASSES, dataset.classes)
            settings = {**config.filled(), "hidden": hidden, "trials": 1, "random_state": seed}
            about = {
                **dataset.about(),
                "scaling": "scaler" if config.standardize else None,
                "settings": {**settings, "scale": "auto" if config.standardize else None},
                "measured": _measured(measures, dataset, config),
            }
            setattr(whole_model, ABOUT, with_origin(about, whole_model))
            save(whole_model, models / model_name(hidden, trial))
        return {
            "hidden": hidden,
            "trial": trial,
            "seed": seed,
            **measures,
            "accuracy_at_expansion": at_expansion,
            "history": history,
        }


def judged_on(dataset: Dataset, config: FitConfig) -> dict[str, Any]:
    """Return what two models of ``fpe fit`` must share to be compared: the rows that they are judged by."""
    return {
        "fingerprint": dataset.fingerprint,
        "validation_fraction": config.validation_fraction,
        "seed": config.seed,
    }


def _measured(measures: dict[str, dict[str, Any]], dataset: Dataset, config: FitConfig) -> dict[str, Any]:
    """Return what a model says about its accuracy, and that of the dense networks beside it."""
    own = measures["expanded"]
    names = {"dense": "dense, trained alike", "double": "dense, twice the hidden neurons, trained alike"}
    rivals = [
        {
            "name": name,
            "nonzero": measures[kind]["nonzero"],
            "validation_accuracy": measures[kind]["validation_accuracy"],
            "test_accuracy": measures[kind]["accuracy"],
        }
        for kind, name in names.items()
        if kind in measures
    ]
    return {
        "judged_on": judged_on(dataset, config),
        "validation_accuracy": own["validation_accuracy"],
        "validation_loss": own["validation_loss"],
        "validation": f"{len(config.held_out(dataset)[1]):,} of the training rows, which were held out",
        "test_accuracy": own["accuracy"],
        "rivals": rivals,
    }


def model_name(hidden: int, trial: int) -> str:
    """Return the name of the file of an expanded model."""
    return f"h{hidden}-t{trial}.safetensors"


def _parts(dataset: Dataset, config: FitConfig) -> Parts:
    training, validation = config.held_out(dataset)
    X, y = dataset.X_train, dataset.y_train
    arrays = {
        "training": (X[training], y[training]),
        "validation": (X[validation], y[validation]),
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
