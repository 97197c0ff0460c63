"""Gated classifiers, as in the MLPs of transformers, expanded while they are trained by the plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.budget import Columns, count_nonzero
from fpe.data import Dataset
from fpe.expansion import expand
from fpe.experiments.networks import NetworksConfig, Source, data_of
from fpe.experiments.threads import one_thread
from fpe.experiments.variant import some_of
from fpe.training import accuracy, adam, train

#: Kind → how `fpe.expand` makes it; the dense network goes on as it is.
EXPANSIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "shared": {"split": "shared"},
    "columns": {"split": "shared", "prune": "columns"},
    "columns-activation": {"split": "shared", "prune": Columns("activation")},
}


class Network(nn.Module):
    """SwiGLU with biases: ``down(silu(gate(x)) · up(x))`` (Shazeer, 2020)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden)
        self.down = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, classes)."""
        logits: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return logits


def run_gated(
    source: Source, config: NetworksConfig, hidden: Sequence[int], trials: Sequence[int]
) -> dict[str, Any]:
    """Train gated classifiers, dense and expanded, and measure them. On one thread.

    Parameters
    ----------
    source : Source
        What to learn and to test on.
    config : NetworksConfig
        How.
    hidden : sequence of int
        Hidden neurons of the dense classifier.
    trials : sequence of int
        Numbers of the trials.

    Returns
    -------
    dict
        ``networks``: as `fpe.experiments.networks.run_networks` returns them, with ``network`` "gated".
    """
    with one_thread():
        dataset = data_of(source)
        networks = []
        for width in hidden:
            for number in trials:
                networks += _trial(dataset, config, width, number)
        return {"networks": networks}


def _trial(dataset: Dataset, config: NetworksConfig, hidden: int, number: int) -> list[dict[str, Any]]:
    arrays = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
    X, y, X_test, y_test = (torch.from_numpy(a) for a in arrays)
    seed = config.seed + number
    outputs = 1 if len(dataset.classes) == 2 else len(dataset.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = Network(X.shape[1], hidden, outputs)
    generator = torch.Generator().manual_seed(seed)
    optimizer = adam(dense, config.lr)
    train(dense, X, y, epochs=config.warmup_epochs, optimizer=optimizer, generator=generator)
    made: dict[str, nn.Module] = {"dense": dense}
    for kind, how in EXPANSIONS.items():
        made[kind] = expand(dense, 2, layers=["gate"], example_inputs=some_of(X), seed=seed, **how)
    order = generator.get_state()
    records = []
    for kind, network in made.items():
        own = optimizer if kind == "dense" else adam(network, config.lr)
        generator.set_state(order)
        train(network, X, y, epochs=config.epochs, optimizer=own, generator=generator)
        records.append(
            {
                "hidden": hidden,
                "network": "gated",
                "kind": kind,
                "trial": number,
                "seed": seed,
                "nonzero": count_nonzero(network),
                "neurons": network.get_submodule("gate").out_features,
                "accuracy": accuracy(network, X_test, y_test),
                "train_accuracy": accuracy(network, X, y),
            }
        )
    return records
