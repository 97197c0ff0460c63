"""Gated and convolutional classifiers, dense and expanded, trained by the ordinary loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe._util.modules import seeded
from fpe.compare.runner import one_thread
from fpe.data import Dataset
from fpe.errors import DataError
from fpe.expansion.expand import expand
from fpe.expansion.pruning import InputPruning
from fpe.masked import count_nonzero
from fpe.training.loop import accuracy, adam, as_tensor, train
from fpe_reproduction.experiments.splits import sample
from fpe_reproduction.experiments.timeline import NetworksConfig, Source, data_of

#: Epochs before and after the expansion of a CNN, which learns more from each than an MLP does.
CNN_EPOCHS = 3
CNN_EXPANSIONS: dict[str, dict[str, Any]] = {"random": {}, "columns": {"split": "shared", "prune": "columns"}}
GATED_EXPANSIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "shared": {"split": "shared"},
    "columns": {"split": "shared", "prune": "columns"},
    "columns-activation": {"split": "shared", "prune": InputPruning("activation")},
}


class Gated(nn.Module):
    """SwiGLU with biases: ``down(silu(gate(x)) · up(x))`` (Shazeer, 2020)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden)
        self.down = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, classes)."""
        logits: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return logits


class CNN(nn.Module):
    """Three convolutions with BatchNorm to `features` numbers, a multiple of 16; one hidden layer; a head."""

    def __init__(self, side: int, colors: int, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.image = (colors, side, side)
        self.backbone = nn.Sequential()
        for before, after in pairwise((colors, 8, 16, features // 16)):
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


def run_gated(
    source: Source, config: NetworksConfig, hidden: Sequence[int], trials: Sequence[int]
) -> dict[str, Any]:
    """Train gated classifiers as `run_networks` trains others, and measure them."""
    with one_thread():
        dataset = data_of(source)
        X = as_tensor(dataset.X_train)
        ways = {kind: {"example_inputs": sample(X), **how} for kind, how in GATED_EXPANSIONS.items()}
        networks = []
        for width in hidden:
            build = functools.partial(Gated, X.shape[1], width)
            for number in trials:
                about = {"hidden": width, "network": "gated"}
                networks += _trial(dataset, config, number, build, "gate", ways, about)
        return {"networks": networks}


def run_cnns(
    source: Source, config: NetworksConfig, hidden: Sequence[int], trials: Sequence[int], features: int
) -> dict[str, Any]:
    """Train CNNs of which the classifier is expanded, as `run_networks` trains others, and measure them."""
    with one_thread():
        dataset = data_of(source)
        image = _image(dataset)
        epochs = {name: min(CNN_EPOCHS, getattr(config, name)) for name in ("warmup_epochs", "epochs")}
        networks = []
        for width in hidden:
            build = functools.partial(CNN, *image, features, width)
            for number in trials:
                about = {"hidden": width, "features": features}
                own = replace(config, **epochs)
                networks += _trial(dataset, own, number, build, "hidden", CNN_EXPANSIONS, about)
        return {"networks": networks}


def _image(dataset: Dataset) -> tuple[int, int]:
    """Return side and number of colors of square images."""
    pixels = dataset.X_train.shape[1]
    for colors in (1, 3):
        side = round((pixels / colors) ** 0.5)
        if side * side * colors == pixels and side >= 8:
            return side, colors
    raise DataError(
        f"{dataset.name} has {pixels} features, which are no square images of one color or three; the "
        "experiment cnn needs images, such as fashion-mnist or digits."
    )


def _trial(
    dataset: Dataset,
    config: NetworksConfig,
    number: int,
    build: Callable[[int], nn.Module],
    layer: str,
    ways: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Warm a dense network up, expand `layer` in several ways, and train all of them on in the same order."""
    arrays = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
    X, y, X_test, y_test = (as_tensor(a) for a in arrays)
    seed = config.seed + number
    with seeded(seed):
        dense = build(1 if len(dataset.classes) == 2 else len(dataset.classes))
    generator = torch.Generator().manual_seed(seed)
    optimizer = adam(dense, config.lr)
    train(dense, X, y, epochs=config.warmup_epochs, optimizer=optimizer, generator=generator)
    made = {"dense": dense}
    made |= {kind: expand(dense, 2, layers=[layer], seed=seed, **how) for kind, how in ways.items()}
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
