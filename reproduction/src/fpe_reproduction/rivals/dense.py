"""Methods without masks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import f_classif
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fpe._util.modules import seeded
from fpe.errors import BudgetError
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe_reproduction.rivals.methods import REGULARIZED, Cell, fit, method, network


class _Dropped(nn.Module):
    """Sets weights to zero at random while training, and scales the others (DropConnect)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, self.rate, self.training)


@method(
    "dense",
    {"dropout": 0.1},
    {"dropout": 0.25},
    {"dropconnect": 0.1},
    {"dropconnect": 0.25},
    {"longer": 4},
    {"smoothing": 0.1},
    {"l2": 1e-4},
    {"l2": 1e-3},
)
def dense(
    cell: Cell, lr: float, dropout: float = 0.0, dropconnect: float = 0.0, longer: int = 1, **how: Any
) -> nn.Module:
    """Train the dense network of the count; `longer` by as much as a wide network computes more."""
    cell = replace(cell, epochs=longer * cell.epochs)
    model = network(cell, cell.hidden, dropout)
    if dropconnect:
        parametrize.register_parametrization(model[0], "weight", _Dropped(dropconnect))
    fit(cell, model, lr, **how)
    if dropconnect:
        parametrize.remove_parametrizations(model[0], "weight")
    return model


@method(
    "deeper and narrower",
    {"layers": 3},
    {"layers": 4},
    {"activation": "silu"},
    {"dropout": 0.1},
    *REGULARIZED,
)
def deeper(
    cell: Cell, lr: float, layers: int = 2, dropout: float = 0.0, activation: str = "relu", **how: Any
) -> nn.Module:
    """Train a dense network of more layers, with layer norms."""
    widths = [cell.hidden] * layers
    while widths[0] > 1 and count_nonzero(network(cell, widths)) > cell.budget:
        widths = [widths[0] - 1] * layers
    for place in reversed(range(layers)):  # what is left makes the last layers wider
        wider = [own + (i == place) for i, own in enumerate(widths)]
        widths = wider if count_nonzero(network(cell, wider)) <= cell.budget else widths
    return fit(cell, network(cell, widths, dropout, activation=activation), lr, **how)


@method("low rank", {"share": 0.25}, {"share": 0.75}, {"share": 0.9}, {"activation": "silu"}, *REGULARIZED)
def low_rank(cell: Cell, lr: float, share: float = 0.5, activation: str = "relu", **how: Any) -> nn.Module:
    """Train a network whose first layer is the product of two, of a share of the neurons as its rank."""
    rank = max(1, round(share * min(cell.hidden, cell.inputs)))
    rest = cell.budget - cell.classes - rank * cell.inputs
    wide = max(1, rest // (rank + 1 + cell.classes))
    head = mlp(rank, wide, cell.classes, seed=cell.seed, activation=activation)
    first = nn.Linear(cell.inputs, rank, bias=False)
    nn.init.uniform_(first.weight, -(cell.inputs**-0.5), cell.inputs**-0.5)
    return fit(cell, nn.Sequential(first, *head), lr, **how)


class _Chosen(nn.Module):
    """Passes on some of the inputs."""

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.places]  # type: ignore[index]


