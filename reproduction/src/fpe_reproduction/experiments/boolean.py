"""The paper's Boolean setting (3.1 and 3.2): networks that learn one formula, dense and expanded.

A *row* is a number of clauses with several numbers of dense neurons. Each of its trials has its own data,
which its networks of all widths see in the same order. After the warm-up each dense network trains on as it
is, and expanded by clauses, at random, and by other splits.
"""

from __future__ import annotations

import dataclasses
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
from fpe.masked import MaskedLinear, count_nonzero
from fpe.metrics import total_capacity
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.loop import adam
from fpe_reproduction.experiments.measures import interference
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


@dataclass
class _Trial:
    number: int
    seed: int
    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor
    generator: torch.Generator


@dataclass
class _Network:
    """A network of a trial; `neurons` is the number of the dense network."""

    kind: str
    trial: _Trial
    neurons: int
    model: nn.Module
    optimizer: torch.optim.Adam


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
        every = [_make_trial(config, clauses, first_trial + t) for t in range(trials)]
        networks = []
        for trial in every:
            for width in neurons:
                model = mlp(clauses * config.literals, width, 1, seed=trial.seed)
                networks.append(_Network("dense", trial, width, model, adam(model, config.lr, config.l2)))
        _train(networks, config.warmup_epochs, config)
        groups = LabelSplit(np.repeat(np.arange(clauses), config.literals))
        networks += [
            _expanded(config, parent, kind, groups if kind == "clause" else kind)
            for kind in ("clause", "random", *others)
            for parent in networks
        ]
        _train(networks, config.epochs, config)
        return {"networks": _measure(networks, clauses, config.literals)}


def _make_trial(config: BooleanConfig, clauses: int, number: int) -> _Trial:
    seed = config.seed + number
    training = dnf(clauses, literals=config.literals, samples=config.samples, seed=2 * seed)
    test = dnf(clauses, literals=config.literals, samples=config.test_samples, seed=2 * seed + 1)
    X, y, X_test, y_test = (torch.from_numpy(a) for a in (training.X, training.y, test.X, test.y))
    return _Trial(number, seed, X, y, X_test, y_test, torch.Generator().manual_seed(seed))


def _expanded(config: BooleanConfig, parent: _Network, kind: str, split: str | Split) -> _Network:
    trial = parent.trial
    if kind in SPLITS:
        assert isinstance(parent.model, nn.Sequential)
        seen = Parent(parent.model, trial.seed, trial.X, trial.y, config.lr, measured=len(trial.X))
        split = fixed_split(kind, seen, config.factor)
    model = expand(parent.model, config.factor, split=split, seed=trial.seed)
    return _Network(kind, trial, parent.neurons, model, adam(model, config.lr, config.l2))


def _train(networks: Sequence[_Network], epochs: int, config: BooleanConfig) -> None:
    ensemble.train(
        [n.model for n in networks],
        [n.trial.X for n in networks],
        [n.trial.y for n in networks],
        epochs=epochs,
        optimizers=[n.optimizer for n in networks],
        generators=[n.trial.generator for n in networks],
        batch_size=config.batch_size,
    )


def _measure(networks: Sequence[_Network], clauses: int, literals: int) -> list[dict[str, Any]]:
    models = [n.model for n in networks]
    test = ensemble.accuracies(models, [n.trial.X_test for n in networks], [n.trial.y_test for n in networks])
    training = ensemble.accuracies(models, [n.trial.X for n in networks], [n.trial.y for n in networks])
    return [
        {
            "clauses": clauses,
            "neurons": n.neurons,
            "trial": n.trial.number,
            "seed": n.trial.seed,
            "kind": n.kind,
            "nonzero": count_nonzero(n.model),
            "accuracy": test_accuracy,
            "train_accuracy": train_accuracy,
            **_first_layer(n.model.get_submodule("0"), literals),
        }
        for n, test_accuracy, train_accuracy in zip(networks, test, training, strict=True)
    ]


def _first_layer(layer: nn.Module, literals: int) -> dict[str, Any]:
    """Measure the first layer: its weight, and which whole clauses its neurons see (A.5)."""
    weight = layer.get_parameter("weight").detach()
    mask = layer.fpe_mask if isinstance(layer, MaskedLinear) else torch.ones_like(weight)
    covered = mask.bool().view(len(mask), -1, literals).all(dim=2)
    seen = covered.sum(dim=1)
    return {
        **interference(weight),
        "clause_capacity": total_capacity(weight.view(len(weight), -1, literals).sum(dim=2)),
        "covering": float(covered.double().mean()),
        "covered_clauses": int(covered.any(dim=0).sum()),
        "collisions": int((seen * (seen - 1) // 2).sum()),
        "weight": [[round(v, 4) for v in row] for row in weight.tolist()],
    }
