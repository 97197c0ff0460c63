"""The networks that a budget could be spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpe.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What makes a network, under the names that `fpe.sklearn.FPEClassifier` gives it.

    Attributes
    ----------
    hidden : int
        Neurons of the dense parent.
    factor, split, prune, rewire, warmup_epochs, epochs, lr, decay
        As for `fpe.sklearn.FPEClassifier`.
    """

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
        return Recipe.choose(**{k: v for k, v in vars(self).items() if k != "hidden"})


@dataclass(frozen=True)
class Candidate:
    """A way of spending a budget, but for width and learning rate.

    Attributes
    ----------
    name : str
        What tables call it.
    factor : int
        Children of each neuron; 1 is a dense network.
    split, prune, rewire
        As for `fpe.sklearn.FPEClassifier`.
    """

    name: str
    factor: int = 1
    split: str = "random"
    prune: str = "magnitude"
    rewire: bool | str = False

    def settings(self, hidden: int, epochs: int, lr: float) -> Settings:
        """Return all that makes it, trained for so many epochs in all.

        What is expanded once is so after an eighth of them: every round of the halving then sees it expanded.
        """
        warmup = epochs // 8 if self.factor > 1 and not self.rewire else 0
        own = (self.factor, self.split, self.prune, self.rewire)
        return Settings(hidden, *own, warmup_epochs=warmup, epochs=epochs - warmup, lr=lr)


COLUMNS: dict[str, Any] = {"split": "shared", "prune": "columns"}
#: All that are tried: the simplest first, which wins where others are only as good.
CANDIDATES: Sequence[Candidate] = (
    Candidate("dense"),
    Candidate("expanded x2", 2),
    Candidate("expanded, columns, x2", 2, **COLUMNS),
    Candidate("expanded, columns, x3", 3, **COLUMNS),
    Candidate("rewired, columns, x3", 3, "shared-8", "columns", rewire="columns"),
    *(Candidate(f"rewired x{x}", x, prune="balanced", rewire="accumulated") for x in (2, 3, 4, 6, 8)),
)


def dense_count(inputs: int, hidden: int, outputs: int) -> int:
    """Return the parameters of a dense network of one hidden layer, biases included."""
    return hidden * (inputs + 1 + outputs) + outputs


def widest(inputs: int, outputs: int, budget: int) -> int:
    """Return how many hidden neurons of a dense network a budget of parameters pays for; 0 for none."""
    return max(0, (budget - outputs) // (inputs + 1 + outputs))
