"""Decide on held-out data how a trained network is trained on.

A network is trained on a part of the data for the warm-up, and then in several ways: as it is, or expanded,
with open masks, and pruned back to its own count. Each way is tried at the same rates. Expanding is chosen
only if it is better on the held-out samples by more than a standard error (Breiman et al., 1984).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError
from fpe.training import ensemble
from fpe.training.folds import fold_count
from fpe.training.loop import EarlyStopping, predicted
from fpe.training.losses import Objective
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials

#: Learning rates after the warm-up, and expansion factors, that are tried.
RATES = (1e-2, 3e-2)
FACTORS = (2, 4, 8)


@dataclass
class Way:
    """A way to train on, and its score for each held-out sample; `reason` says why it has none."""

    recipe: Recipe
    each: np.ndarray
    reason: str = ""

    @property
    def expands(self) -> bool:
        """Whether the network is expanded."""
        return self.recipe.expands

    @property
    def score(self) -> float:
        """The mean over the held-out samples: accuracy, or for numbers R²; −∞ after a failure."""
        return float(self.each.mean()) if len(self.each) else -np.inf

    @property
    def name(self) -> str:
        """Describe it in a few words."""
        lr = self.recipe.lr if self.recipe.late_lr is None else self.recipe.late_lr
        how = f"expanded by {self.recipe.factor} and pruned back" if self.expands else "not expanded"
        return f"{how}, rate {lr:g}"


@dataclass
class Decision:
    """How a trained network is trained on, and why.

    Attributes
    ----------
    ways : list of Way
        All that were tried, the best first.
    """

    ways: list[Way]

    def _best(self, expands: bool) -> Way | None:
        return next((way for way in self.ways if way.expands == expands and len(way.each)), None)

    @property
    def gain(self) -> float:
        """How much better the best way that expands is than the best that does not, in the mean."""
        wide, plain = self._best(True), self._best(False)
        return float((wide.each - plain.each).mean()) if wide and plain else float("nan")

    @property
    def error(self) -> float:
        """The standard error of the gain, over the held-out samples."""
        wide, plain = self._best(True), self._best(False)
        if not wide or not plain:
            return float("nan")
        return float((wide.each - plain.each).std() / len(wide.each) ** 0.5)

    @property
    def chosen(self) -> Way:
        """The best way that expands if its gain is above its error; the best that does not otherwise."""
        wide, plain = self._best(True), self._best(False)
        if plain is None:
            assert wide is not None
            return wide
        return wide if wide is not None and self.gain > self.error else plain

    def __str__(self) -> str:
        chosen = self.chosen
        if np.isnan(self.gain):
            return f"{chosen.name}: nothing else was trained"
        samples = len(chosen.each)
        return (
            f"{chosen.name}: expanding changes the score on {samples:,} held-out samples by "
            f"{self.gain:+.4f}, with a standard error of {self.error:.4f}"
        )


def ways_of(recipe: Recipe, rates: Sequence[float] | None, factors: Sequence[int]) -> list[Recipe]:
    """Return the recipes that are compared: as it is, and expanded by each factor, at each rate.

    Without rates the recipe's own is used.
    """
    plain = replace(recipe, factor=1, gradual=False)
    recipes = [plain, *(replace(recipe, factor=factor) for factor in factors if factor > 1)]
    return [replace(own, late_lr=rate) for own in recipes for rate in rates] if rates else recipes


def decide(
    recipes: Sequence[Recipe],
    build: Callable[[int], nn.Module],
    X: Tensor,
    y: Tensor,
    codes: np.ndarray | None,
    *,
    seed: int,
    weight: Tensor | None = None,
    patience: int | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Decision:
    """Compare ways to train on after one warm-up, on a fifth of the data, or on several if there is little.

    Parameters
    ----------
    recipes : sequence of Recipe
        That differ after the warm-up only.
    build : callable
        Returns the untrained network of a seed.
    X, y, weight, codes
        All data to learn, as for `fpe.training.train`, and class numbers, of which equal parts are held out;
        None if there are none.
    seed : int
        Of the held-out parts and of the networks.
    patience : int, optional
        Of early stopping on the held-out part.
    on_epoch : callable, optional
        As for `train_trials`.

    Raises
    ------
    ArgumentError
        If all diverge.
    """
    parts = fifths(np.zeros(len(X), int) if codes is None else codes, seed)
    every = torch.arange(len(X))
    held = [torch.from_numpy(np.flatnonzero(parts == number)) for number in range(fold_count(len(X)))]
    held = [rows for rows in held if 0 < len(rows) < len(X)]
    rest = [every[~torch.isin(every, rows)] for rows in held]
    data = [X[rows] for rows in rest], [y[rows] for rows in rest]
    options: dict[str, Any] = {"on_epoch": on_epoch}
    weights = None if weight is None else [weight[rows] for rows in rest]
    stopping = None if patience is None else [EarlyStopping(X[rows], y[rows], patience) for rows in held]
    n = len(held)
    parents = [Trial.start(recipes[0], build(seed + i), seed + i) for i in range(len(held))]
    if recipes[0].warmup_epochs:
        own = {**options, "sample_weight": weights, "early_stopping": stopping}
        train_trials(parents, *data, until=recipes[0].warmup_epochs, **own)

    def trained(some: Sequence[Recipe]) -> list[Way]:
        trials, times = [], len(some)
        orders = [copy.deepcopy(parent.generator) for parent in parents]  # shared, which is faster
        for recipe in some:
            for parent, order in zip(parents, orders, strict=True):
                trials.append(replace(copy.deepcopy(parent), recipe=recipe, generator=order))
        own = {
            **options,
            "sample_weight": None if weights is None else weights * times,
            "early_stopping": None if stopping is None else stopping * times,
        }
        try:
            train_trials(trials, data[0] * times, data[1] * times, **own)
        except ArgumentError as error:
            if times == 1:
                return [Way(some[0], np.zeros(0), str(error))]
            return [way for recipe in some for way in trained([recipe])]
        outputs = ensemble.predict_logits([t.model for t in trials], [X[rows] for rows in held] * times)
        scores = [
            sample_scores(own, y[rows], recipes[0].objective)
            for own, rows in zip(outputs, held * times, strict=True)
        ]
        return [Way(r, np.concatenate(scores[i * n : (i + 1) * n])) for i, r in enumerate(some)]

    ways = trained(recipes)
    if not any(len(way.each) for way in ways):
        raise ArgumentError(f"all ways to train on diverged: {ways[0].reason}")
    return Decision(sorted(ways, key=lambda way: -way.score))


def fifths(codes: np.ndarray, seed: int) -> np.ndarray:
    """Return a number from 0 to 4 for each sample; those of one class are spread evenly, at random."""
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    parts = np.empty(len(codes), int)
    parts[order] = np.arange(len(codes)) % 5
    return parts


def sample_scores(outputs: Tensor, y: Tensor, objective: Objective) -> np.ndarray:
    """Return for each sample 1 or 0, or the share of its labels that is right; for numbers 1 − squared error.

    Targets that are numbers have a variance of 1, so that the mean is R².
    """
    if objective.kind == "squared":
        each = 1 - (outputs - y).square().mean(dim=-1)
    elif objective.kind == "labels":
        each = ((outputs > 0) == (y > 0.5)).double().mean(dim=-1)
    else:
        each = predicted(outputs) == y
    return each.double().cpu().numpy()