@method(
    "fewer inputs",
    {"share": 0.1},
    {"share": 0.25},
    {"share": 0.75},
    *({"by": by, "share": share} for by in ("variance", "f-test") for share in (0.25, 0.5)),
    {"by": "random", "share": 0.25},
)
def fewer_inputs(cell: Cell, lr: float, by: str = "norm", share: float = 0.5, **how: Any) -> nn.Module:
    """Train a wider dense network of a share of the inputs.

    They are ranked by the norm of the weights of a dense network that was trained for a quarter of the
    epochs, by their variance, at random, or by an F-test with the classes.
    """
    left, kept = cell.budget - cell.classes, max(1, round(share * cell.inputs))
    wide = left // (kept + 1 + cell.classes)
    kept = left // wide - 1 - cell.classes  # what is left makes them a few more
    if by == "norm":
        quarter = replace(cell, epochs=max(1, cell.epochs // 4))
        rank = fit(quarter, network(cell, cell.hidden), 1e-2)[0].weight.detach().norm(dim=0)  # type: ignore[index]
    elif by == "variance":
        rank = cell.spread
    elif by == "random":
        rank = torch.rand(cell.inputs, generator=torch.Generator().manual_seed(cell.seed))
    else:
        with warnings.catch_warnings():  # of constant features, whose ratio is 0 / 0
            warnings.simplefilter("ignore")
            rank = torch.from_numpy(np.nan_to_num(f_classif(cell.X.numpy(), cell.y.numpy())[0]))
    places = rank.topk(min(kept, cell.inputs)).indices.sort().values
    head = mlp(len(places), wide, cell.classes, seed=cell.seed)
    return fit(cell, nn.Sequential(_Chosen(places), *head), lr, **how)


#: The logits of the latest teachers by seed and width, of the data that they learned.
_taught: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}


@torch.no_grad()
def _logits_of_teacher(cell: Cell, wide: int) -> Tensor:
    """Return a wide network's logits of the data that it learns: once for all options and rates."""
    data, logits = _taught.get((cell.seed, wide), (None, None))
    if data is not cell.X or logits is None:
        for key in [key for key, (data, _) in _taught.items() if data is not cell.X]:
            del _taught[key]
        with seeded(cell.seed), torch.enable_grad():
            teacher = fit(cell, network(cell, wide * cell.hidden, 0.1), 5e-3)
        logits = torch.cat([teacher(part) for part in torch.split(cell.X, 4096)])
        _taught[cell.seed, wide] = cell.X, logits
    return logits


@method(
    "distilled",
    {"temperature": 1.0},
    {"temperature": 4.0},
    {"temperature": 1.0, "share": 0.5},
    {"temperature": 1.0, "share": 0.9},
    {"wide": 4},
    {"wide": 16},
    {"dropout": 0.1},
    {"l2": 1e-4},
)
def distilled(
    cell: Cell,
    lr: float,
    temperature: float = 2.0,
    share: float = 1.0,
    wide: int = 8,
    dropout: float = 0.0,
    **how: Any,
) -> nn.Module:
    """Train the dense network on the probabilities of a wide one, or on these and the classes."""
    known = [(part / temperature).softmax(1) for part in torch.split(_logits_of_teacher(cell, wide), 4096)]
    target = share * torch.cat(known) + (1 - share) * F.one_hot(cell.y, cell.classes)
    return fit(cell, network(cell, cell.hidden, dropout), lr, y=target, **how)


@method(
    "trees",
    {"single": True},
    {"single": True, "samples": 1},
    {"leaves": 2},
    {"leaves": 3},
    {"leaves": 8},
    {"leaves": 16},
    {"l2": 1.0},
    {"samples": 5},
    tables_only=True,
)
def trees(
    cell: Cell, lr: float, leaves: int = 4, l2: float = 0.0, samples: int = 20, single: bool = False
) -> Any:
    """Boost trees, or grow one, of as many bytes as the weights have: 8 for each split, 4 for each leaf."""
    X, y = cell.X.numpy(), cell.y.numpy()
    if single:
        most = (4 * cell.budget + 8) // 12
        how = {"max_leaf_nodes": most, "min_samples_leaf": min(samples, 2), "random_state": cell.seed}
        return DecisionTreeClassifier(**how).fit(X, y)
    each = cell.classes * (8 * (leaves - 1) + 4 * leaves)
    if each > 4 * cell.budget:
        raise BudgetError(f"trees of {leaves} leaves for each class take {each:,} bytes.")
    return HistGradientBoostingClassifier(
        max_iter=4 * cell.budget // each,
        max_leaf_nodes=leaves,
        learning_rate=min(1.0, 20 * lr),
        l2_regularization=l2,
        min_samples_leaf=samples,
        random_state=cell.seed,
        early_stopping=False,
    ).fit(X, y)
