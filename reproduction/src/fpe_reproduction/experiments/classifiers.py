"""Gated and convolutional classifiers, dense and expanded, trained one at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fpe._util.modules import seeded
from fpe.compare.runner import one_thread
from fpe.data import Dataset
from fpe.errors import DataError
from fpe.expansion.expand import expand
from fpe.expansion.pruning import InputPruning
from fpe.masked import count_nonzero
from fpe.training.loop import accuracy, as_tensor
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials
from fpe_reproduction.experiments.splits import sample
from fpe_reproduction.experiments.timeline import NetworksConfig, Source, data_of

#: Epochs before and after the expansion of a CNN, which learns more from each than an MLP does.
CNN_EPOCHS = 3
#: How networks are expanded; CNNs only in the ways of `CNN_KINDS`.
EXPANSIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "shared": {"split": "shared"},
    "columns": {"split": "shared", "prune": "columns"},
    "columns-activation": {"split": "shared", "prune": InputPruning("activation")},
}
CNN_KINDS = ("random", "columns")


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


def run_classifiers(
    source: Source, config: NetworksConfig, hidden: Sequence[int], trials: Sequence[int], features: int = 0
) -> dict[str, Any]:
    """Train classifiers as `run_networks` trains others, and measure them.

    They are gated; with `features` they are CNNs, of which the last hidden layer is expanded.
    """
    with one_thread():
        dataset = data_of(source)
        arrays = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
        X, y, X_test, y_test = (as_tensor(array) for array in arrays)
        outputs = 1 if len(dataset.classes) == 2 else len(dataset.classes)
        epochs = config.warmup_epochs, config.epochs
        build: Callable[[int, int], nn.Module] = functools.partial(Gated, X.shape[1])
        about: dict[str, Any] = {"network": "gated"}
        layer, ways = "gate", EXPANSIONS
        if features:
            epochs = min(CNN_EPOCHS, epochs[0]), min(CNN_EPOCHS, epochs[1])
            build = functools.partial(CNN, *_image(dataset), features)
            layer, ways = "hidden", {kind: EXPANSIONS[kind] for kind in CNN_KINDS}
            about = {"features": features}
        recipe = Recipe.choose(factor=1, warmup_epochs=epochs[0], epochs=epochs[1], lr=config.lr)
        networks = []
        for width, number in itertools.product(hidden, trials):
            seed = config.seed + number
            with seeded(seed):
                dense = Trial.start(recipe, build(width, outputs), seed)
            train_trials([dense], X, y, until=recipe.warmup_epochs)
            for kind in ("dense", *ways):
                trial = dense.baseline()
                if kind != "dense":
                    how = {"layers": [layer], "example_inputs": sample(X), "seed": seed, **ways[kind]}
                    trial.expand(len(X), expand(trial.dense, **how))
                train_trials([trial], X, y)
                networks.append(
                    {
                        "hidden": width,
                        **about,
                        "kind": kind,
                        "trial": number,
                        "seed": seed,
                        "nonzero": count_nonzero(trial.model),
                        "neurons": trial.model.get_submodule(layer).out_features,
                        "accuracy": accuracy(trial.model, X_test, y_test),
                        "train_accuracy": accuracy(trial.model, X, y),
                    }
                )
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
