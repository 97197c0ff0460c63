"""The networks that a budget could be spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What defines a network: neurons of the dense parent, and parameters of `fpe.sklearn.FPEClassifier`."""

    hidden: int
    factor: int
    split: str
    prune: str
    rewire: bool | str
    warmup_epochs: int
    epochs: int
    lr: float
    decay: bool = True

    @property
    def recipe(self) -> Recipe:
        """How it is expanded and trained."""
        return Recipe.of(vars(self))


@dataclass(frozen=True)
class Candidate:
    """A way to spend a budget, without width and learning rate; factor 1 is a dense network."""

    name: str
    factor: int = 1
    split: str = "random"
    prune: str = "magnitude"
    rewire: bool | str = False

    def settings(self, hidden: int, epochs: int, lr: float) -> Settings:
        """Return the settings of a network of this width that is trained for `epochs` in total.

        With fixed masks it is expanded after an eighth of them, so that every round compares it expanded.
        """
        warmup = epochs // 8 if self.factor > 1 and not self.rewire else 0
        own = (self.factor, self.split, self.prune, self.rewire)
        return Settings(hidden, *own, warmup_epochs=warmup, epochs=epochs - warmup, lr=lr)


#: All candidates, the simplest first: of equally good ones the first wins.
CANDIDATES: Sequence[Candidate] = (
    Candidate("dense"),
    Candidate("expanded x2", 2),
    Candidate("expanded, columns, x2", 2, "shared", "columns"),
    Candidate("expanded, columns, x3", 3, "shared", "columns"),
    Candidate("rewired, columns, x3", 3, "shared-8", "columns", rewire="columns"),
    *(Candidate(f"rewired x{x}", x, prune="balanced", rewire="accumulated") for x in (2, 3, 4, 6, 8)),
)


def dense_count(inputs: int, hidden: int, outputs: int) -> int:
    """Return the number of parameters of a dense network of one hidden layer, biases included."""
    return hidden * (inputs + 1 + outputs) + outputs


def widest(inputs: int, outputs: int, budget: int) -> int:
    """Return the number of hidden neurons of the widest dense network within a budget of parameters, or 0."""
    return max(0, (budget - outputs) // (inputs + 1 + outputs))
