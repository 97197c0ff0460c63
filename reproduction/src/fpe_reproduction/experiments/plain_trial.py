"""A dense classifier and its expansions, trained side by side by the plain loop, and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fpe._util.modules import seeded
from fpe.data import Dataset
from fpe.expansion.expand import expand
from fpe.masked import count_nonzero
from fpe.training.loop import accuracy, adam, as_tensor, train
from fpe_reproduction.experiments.networks import NetworksConfig


def run_plain_trial(
    dataset: Dataset,
    config: NetworksConfig,
    number: int,
    build: Callable[[int], nn.Module],
    layer: str,
    ways: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Warm a dense network up, expand it in several ways, and train all of them on in the same order.

    Parameters
    ----------
    dataset : Dataset
        What to learn and to test on.
    config : NetworksConfig
        How.
    number : int
        Of the trial; everything is drawn from ``config.seed + number``.
    build : callable
        Makes the untrained dense network for so many outputs.
    layer : str
        The layer that is expanded, by name.
    ways : mapping
        Kind → arguments of `fpe.expand`. The dense network goes on as it is.
    about : mapping
        What the records say of the network besides.

    Returns
    -------
    list of dict
        A record of the dense network and of each way.
    """
    arrays = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
    X, y, X_test, y_test = (as_tensor(a) for a in arrays)
    seed = config.seed + number
    with seeded(seed):
        dense = build(1 if len(dataset.classes) == 2 else len(dataset.classes))
    generator = torch.Generator().manual_seed(seed)
    optimizer = adam(dense, config.lr)
    train(dense, X, y, epochs=config.warmup_epochs, optimizer=optimizer, generator=generator)
    made = {"dense": dense}
    for kind, how in ways.items():
        made[kind] = expand(dense, 2, layers=[layer], seed=seed, **how)
    order = generator.get_state()
    records = []
    for kind, network in made.items():
        own = optimizer if kind == "dense" else adam(network, config.lr)
        generator.set_state(order)
        train(network, X, y, epochs=config.epochs, optimizer=own, generator=generator)
        records.append(
            {
                **about,
                "kind": kind,
                "trial": number,
                "seed": seed,
                "nonzero": count_nonzero(network),
                "neurons": network.get_submodule(layer).out_features,
                "accuracy": accuracy(network, X_test, y_test),
                "train_accuracy": accuracy(network, X, y),
            }
        )
    return records
