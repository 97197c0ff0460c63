"""The paper's Boolean setting (3.1 and 3.2): networks that learn one formula, dense and expanded.

A *cell* is a number of clauses and a number of dense neurons; its trials have their own data and their
own networks. Of each trial's dense network three go on after the warm-up, with the same mini-batches in
the same order: as it is, expanded by clauses, and expanded at random.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpe import ensemble
from fpe.budget import count_nonzero
from fpe.data import dnf
from fpe.expansion import expand
from fpe.experiments.threads import one_thread
from fpe.interference import mean_cosine_similarity, total_capacity
from fpe.models import mlp
from fpe.partition import Groups
from fpe.training import adam

#: The networks that are compared, in the paper's order.
KINDS = ("dense", "clause", "random")


@dataclass(frozen=True)
class BooleanConfig:
    """How the networks of a cell are made and trained; the defaults come nearest to the paper's case study.

    Attributes
    ----------
    literals : int
        Variables of each clause (2.2.1).
    samples, test_samples : int
        Samples to learn from and to test on, of each trial.
    factor : int
        Children of each neuron (3.1).
    warmup_epochs, epochs : int
        Before and after the expansion (A.3.1); the dense network trains for both.
    batch_size : int
        Samples in a mini-batch (A.3.1).
    lr, l2 : float
        Learning rate of Adam and weight of the squared norm; the text of the paper lost both.
    seed : int
        Trial t draws its data, networks and partitions from ``seed + t``.
    """

    literals: int = 4
    samples: int = 4000
    test_samples: int = 2000
    factor: int = 2
    warmup_epochs: int = 1000
    epochs: int = 1000
    batch_size: int = 500
    lr: float = 3e-3
    l2: float = 0.0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes."""
        return dataclasses.asdict(self)


@dataclass
class _Trial:
    """Data and networks of one trial."""

    seed: int
    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor
    dense: nn.Module
    generator: torch.Generator


def run_cell(config: BooleanConfig, clauses: int, neurons: int, trials: int) -> dict[str, Any]:
    """Train the networks of a cell, all trials at once, and measure them. On one thread.

    Parameters
    ----------
    config : BooleanConfig
        How.
    clauses, neurons : int
        Clauses of the formulas and hidden neurons of the dense networks.
    trials : int
        How many.

    Returns
    -------
    dict
        ``clauses``, ``neurons`` and ``trials``: for each trial and each of `KINDS` the accuracy on
        test and training data, non-zeros, interference, and the weight of the first layer.
    """
    with one_thread():
        made = [_make(config, clauses, neurons, config.seed + t) for t in range(trials)]
        groups = Groups(dnf(clauses, config.literals, 4).labels)
        optimizers = [adam(trial.dense, config.lr, config.l2) for trial in made]
        _train([trial.dense for trial in made], made, optimizers, config.warmup_epochs, config)

        networks = {"dense": [trial.dense for trial in made]}
        for kind, split in (("clause", groups), ("random", "random")):
            networks[kind] = [
                expand(trial.dense, config.factor, split, seed=trial.seed)  # type: ignore[arg-type]
                for trial in made
            ]
            optimizers += [adam(network, config.lr, config.l2) for network in networks[kind]]
        everything = [network for kind in KINDS for network in networks[kind]]
        _train(everything, made * len(KINDS), optimizers, config.epochs, config)

        measures = {kind: _measure(networks[kind], made, config.literals) for kind in KINDS}
    return {
        "clauses": clauses,
        "neurons": neurons,
        "trials": [
            {"trial": t, "seed": trial.seed, **{kind: measures[kind][t] for kind in KINDS}}
            for t, trial in enumerate(made)
        ],
    }


def _make(config: BooleanConfig, clauses: int, neurons: int, seed: int) -> _Trial:
    train = dnf(clauses, config.literals, config.samples, seed=2 * seed)
    test = dnf(clauses, config.literals, config.test_samples, seed=2 * seed + 1)
    X, y, X_test, y_test = (torch.from_numpy(a) for a in (train.X, train.y, test.X, test.y))
    dense = mlp(clauses * config.literals, neurons, 1, seed=seed)
    return _Trial(seed, X, y, X_test, y_test, dense, torch.Generator().manual_seed(seed))


def _train(
    networks: list[nn.Module],
    trials: list[_Trial],
    optimizers: list[torch.optim.Adam],
    epochs: int,
    config: BooleanConfig,
) -> None:
    ensemble.train(
        networks,
        [trial.X for trial in trials],
        [trial.y for trial in trials],
        epochs=epochs,
        optimizers=optimizers,
        generators=[trial.generator for trial in trials],
        batch_size=config.batch_size,
    )


def _measure(networks: list[nn.Module], trials: list[_Trial], literals: int) -> list[dict[str, Any]]:
    """Measure the networks of one kind."""
    test = ensemble.accuracies(networks, [t.X_test for t in trials], [t.y_test for t in trials])
    train = ensemble.accuracies(networks, [t.X for t in trials], [t.y for t in trials])
    measures = []
    for network, test_accuracy, train_accuracy in zip(networks, test, train, strict=True):
        weight = network.get_submodule("0").weight
        assert isinstance(weight, Tensor)
        weight = weight.detach()
        by_clause = weight.view(len(weight), -1, literals).sum(dim=2)
        measures.append(
            {
                "neurons": len(weight),
                "nonzero": count_nonzero(network),
                "accuracy": test_accuracy,
                "train_accuracy": train_accuracy,
                "capacity": total_capacity(weight),
                "clause_capacity": total_capacity(by_clause),
                "cosine": mean_cosine_similarity(weight),
                "weight": [[round(v, 4) for v in row] for row in weight.tolist()],
            }
        )
    return measures
