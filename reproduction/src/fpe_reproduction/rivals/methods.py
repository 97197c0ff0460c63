"""Ways to spend a count of non-zeros on a classifier, each with eight options to choose from.

A method builds a network, and trains it on standardized inputs. The first option of each is its default; all
are tried at the default's best rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from fpe._util.modules import seeded
from fpe.models import mlp
from fpe.training.loop import Cosine, accuracy, adam, default_batch_size, train
from fpe.training.losses import Objective

#: Rates that each method is tuned by.
RATES = (2e-4, 6e-4, 1.7e-3, 4.6e-3, 1.3e-2, 3.6e-2, 1e-1)


@dataclass(frozen=True)
class Cell:
    """A data set, and the dense network whose count is the budget."""

    X: Tensor  # (samples, features), standardized
    y: Tensor
    spread: Tensor  # standard deviations of the features before that, (features,)
    hidden: int
    budget: int
    epochs: int
    batch_size: int | None
    seed: int

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y.max()) + 1

    @property
    def inputs(self) -> int:
        """The number of features."""
        return self.X.shape[1]

    @property
    def steps(self) -> int:
        """Steps of the optimizer in all epochs."""
        return self.epochs * math.ceil(len(self.X) / (self.batch_size or default_batch_size(len(self.X))))


def fit(
    cell: Cell,
    model: nn.Module,
    lr: float,
    *,
    rewirer: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None,
    l2: float = 0.0,
    smoothing: float = 0.0,
    epochs: tuple[int, int] | None = None,
    y: Tensor | None = None,
) -> nn.Module:
    """Train a network in place for the cell's epochs, or from one of them to another, and return it."""
    begin, end = epochs or (0, cell.epochs)
    optimizer = adam(model, lr, l2)
    train(
        model, cell.X, cell.y if y is None else y, epochs=end - begin, batch_size=cell.batch_size,
        optimizer=optimizer, generator=torch.Generator().manual_seed(1000 * cell.seed + begin),
        rewirer=None if rewirer is None else rewirer(model, optimizer), decay=Cosine(cell.epochs, begin),
        objective=Objective(smoothing=smoothing),
    )  # fmt: skip
    return model.eval()


@dataclass(frozen=True)
class Method:
    """A way to spend the budget: `train` returns a trained network, given a cell, a rate and an option.

    One without `options` chooses everything itself, on the training data.
    """

    title: str
    train: Callable[..., Any]
    options: tuple[Mapping[str, Any], ...]
    tables_only: bool = False


METHODS: dict[str, Method] = {}
#: What every network can be regularized by.
REGULARIZED: tuple[dict[str, Any], ...] = (
    {"smoothing": 0.05}, {"smoothing": 0.1}, {"l2": 1e-4}, {"l2": 1e-3},
)  # fmt: skip


def method(
    title: str, *options: Mapping[str, Any], tables_only: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function to be a method, with its options beside the default one."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        def own(cell: Cell, lr: float, **option: Any) -> Any:
            with seeded(cell.seed):
                return function(cell, lr, **option)

        name = function.__name__.replace("_", "-")
        METHODS[name] = Method(title, own, ({}, *options), tables_only)
        return function

    return declare


def network(cell: Cell, hidden: Any, dropout: float = 0.0, **how: Any) -> nn.Sequential:
    """Return an untrained MLP, with dropout after its activations."""
    model = mlp(cell.inputs, hidden, cell.classes, seed=cell.seed, **how)
    if not dropout:
        return model
    layers: list[nn.Module] = []
    for layer in model:
        layers += [layer] if list(layer.parameters()) else [layer, nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def nonzeros(model: Any) -> int:
    """Count what a trained method uses, in weights of four bytes."""
    if hasattr(model, "n_nonzero_"):
        return int(model.n_nonzero_)
    if isinstance(model, DecisionTreeClassifier):
        return 3 * int(model.get_n_leaves()) - 2
    if not isinstance(model, nn.Module):
        nodes = [tree.nodes for step in model._predictors for tree in step]
        bytes_ = sum(4 * int(own["is_leaf"].sum()) + 8 * int((own["is_leaf"] == 0).sum()) for own in nodes)
        return math.ceil(bytes_ / 4)
    return sum(int(p.count_nonzero()) for p in model.parameters())


def accuracy_of(model: Any, X: Tensor, y: Tensor) -> float:
    """Return the share of samples that a trained method classifies right."""
    if not isinstance(model, nn.Module):
        return float(model.score(X.numpy(), y.numpy()))
    return accuracy(model, X, y)
