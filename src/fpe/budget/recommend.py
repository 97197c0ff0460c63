"""`recommend`: which network is best for a budget of non-zeros, found by training."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets

from fpe._util.terminal import progress_bar
from fpe.budget.candidates import CANDIDATES, dense_count, widest
from fpe.budget.halving import ROUNDS, Entry, Task, halve
from fpe.budget.kept import Kept, identity_of
from fpe.budget.recommendation import Recommendation
from fpe.errors import ArgumentError, DataError, raise_problems
from fpe.sklearn import checked_labels, refuse_sparse

#: Hidden neurons of the dense network whose count is the budget where none is given.
USUAL = 16
#: Parts of the budget of which the front is made.
PARTS = (4, 2, 1)


def recommend(
    X: Any,
    y: Any,
    budget: int | None = None,
    *,
    epochs: int = 100,
    lr: float | Sequence[float] = 1e-2,
    trials: int = 3,
    validation_fraction: float = 0.2,
    front: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    verbose: bool = False,
    folder: str | os.PathLike[str] | None = None,
    on_budget: Callable[[Entry], None] | None = None,
) -> Recommendation:
    """Choose width, factor, split, pruning and rewiring for a budget of non-zero parameters.

    A part of the data is held out. Candidates are dense networks, networks that are expanded once, and
    networks whose masks move, all with as many hidden neurons of the parent as the budget pays for. All
    are trained for a quarter of the epochs, the better half for another, the better half of these to the
    end (successive halving; Jamieson and Talwalkar, 2016), all with a learning rate that falls as a cosine.

    The accuracy of the winner on the held-out part is optimistic, as it was chosen by it. What learns slowly
    at first, as networks with moving masks and many children do, may be dropped too early.

    Parameters
    ----------
    X : array-like of shape (samples, features)
        Finite numbers, best scaled alike. float32 stays float32, anything else is float64.
    y : array-like of shape (samples,)
        Labels of any type, at least two different ones.
    budget : int, optional
        The most non-zero parameters, biases included. By default those of a dense network of 16
        hidden neurons.
    epochs : int, default 100
        Passes over the data for those that stay to the end, in all; at least 8.
    lr : float or sequence of float, default 1e-2
        Adam's learning rate at the start; of several, each candidate tries each.
    trials : int, default 3
        Networks of each candidate, from seeds ``seed``, ``seed + 1`` …; their mean counts.
    validation_fraction : float, default 0.2
        The share of each class that is held out.
    front : bool, default True
        Whether to do the same for a quarter and for half of the budget.
    batch_size : int, optional
        Samples in a mini-batch; by default as `fpe.training.loop.default_batch_size` says.
    seed : int, default 0
        Of everything.
    verbose : bool, default False
        Show a progress bar on a terminal.
    folder : path-like, optional
        Where the table of each budget is stored as soon as it is known. The same call finds it there, so
        that a choice that was interrupted goes on.
    on_budget : callable, optional
        Gets the winner of each budget as soon as it is known.

    Returns
    -------
    Recommendation
        The best settings, a table of all candidates, and the winner of each budget. Print it, or call its
        ``classifier()``. Nothing in it has seen all data: train it on all of them if you like.

    Raises
    ------
    ArgumentError, DataError
        For arguments or data that cannot be used, all problems at once; nothing was trained then.

    Examples
    --------
    >>> import fpe
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> found = fpe.recommend(X[:300] / 16, y[:300], budget=400, epochs=8, trials=1, front=False)
    >>> found.settings.hidden, found.best.nonzero
    (5, 385)
    """
    refuse_sparse(X)
    X = np.asarray(X)
    y, problems = _labels(y)
    problems = [*_data_problems(X), *(problems or _label_problems(X, y))]
    raise_problems(problems, DataError, "the data")
    classes, codes = np.unique(y, return_inverse=True)
    outputs = 1 if len(classes) == 2 else len(classes)
    inputs = X.shape[1]
    rates = (lr,) if isinstance(lr, int | float) else tuple(lr)
    given = {"epochs": (epochs, 2**ROUNDS), "trials": (trials, 1), "seed": (seed, 0)}
    if budget is None:
        budget = dense_count(inputs, USUAL, outputs)
    given["budget"] = (budget, dense_count(inputs, 1, outputs))
    if batch_size is not None:
        given["batch_size"] = (batch_size, 1)
    problems = _number_problems(given, rates, validation_fraction)
    raise_problems(problems, ArgumentError, "the arguments of recommend")

    kept, held = hold_out(codes, validation_fraction, seed)
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    X = torch.from_numpy(X.astype(dtype))
    labels = torch.from_numpy(codes.astype(np.int64))
    seeds = [seed + trial for trial in range(trials)]
    task = Task(X[kept], labels[kept], X[held], labels[held], outputs, batch_size, seeds)
    widths = [widest(inputs, outputs, budget // part) for part in (PARTS if front else PARTS[-1:])]
    widths = sorted({width for width in widths if width > 0})
    tables: list[list[Entry]] = []
    how = {"epochs": epochs, "lr": rates, "trials": trials, "batch_size": batch_size, "seed": seed}
    identity = identity_of(X, labels, {**how, "validation_fraction": validation_fraction})
    kept_tables = Kept(None if folder is None else Path(folder), identity)
    with progress_bar("choosing", 1, verbose) as advance:
        for width in widths:
            made = [(_name(c.name, rate, rates), c.settings(width, epochs, rate))
                    for rate in rates for c in CANDIDATES]  # fmt: skip
            table = kept_tables.find(width)
            if table is None:
                tell = _telling(advance, width, len(tables), len(widths))
                table = halve(made, task, epochs, tell)
                kept_tables.store(width, table)
            tables.append(table)
            if on_budget is not None:
                on_budget(table[0])
    winners = [table[0] for table in tables]
    return Recommendation(budget, tables[-1], winners, len(held), seed, batch_size)


def _name(name: str, rate: float, rates: Sequence[float]) -> str:
    return f"{name}, rate {rate:g}" if len(rates) > 1 else name


def _telling(
    advance: Callable[..., None], width: int, before: int, budgets: int
) -> Callable[[str, int, int], None]:
    def tell(text: str, done: int, total: int) -> None:
        # Budgets take about as long as each other.
        advance(f"{width} hidden neurons, {text}", before * total + done, budgets * total)

    return tell


def _labels(y: Any) -> tuple[np.ndarray, list[str]]:
    """Return the labels as an array, and what makes them no labels of classes."""
    try:
        labels = np.asarray(checked_labels(y))
        if labels.ndim == 1:
            check_classification_targets(labels)
    except ValueError as error:
        return np.empty(0), [str(error)]
    return labels, []


def _data_problems(X: np.ndarray) -> list[str]:
    problems = []
    if X.ndim != 2 or X.size == 0 or X.dtype.kind not in "fiub":
        problems.append(
            f"X has shape {X.shape} and type {X.dtype}; give numbers of shape (samples, features), at least "
            "one of each."
        )
    elif not np.isfinite(X).all():
        bad = int((~np.isfinite(X)).any(axis=1).sum())
        problems.append(
            f"X has NaN or infinite values in {bad} of {len(X)} samples; leave these out, or fill them in."
        )
    return problems


def _label_problems(X: np.ndarray, y: np.ndarray) -> list[str]:
    problems = []
    if y.ndim != 1:
        return [f"y has shape {y.shape}; give one label for each sample, shape (samples,)."]
    if X.ndim == 2 and len(X) != len(y):
        problems.append(f"X has {len(X)} samples and y {len(y)} labels; give one label for each sample.")
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        problems.append(f"y has one class only, {classes.tolist()}; give samples of at least two.")
    elif counts.max() < 2:
        problems.append(
            f"y has {len(classes)} classes of one sample each; give at least two samples of one "
            "of them, so that one can be held out."
        )
    return problems


def _number_problems(given: dict[str, tuple[Any, int]], rates: Sequence[Any], fraction: Any) -> list[str]:
    problems = []
    for name, (value, least) in given.items():
        integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not integer or value < least:
            why = {"budget": ", what one hidden neuron takes with these data",
                   "epochs": f", so that each of {ROUNDS} rounds has some"}.get(name, "")  # fmt: skip
            problems.append(f"{name} is {value!r}; give an integer of at least {least}{why}.")
    numbers = [isinstance(r, int | float) and not isinstance(r, bool) and 0 < r < np.inf for r in rates]
    if not numbers or not all(numbers):
        problems.append(f"lr is {rates!r}; give a number above 0, or several.")
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        problems.append(f"validation_fraction is {fraction!r}; give a share between 0 and 1.")
    return problems


def hold_out(codes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the samples to learn from and those held out: the share of each class, but never all of it.

    Parameters
    ----------
    codes : ndarray of shape (samples,)
        Class numbers from 0.
    fraction : float
        The share that is held out, at least one sample of each class that has two.
    seed : int
        Of the choice.

    Returns
    -------
    ndarray, ndarray
        Numbers of the samples, in order.
    """
    rng = np.random.default_rng(seed)
    held = []
    for code in range(codes.max() + 1):
        own = rng.permutation(np.flatnonzero(codes == code))
        held.append(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(codes)), out), out
