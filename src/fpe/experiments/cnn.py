"""Convolutional networks whose classifier is expanded while the convolutions train on (later edition)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fpe.budget import count_nonzero
from fpe.data import Dataset
from fpe.errors import DataError
from fpe.expansion import expand
from fpe.experiments.networks import NetworksConfig, Source, data_of
from fpe.experiments.threads import one_thread
from fpe.training import accuracy, adam, train

#: Kind → how `fpe.expand` makes it; the dense network goes on as it is.
EXPANSIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "columns": {"split": "shared", "prune": "columns"},
}
#: Passes over the images, before and after the expansion: a CNN learns more from each than an MLP does.
EPOCHS = 3


class Network(nn.Module):
    """Three convolutions with BatchNorm to `features` numbers, one hidden layer, a head."""

    def __init__(self, side: int, colours: int, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.image = (colours, side, side)
        channels = (colours, 8, 16, features // 16)
        self.backbone = nn.Sequential()
        for before, after in pairwise(channels):
            self.backbone.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))
            self.backbone.append(nn.BatchNorm2d(after))
            self.backbone.append(nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden, self.act, self.head = nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map flat images, (batch, pixels), to (batch, classes)."""
        found = self.pool(self.backbone(x.view(-1, *self.image))).flatten(1)
        logits: Tensor = self.head(self.act(self.hidden(found)))
        return logits


def run_cnns(
    source: Source, config: NetworksConfig, hidden: Sequence[int], trials: Sequence[int], features: int
) -> dict[str, Any]:
    """Train CNNs, dense and with an expanded classifier, and measure them. On one thread.

    Parameters
    ----------
    source : Source
        Images, flat.
    config : NetworksConfig
        Learning rate and seed; the number of epochs where it is less than `EPOCHS`.
    hidden : sequence of int
        Hidden neurons of the dense classifier.
    trials : sequence of int
        Numbers of the trials.
    features : int
        Numbers that the convolutions make of an image; a multiple of 16.

    Returns
    -------
    dict
        ``networks``: as `fpe.experiments.networks.run_networks` returns them, with ``features``.

    Raises
    ------
    DataError
        If the data is no square images.
    """
    with one_thread():
        dataset = data_of(source)
        image = _image(dataset)
        networks = []
        for width in hidden:
            for number in trials:
                networks += _trial(dataset, config, image, features, width, number)
        return {"networks": networks}


def _image(dataset: Dataset) -> tuple[int, int]:
    """Return side and colours of square images."""
    pixels = dataset.X_train.shape[1]
    for colours in (1, 3):
        side = round((pixels / colours) ** 0.5)
        if side * side * colours == pixels and side >= 8:
            return side, colours
    raise DataError(
        f"{dataset.name} has {pixels} features, which are no square images of one colour or three; the "
        "experiment cnn needs images, such as fashion-mnist or digits."
    )


def _trial(
    dataset: Dataset,
    config: NetworksConfig,
    image: tuple[int, int],
    features: int,
    hidden: int,
    number: int,
) -> list[dict[str, Any]]:
    arrays = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
    X, y, X_test, y_test = (torch.from_numpy(a) for a in arrays)
    seed = config.seed + number
    outputs = 1 if len(dataset.classes) == 2 else len(dataset.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = Network(*image, features, hidden, outputs)
    generator = torch.Generator().manual_seed(seed)
    optimizer = adam(dense, config.lr)
    warmup, epochs = min(EPOCHS, config.warmup_epochs), min(EPOCHS, config.epochs)
    train(dense, X, y, epochs=warmup, optimizer=optimizer, generator=generator)
    made: dict[str, nn.Module] = {"dense": dense}
    for kind, how in EXPANSIONS.items():
        made[kind] = expand(dense, 2, layers=["hidden"], seed=seed, **how)
    order = generator.get_state()
    records = []
    for kind, network in made.items():
        own = optimizer if kind == "dense" else adam(network, config.lr)
        generator.set_state(order)
        train(network, X, y, epochs=epochs, optimizer=own, generator=generator)
        records.append(
            {
                "hidden": hidden,
                "features": features,
                "kind": kind,
                "trial": number,
                "seed": seed,
                "nonzero": count_nonzero(network),
                "neurons": network.get_submodule("hidden").out_features,
                "accuracy": accuracy(network, X_test, y_test),
                "train_accuracy": accuracy(network, X, y),
            }
        )
    return records
