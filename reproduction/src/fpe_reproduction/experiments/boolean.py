"""The paper's Boolean setting (3.1 and 3.2): networks that learn one formula, dense and expanded.

A *row* is a number of clauses with several numbers of dense neurons. Each of its trials has its own data,
which its networks of all widths see in the same order. After the warm-up each dense network trains on as it
is, and expanded by clauses, at random, and by other splits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe.compare.runner import one_thread
from fpe.data import dnf
from fpe.expansion.expand import expand
from fpe.expansion.splits import LabelSplit, Split
from fpe.masked import MaskedLinear
from fpe.metrics import mean_cosine_similarity, total_capacity
from fpe.models import mlp
from fpe.training.loop import adam
from fpe_reproduction.experiments.measures import Network, interference, records, train_together
from fpe_reproduction.experiments.splits import SPLITS, Parent, fixed_split

#: The networks that the paper compares.
KINDS = ("dense", "clause", "random")


@dataclass(frozen=True)
class BooleanConfig:
    """How the networks are made and trained; the defaults come nearest to the paper's case study."""

    literals: int = 4  # variables of each clause (2.2.1)
    samples: int = 4000  # training and test samples of each trial
    test_samples: int = 2000
    factor: int = 2  # children of each neuron (3.1)
    warmup_epochs: int = 1000  # before and after the expansion (A.3.1); the dense network trains for both
    epochs: int = 1000
    batch_size: int = 500  # samples in a mini-batch (A.3.1)
    lr: float = 1e-2  # learning rate of Adam and weight of the squared norm; the text of the paper lost both
    l2: float = 3e-4
    seed: int = 0  # trial t draws its data, networks and splits from ``seed + t``

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes."""
        return dataclasses.asdict(self)


def run_row(
    config: BooleanConfig,
    clauses: int,
    neurons: Sequence[int],
    first_trial: int,
    trials: int,
    others: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the networks of a row, all at once and on one thread; return a record of each.

    `neurons` are the widths of the dense networks, `others` more splits: "gram" or names of `SPLITS`.
    """
    with one_thread():
        numbers = range(first_trial, first_trial + trials)
        data = {number: _data(config, clauses, config.seed + number) for number in numbers}
        networks = []
        for number, (_, y, _, _) in data.items():
            seed = config.seed + number
            generator = torch.Generator().manual_seed(seed)
            for width in neurons:
                model = mlp(clauses * config.literals, width, 1, seed=seed)
                optimizer = adam(model, config.lr, config.l2)
                networks.append(Network("dense", number, seed, generator, width, model, optimizer, y))
        X = [data[n.trial][0] for n in networks]
        train_together(networks, X, config.warmup_epochs, batch_size=config.batch_size)
        groups = LabelSplit(np.repeat(np.arange(clauses), config.literals))
        networks += [
            _expanded(config, parent, x, kind, groups if kind == "clause" else kind)
            for kind in ("clause", "random", *others)
            for parent, x in zip(networks, X, strict=True)
        ]
        X, labels, X_test, y_test = ([data[n.trial][i] for n in networks] for i in range(4))
        train_together(networks, X, config.epochs, batch_size=config.batch_size)
        found = zip(networks, records(networks, (X, labels), (X_test, y_test)), strict=True)
        layers = [network.model.get_submodule("0") for network in networks]
        dense = itertools.cycle(layers[: len(neurons) * trials])  # each kind has them as parents, in order
        return {
            "networks": [
                {
                    "clauses": clauses,
                    "neurons": network.width,
                    **record,
                    **_first_layer(layer, parent, config.literals),
                }
                for (network, record), layer, parent in zip(found, layers, dense, strict=False)
            ]
        }


def _data(config: BooleanConfig, clauses: int, seed: int) -> tuple[Tensor, ...]:
    """Return training and test data: X, y, X, y."""
    sizes = {2 * seed: config.samples, 2 * seed + 1: config.test_samples}
    parts = [dnf(clauses, literals=config.literals, samples=n, seed=own) for own, n in sizes.items()]
    return tuple(torch.from_numpy(array) for part in parts for array in (part.X, part.y))


def _expanded(config: BooleanConfig, parent: Network, X: Tensor, kind: str, split: str | Split) -> Network:
    if kind in SPLITS:
        seen = Parent(parent.model, parent.seed, X, parent.y, config.lr, measured=len(X))
        split = fixed_split(kind, seen, config.factor)
    model = expand(parent.model, config.factor, split=split, seed=parent.seed)
    assert isinstance(model, nn.Sequential)
    return dataclasses.replace(parent, kind=kind, model=model, optimizer=adam(model, config.lr, config.l2))


def _first_layer(layer: nn.Module, dense: nn.Module, literals: int) -> dict[str, Any]:
    """Measure the first layer: its weight, and which whole clauses its neurons see (A.5).

    "masked" is what the masks do alone: the same measures of the weights of the dense network, trained for as
    long, of which each child has those that its mask keeps.
    """
    weight, whole = (own.get_parameter("weight").detach() for own in (layer, dense))
    mask = layer.fpe_mask if isinstance(layer, MaskedLinear) else torch.ones_like(weight)
    covered = mask.bool().view(len(mask), -1, literals).all(dim=2)
    masked = mask * whole.repeat_interleave(len(mask) // len(whole), dim=0)
    seen = covered.sum(dim=1)
    return {
        **interference(weight),
        "clause_capacity": _clause_capacity(weight, literals),
        "cosine_masked": mean_cosine_similarity(masked),
        "clause_capacity_masked": _clause_capacity(masked, literals),
        "block_share": _block_share(weight, literals),
        "covering": float(covered.double().mean()),
        "covered_clauses": int(covered.any(dim=0).sum()),
        "collisions": int((seen * (seen - 1) // 2).sum()),
        "weight": [[round(v, 4) for v in row] for row in weight.tolist()],
    }


def _clause_capacity(weight: Tensor, literals: int) -> float:
    return total_capacity(weight.view(len(weight), -1, literals).sum(dim=2))


def _block_share(weight: Tensor, literals: int) -> float:
    """Return the share of the Gram matrix, squared, that lies between inputs of the same clause."""
    gram = weight.t() @ weight
    clause = torch.arange(len(gram)) // literals
    same = clause[:, None] == clause
    return float(gram[same].square().sum() / gram.square().sum())
