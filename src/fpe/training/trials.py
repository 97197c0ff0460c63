"""The same recipe from several seeds at once, of which the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fpe.rewiring.rewirer import Rewirer
from fpe.training import ensemble
from fpe.training.loop import EarlyStopping, Record, adam
from fpe.training.recipe import Recipe


@dataclass
class Trial:
    """One seed's networks, and what trains them.

    Attributes
    ----------
    seed : int
        Of weights, partitions and order.
    dense, model : nn.Module
        The dense network, and what is trained: that one, then its expansion.
    optimizer, generator, rewirer
        Of what is trained.
    history : list of dict
        One record for each epoch.
    """

    seed: int
    dense: nn.Module
    model: nn.Module
    optimizer: torch.optim.Adam
    generator: torch.Generator
    rewirer: Rewirer | None = None
    history: list[Record] = field(default_factory=list)

    def expand(self, recipe: Recipe, samples: int, batch_size: int | None = None, l2: float = 0.0) -> None:
        """Go on with the expanded network, which learns from so many samples; see `Recipe.rewirer`."""
        self.model = recipe.expand(self.dense, self.seed)
        self.optimizer = adam(self.model, recipe.lr, l2)
        self.rewirer = recipe.rewirer(self.model, self.optimizer, samples, batch_size, self.seed)


def start_trial(dense: nn.Module, seed: int, recipe: Recipe, l2: float) -> Trial:
    """Return a trial of an untrained dense network."""
    order = torch.Generator().manual_seed(seed)
    return Trial(seed, dense, dense, adam(dense, recipe.lr, l2), order)


def train_trials(
    trials: Sequence[Trial],
    recipe: Recipe,
    X: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    *,
    l2: float = 0.0,
    batch_size: int | None = None,
    early_stopping: EarlyStopping | None = None,
    advance: Callable[[str], None] | None = None,
) -> None:
    """Train all trials as one program: dense networks, then their expansions. Changed in place.

    Parameters
    ----------
    trials : sequence of Trial
        As `start_trial` makes them.
    recipe : Recipe
        How.
    X, y, weight, l2, batch_size, early_stopping
        As for `fpe.training.train` and `fpe.training.adam`.
    advance : callable, optional
        Gets a short text after each epoch of each network.
    """

    def finished(records: list[Record]) -> None:
        for record in records:
            if advance is not None:
                advance(f"loss {record['loss']:.4f}")

    def train_all(stage: str, epochs: int, behind: int) -> None:
        found = ensemble.train(
            [trial.model for trial in trials],
            X,
            y,
            epochs=epochs,
            optimizers=[trial.optimizer for trial in trials],
            generators=[trial.generator for trial in trials],
            batch_size=batch_size,
            sample_weight=weight,
            early_stopping=early_stopping,
            rewirers=[trial.rewirer for trial in trials],
            decay=recipe.cosine(behind),
            on_epoch=finished,
        )
        for trial, records in zip(trials, found, strict=True):
            begin = len(trial.history)
            trial.history += [{"stage": stage, **r, "epoch": begin + r["epoch"]} for r in records]

    train_all("dense", recipe.warmup_epochs, 0)
    if recipe.factor > 1:
        for trial in trials:
            trial.expand(recipe, len(X), batch_size, l2)
    train_all("expanded" if recipe.factor > 1 else "dense", recipe.epochs, recipe.warmup_epochs)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the lowest loss: on held-out data where there was early stopping.

    With early stopping a network went back to where its loss on held-out data was lowest.
    """
    if not all(trial.history for trial in trials):  # no epochs were asked for
        return trials[0]
    losses = []
    for trial in trials:
        last = [r for r in trial.history if r["stage"] == trial.history[-1]["stage"]]
        held_out = [r["validation_loss"] for r in last if "validation_loss" in r]
        losses.append(min(held_out) if held_out else last[-1]["loss"])
    return trials[int(np.argmin(losses))]
