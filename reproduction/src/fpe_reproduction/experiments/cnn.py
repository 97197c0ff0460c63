"""Convolutional networks whose classifier is expanded while the convolutions train on (later edition)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fpe.compare.runner import one_thread
from fpe.data import Dataset
from fpe.errors import DataError
from fpe_reproduction.experiments.networks import NetworksConfig, Source, data_of
from fpe_reproduction.experiments.plain_trial import run_plain_trial

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
        ``networks``: as `fpe_reproduction.experiments.networks.run_networks` returns them, with ``features``.

    Raises
    ------
    DataError
        If the data is no square images.
    """
    with one_thread():
        dataset = data_of(source)
        image = _image(dataset)
        networks = []
        config = replace(
            config, warmup_epochs=min(EPOCHS, config.warmup_epochs), epochs=min(EPOCHS, config.epochs)
        )
        for width in hidden:
            build = functools.partial(Network, *image, features, width)
            about = {"hidden": width, "features": features}
            for number in trials:
                networks += run_plain_trial(dataset, config, number, build, "hidden", EXPANSIONS, about)
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
