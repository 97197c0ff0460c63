"""Run a recipe: warm-up, expansion, training; for one network, or several at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError
from fpe.masked import count_nonzero
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.training import ensemble
from fpe.training.loop import Record, adam, train
from fpe.training.recipe import Recipe


@dataclass
class Trial:
    """The run of a recipe for one seed: networks, optimizer, generator, rewirer.

    Attributes
    ----------
    dense, model : nn.Module
        The dense network, which the expansion does not change, and the network that is trained: first the
        dense one, then its expansion.
    epoch : int
        Epochs of the recipe so far, including those that early stopping saved.
    history : list of dict
        One record for each epoch: ``stage`` ("dense" or "expanded"), ``epoch`` from 1 over both stages,
        ``loss`` and, with early stopping, ``validation_loss``.
    """

    recipe: Recipe
    seed: int
    dense: nn.Module
    model: nn.Module
    optimizer: torch.optim.Adam
    generator: torch.Generator
    rewirer: Rewirer | GradualPruner | None = None
    epoch: int = 0
    history: list[Record] = field(default_factory=list)

    @classmethod
    def start(cls, recipe: Recipe, dense: nn.Module, seed: int) -> Trial:
        """Return the trial of an untrained dense network, which will be trained in place."""
        generator = torch.Generator().manual_seed(seed)
        return cls(recipe, seed, dense, dense, adam(dense, recipe.lr, recipe.l2), generator)

    def expand(self, samples: int, network: nn.Module | None = None) -> None:
        """Continue with a fresh Adam and `network`, by default the recipe's expansion, none for factor 1.

        From the number of samples follow the steps of the rewirer.
        """
        expands = network is not None or self.recipe.expands
        if expands:
            self.model = self.recipe.expand(self.dense, self.seed) if network is None else network
        if expands or self.recipe.late_lr is not None:
            rate = self.recipe.lr if self.recipe.late_lr is None else self.recipe.late_lr
            self.optimizer = adam(self.model, rate, self.recipe.l2)
        if expands:
            self.rewirer = self.recipe.rewirer(
                self.model, self.optimizer, samples, self.seed, count_nonzero(self.dense)
            )

    def baseline(self) -> Trial:
        """Return an independent copy of factor 1, with the same state and order of mini-batches."""
        return replace(copy.deepcopy(self), recipe=replace(self.recipe, factor=1, gradual=False))

    def _expand_if_due(self, samples: int) -> None:
        behind = self.epoch - self.recipe.warmup_epochs
        if self.model is self.dense and (behind == 0 or (behind > 0 and self.recipe.expands)):
            self.expand(samples)

    def _add(self, record: Record) -> None:
        stage = "dense" if self.model is self.dense else "expanded"
        self.history.append({"stage": stage, **record, "epoch": len(self.history) + 1})
        self.epoch += 1


def train_trials(
    trials: Sequence[Trial],
    X: Tensor | Sequence[Tensor],
    y: Tensor | Sequence[Tensor],
    *,
    until: int | None = None,
    on_epoch: Callable[[list[Record]], None] | None = None,
    **options: Any,
) -> None:
    """Train trials in place by their recipes, expanding each after its warm-up.

    One trial is trained by `fpe.training.train`, several together by `fpe.training.ensemble.train`: each as
    it would be alone, within rounding. Calls with a rising `until` give the same result as one call.

    Parameters
    ----------
    trials : sequence of Trial
        At the same epoch, with the same batch size; their recipes may differ otherwise. Those that share a
        generator see the same order of mini-batches.
    X, y, on_epoch, **options
        As for `fpe.training.ensemble.train`; early stopping acts within the warm-up, and after it.
    until : int, optional
        The epoch to stop at, counted from the beginning of the recipe. By default its end.

    Raises
    ------
    ArgumentError
        If training diverges; the trials are then as after their last finished epoch.
    """
    sizes = [len(X)] * len(trials) if isinstance(X, Tensor) else [len(own) for own in X]
    begin = trials[0].epoch
    end = max(trial.recipe.total_epochs for trial in trials) if until is None else until
    stops = {trial.recipe.warmup_epochs for trial in trials}
    for stop in [*sorted(stop for stop in stops if begin < stop < end), end]:
        for trial, samples in zip(trials, sizes, strict=True):
            trial._expand_if_due(samples)
        options |= {"epochs": stop - trials[0].epoch, "batch_size": trials[0].recipe.batch_size}
        if len(trials) == 1:
            _train_one(trials[0], X, y, on_epoch, options)
        else:
            _train_together(trials, X, y, on_epoch, options)
        for trial in trials:
            trial.epoch = stop
    if until is None:  # a recipe may have no epochs after the expansion
        for trial, samples in zip(trials, sizes, strict=True):
            trial._expand_if_due(samples)


def _train_one(trial: Trial, X: Any, y: Any, on_epoch: Any, options: dict[str, Any]) -> None:
    def finished(record: Record) -> None:
        trial._add(record)
        if on_epoch is not None:
            on_epoch(trial.history[-1:])

    options = {name: own[0] if isinstance(own, list) else own for name, own in options.items()}
    train(
        trial.model,
        *(data if isinstance(data, Tensor) else data[0] for data in (X, y)),
        optimizer=trial.optimizer,
        generator=trial.generator,
        rewirer=trial.rewirer,
        objective=trial.recipe.objective,
        decay=trial.recipe.cosine(trial.epoch),
        on_epoch=finished,
        **options,
    )


def _train_together(trials: Sequence[Trial], X: Any, y: Any, on_epoch: Any, options: dict[str, Any]) -> None:
    histories = ensemble.train(
        [trial.model for trial in trials],
        X,
        y,
        optimizers=[trial.optimizer for trial in trials],
        generators=[trial.generator for trial in trials],
        rewirers=[trial.rewirer for trial in trials],
        objective=[trial.recipe.objective for trial in trials],
        decay=[trial.recipe.cosine(trial.epoch) for trial in trials],
        on_epoch=on_epoch,
        **options,
    )
    for trial, records in zip(trials, histories, strict=True):
        for record in records:
            trial._add(record)


def run_recipe(
    recipe: Recipe,
    build: Callable[[int], nn.Module],
    X: Tensor,
    y: Tensor,
    *,
    seeds: int | Sequence[int] = 0,
    double: Callable[[int], nn.Module] | None = None,
    **options: Any,
) -> list[dict[str, Trial]]:
    """Train dense networks for the warm-up, then both dense and expanded, in the same order of mini-batches.

    Parameters
    ----------
    recipe : Recipe
        Its settings.
    build, double : callable
        Return a seed's untrained dense network, and optionally one of twice the width, trained for all
        epochs.
    X, y, **options
        As for `fpe.training.train`: data, ``sample_weight``, ``early_stopping`` and ``on_epoch``.
    seeds : int or sequence of int, default 0
        Several are trained together, as by `train_trials`.

    Returns
    -------
    list of dict of str to Trial
        For each seed ``"dense"``, ``"expanded"`` and, with `double`, ``"double"``: trials with the trained
        ``model`` and the whole ``history``; ``["expanded"].dense`` is the network before the expansion.

    Raises
    ------
    ArgumentError
        If training diverges; the message begins with the stage, such as ``"warm-up"`` or ``"expanded"``.

    Examples
    --------
    >>> import torch, fpe
    >>> from fpe.training import Recipe, run_recipe
    >>> X, y = torch.randn(100, 8), torch.arange(100) % 2
    >>> recipe = Recipe.choose(warmup_epochs=2, epochs=2)
    >>> (made,) = run_recipe(recipe, lambda seed: fpe.mlp(8, 4, 2, seed=seed), X, y)
    >>> fpe.count_nonzero(made["expanded"].model) == fpe.count_nonzero(made["dense"].model)
    True
    """

    def run(stage: str, trials: list[Trial], until: int | None = None) -> list[Trial]:
        try:
            train_trials(trials, X, y, until=until, **options)
        except ArgumentError as error:
            raise ArgumentError(f"{stage}: {error}") from error
        return trials

    every: list[int] = np.atleast_1d(seeds).tolist()
    trials = [Trial.start(recipe, build(seed), seed) for seed in every]
    if recipe.warmup_epochs:
        run("warm-up", trials, recipe.warmup_epochs)
    made = {"dense": run("dense", [trial.baseline() for trial in trials])}
    made["expanded"] = run("expanded", trials)
    if double is not None:
        whole = replace(recipe, factor=1, warmup_epochs=0, epochs=recipe.total_epochs)
        made["double"] = run("double", [Trial.start(whole, double(seed), seed) for seed in every])
    return [dict(zip(made, each, strict=True)) for each in zip(*made.values(), strict=True)]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest last loss; with early stopping, the lowest validation loss."""
    if not all(trial.history for trial in trials):  # trained for no epoch
        return trials[0]
    losses = []
    for trial in trials:
        last = [r for r in trial.history if r["stage"] == trial.history[-1]["stage"]]
        validation = [r["validation_loss"] for r in last if "validation_loss" in r]
        losses.append(min(validation) if validation else last[-1]["loss"])
    return trials[int(np.argmin(losses))]
