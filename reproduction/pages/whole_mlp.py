"""Deep MLPs of CIFAR-100's embeddings, as in the paper's appendix A.7: dense, and wider and pruned.

Beside them a dense network with residual sums, and the best shallow network of the same count.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trained import arrays

import fpe
from fpe.compare.runner import one_thread
from fpe.sklearn import FPEClassifier
from fpe.training.folds import hold_out
from fpe.training.loop import Cosine, accuracy, adam, train

LAYERS, WIDTHS = (5, 7, 9), (4, 8, 16, 32, 64)
NETWORKS = {
    **{f"dense-{size:g}": size for size in (1, 1.5, 2, 3)},
    **{f"wider-{size:g}": size for size in (2, 3, 4)},
    "residual": 1,
    "shallow": 1,
}
#: What is not trained at the largest width.
TOO_LARGE = ("dense-3", "wider-4")
#: Rates are chosen on a held-out fifth, by the mean accuracy of these seeds.
RATES, TUNING, SEEDS = (3e-3, 1e-2, 3e-2), (100, 101), range(5)
EPOCHS, BATCH = 20, 500
#: What the weights of a trained network are multiplied by before it is trained on.
SHRINKS = (1.0, 0.3)


class Residual(nn.Module):
    """A layer that adds to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.layer(self.norm(x)))


def deep(layers: int, width: int, residual: bool, inputs: int, classes: int, seed: int) -> nn.Module:
    """Return an untrained MLP with layer norms, or with residual sums."""
    torch.manual_seed(seed)
    if residual:
        blocks = [Residual(width) for _ in range(layers - 1)]
        return nn.Sequential(
            nn.Linear(inputs, width), *blocks, nn.LayerNorm(width), nn.Linear(width, classes)
        )
    modules: list[nn.Module] = []
    for before in [inputs] + [width] * (layers - 1):
        modules += [nn.Linear(before, width), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(width, classes))


def fit(
    model: nn.Module, budget: int, lr: float, X: Tensor, y: Tensor, seed: int, epochs: int = EPOCHS
) -> nn.Module:
    """Train a model in place; prune it, if it has masks, to the budget meanwhile."""
    optimizer, pruner = adam(model, lr), None
    if any(isinstance(module, fpe.MaskedLayer) for module in model.modules()):
        steps = epochs * math.ceil(len(X) / BATCH)
        pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=steps)
    generator = torch.Generator().manual_seed(seed)
    how: dict[str, Any] = {"rewirer": pruner, "decay": Cosine(epochs, 0)}
    how |= {"optimizer": optimizer, "generator": generator}
    train(model, X, y, epochs=epochs, batch_size=BATCH, **how)
    return model


def measure(layers: int, hidden: int, network: str) -> dict[str, Any]:
    """Choose the rate of a deep MLP, train it on all data, and return its test accuracies, one per seed."""
    X, y, X_test, y_test = arrays("cifar100", "test")
    X, X_test, classes = X * 10, X_test * 10, int(y.max()) + 1
    rows, held = hold_out(y.numpy(), 0.2, 0)

    def build(own: str, seed: int) -> nn.Module:
        width = round(NETWORKS[own] * hidden)
        model = deep(layers, width, own == "residual", X.shape[1], classes, seed)
        return fpe.with_masks(model) if own.startswith("wider") else model

    budget = fpe.count_nonzero(build("dense-1", 0))
    with one_thread():
        if network == "shallow":
            return shallow(budget, X, y, X_test, y_test)
        tuned = {
            rate: [fit(build(network, seed), budget, rate, X[rows], y[rows], seed) for seed in TUNING]
            for rate in RATES
        }
        lr = max(RATES, key=lambda rate: _mean(tuned[rate], X[held], y[held]))
        made = [fit(build(network, seed), budget, lr, X, y, seed) for seed in SEEDS]
    return {
        "accuracies": [accuracy(model, X_test, y_test) for model in made],
        "nonzero": fpe.count_nonzero(made[0]),
        "lr": lr,
    }


def shallow(budget: int, X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor) -> dict[str, Any]:
    """Return the test accuracies of what `FPEClassifier` finds."""
    made = []
    for seed in SEEDS:
        found = FPEClassifier(budget=budget, epochs=EPOCHS, batch_size=BATCH, random_state=seed)
        made.append(found.fit(X.numpy(), y.numpy()))
    return {
        "accuracies": [float(own.score(X_test.numpy(), y_test.numpy())) for own in made],
        "nonzero": made[0].n_nonzero_,
        "network": [own.search_[0].candidate.name for own in made],
    }


def measure_trained(layers: int, hidden: int, kind: str) -> dict[str, Any]:
    """Train small MLPs, then train them on for as long: as they are (``on``), or ``wider-`` by a factor.

    The first rate, then the second together with what the weights are multiplied by before, are chosen on a
    held-out fifth.
    """
    X, y, X_test, y_test = arrays("cifar100", "test")
    X, X_test, classes = X * 10, X_test * 10, int(y.max()) + 1
    rows, held = hold_out(y.numpy(), 0.2, 0)
    part, all_data = (X[rows], y[rows]), (X, y)

    def parent(lr: float, seed: int, data: tuple[Tensor, Tensor]) -> nn.Module:
        return fit(deep(layers, hidden, False, X.shape[1], classes, seed), 0, lr, *data, seed)

    def further(
        model: nn.Module, lr: float, shrink: float, seed: int, data: tuple[Tensor, Tensor]
    ) -> nn.Module:
        factor = kind.removeprefix("wider-")
        own = fpe.with_masks(model) if kind == "on" else fpe.widen(model, int(factor), seed=seed)
        budget = fpe.count_nonzero(model)
        return fit(fpe.open_masks_(own, shrink=shrink), budget, lr, *data, seed + 1000)

    with one_thread():
        parents = {lr: [parent(lr, seed, part) for seed in TUNING] for lr in RATES}
        first = max(RATES, key=lambda lr: _mean(parents[lr], X[held], y[held]))
        ways = {
            (lr, shrink): [
                further(model, lr, shrink, seed, part)
                for model, seed in zip(parents[first], TUNING, strict=True)
            ]
            for lr in RATES
            for shrink in SHRINKS
        }
        second = max(ways, key=lambda way: _mean(ways[way], X[held], y[held]))
        before = [parent(first, seed, all_data) for seed in SEEDS]
        after = [further(m, *second, seed, all_data) for m, seed in zip(before, SEEDS, strict=True)]
    return {
        "before": [accuracy(model, X_test, y_test) for model in before],
        "accuracies": [accuracy(model, X_test, y_test) for model in after],
        "nonzero": fpe.count_nonzero(after[0]),
        "first_lr": first,
        "lr": second[0],
        "shrink": second[1],
    }


def _mean(models: list[nn.Module], X: Tensor, y: Tensor) -> float:
    return float(np.mean([accuracy(model, X, y) for model in models]))
