"""The networks that a budget could be spent on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpe.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What defines a network: neurons of the dense parent, and parameters of `fpe.sklearn.FPEClassifier`."""

    hidden: int
    factor: int = 1
    split: str = "random"
    prune: str = "magnitude"
    rewire: bool | str = False
    warmup_epochs: int = 0
    epochs: int = 100
    lr: float = 1e-2
    decay: bool = True

    @property
    def recipe(self) -> Recipe:
        """How it is expanded and trained."""
        return Recipe.of(vars(self))


#: Settings of all candidates by name, the simplest first: of equally good ones the first wins.
CANDIDATES: dict[str, dict[str, Any]] = {
    "dense": {},
    "expanded x2": {"factor": 2},
    "expanded, columns, x2": {"factor": 2, "split": "shared", "prune": "columns"},
    "expanded, columns, x3": {"factor": 3, "split": "shared", "prune": "columns"},
    "rewired, columns, x3": {"factor": 3, "split": "shared-8", "prune": "columns", "rewire": "columns"},
    **{f"rewired x{x}": {"factor": x, "prune": "balanced", "rewire": "accumulated"} for x in (2, 3, 4, 6, 8)},
}


def candidates(hidden: int, epochs: int, rates: Sequence[float]) -> list[tuple[str, Settings]]:
    """Return names and settings of all candidates of a width, for each learning rate.

    With fixed masks they are expanded after an eighth of the epochs, so that every round compares them expanded.
    """
    every = []
    for rate, (name, own) in itertools.product(rates, CANDIDATES.items()):
        warmup = epochs // 8 if own and "rewire" not in own else 0
        settings = Settings(hidden, **own, warmup_epochs=warmup, epochs=epochs - warmup, lr=rate)
        every.append((f"{name}, rate {rate:g}" if len(rates) > 1 else name, settings))
    return every


def dense_count(inputs: int, hidden: int, outputs: int) -> int:
    """Return the number of parameters of a dense network of one hidden layer, biases included."""
    return hidden * (inputs + 1 + outputs) + outputs


def widest(inputs: int, outputs: int, budget: int) -> int:
    """Return the number of hidden neurons of the widest dense network within a budget of parameters, or 0."""
    return max(0, (budget - outputs) // (inputs + 1 + outputs))
