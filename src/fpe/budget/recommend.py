"""`recommend`: which network is best for a budget of non-zeros, found by training."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets

from fpe import __version__
from fpe._util.files import read_json, write_json
from fpe._util.terminal import progress_bar
from fpe.budget.candidates import CANDIDATES, Settings, candidates, dense_count, widest
from fpe.budget.halving import ROUNDS, Entry, Task, halve
from fpe.budget.recommendation import Recommendation
from fpe.errors import DataError, raise_problems
from fpe.sklearn import checked_labels, refuse_sparse
from fpe.training.recipe import CONSTRAINTS, at_least, check_parameters

#: Hidden neurons of the dense network whose count is the default budget.
DEFAULT_HIDDEN = 16
#: The front is made of these parts of the budget: a quarter, a half, all of it.
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

    A part of the data is held out. Candidates are dense networks, expanded ones with fixed masks and with
    dynamic masks, all of the widest dense parent within the budget. All are trained for a quarter of the
    epochs, the better half for another, the better half of these to the end (successive halving; Jamieson and
    Talwalkar, 2016), all with a learning rate that falls as a cosine. A candidate that diverges loses, and is
    named.

    The winner's accuracy on the held-out part is optimistic, as it was chosen by it. Networks that learn
    slowly at first, such as those with dynamic masks and many children, may be dropped too early.

    Parameters
    ----------
    X : array-like of shape (samples, features)
        Finite numbers, best scaled alike. float32 stays float32, anything else becomes float64.
    y : array-like of shape (samples,)
        Labels of any type, at least two different ones.
    budget : int, optional
        The most non-zero parameters, biases included. By default those of a dense network of 16 hidden
        neurons.
    epochs : int, default 100
        Passes over the data in the last round, in total; at least 8.
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
        Where the table of each budget is stored as soon as it is finished. The same call finds it there, so
        that an interrupted choice is resumed.
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
        For arguments or data that cannot be used, all problems at once, before any training; ArgumentError
        also if all candidates diverge.

    Examples
    --------
    >>> import fpe
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> found = fpe.recommend(X[:300] / 16, y[:300], budget=400, epochs=8, trials=1, front=False)
    >>> found.settings.hidden, found.best.nonzero
    (5, 385)
    """
    X, y = _checked(X, y)
    classes, codes = np.unique(y, return_inverse=True)
    inputs, outputs = X.shape[1], 1 if len(classes) == 2 else len(classes)
    rates = (lr,) if isinstance(lr, int | float) else tuple(lr)
    if budget is None:
        budget = dense_count(inputs, DEFAULT_HIDDEN, outputs)
    how = {"epochs": epochs, "lr": rates, "trials": trials, "batch_size": batch_size, "seed": seed}
    how["validation_fraction"] = validation_fraction
    constraints = {
        "epochs": at_least(2**ROUNDS, f", so that each of {ROUNDS} rounds has some"),
        "seed": at_least(0),
        "budget": at_least(dense_count(inputs, 1, outputs), ", that of one hidden neuron"),
        "lr": (lambda given: bool(given) and all(map(CONSTRAINTS["lr"][0], given)), "one or several above 0"),
    }
    check_parameters({**how, "budget": budget}, "the arguments of recommend", constraints)

    kept, held = hold_out(codes, validation_fraction, seed)
    X = torch.from_numpy(X.astype(np.float32 if X.dtype == np.float32 else np.float64))
    labels = torch.from_numpy(codes.astype(np.int64))
    seeds = [seed + trial for trial in range(trials)]
    task = Task(X[kept], labels[kept], X[held], labels[held], outputs, batch_size, seeds)
    widths = {widest(inputs, outputs, budget // part) for part in (PARTS if front else PARTS[-1:])} - {0}
    identity = joblib.hash((__version__, X.numpy(), codes, sorted(how.items()), CANDIDATES))
    tables = []
    with progress_bar("choosing", 1, verbose) as advance:
        for number, width in enumerate(sorted(widths)):

            def show(text: str, done: int, total: int, number: int = number, width: int = width) -> None:
                # Budgets take about as long as each other.
                advance(f"{width} hidden neurons, {text}", number * total + done, len(widths) * total)

            file = None if folder is None else Path(folder) / f"h{width}.json"
            table = _stored(file, identity)
            if table is None:
                table = halve(candidates(width, epochs, rates), task, epochs, show)
                if file is not None:
                    write_json(file, {"identity": identity, "table": [entry.to_dict() for entry in table]})
            tables.append(table)
            if on_budget is not None:
                on_budget(table[0])
    winners = [table[0] for table in tables]
    return Recommendation(budget, tables[-1], winners, len(held), seed, batch_size)


def hold_out(codes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the samples to train on, and of those held out.

    Of each class number in `codes` the fraction is held out, at least one sample, but never all of them.
    """
    rng = np.random.default_rng(seed)
    held = []
    for code in range(codes.max() + 1):
        own = rng.permutation(np.flatnonzero(codes == code))
        held.append(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(codes)), out), out


def _stored(file: Path | None, identity: str) -> list[Entry] | None:
    """Return the table that an earlier call with the same identity stored."""
    record = None if file is None else read_json(file)
    if record is None or record.get("identity") != identity:
        return None
    names = [field.name for field in fields(Entry)]
    entries = [{name: entry[name] for name in names} for entry in record["table"]]
    return [Entry(**{**entry, "settings": Settings(**entry["settings"])}) for entry in entries]


def _checked(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels as arrays; raise all problems at once."""
    refuse_sparse(X)
    X, problems = np.asarray(X), []
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
    try:
        y = np.asarray(checked_labels(y))
        if y.ndim == 1:
            check_classification_targets(y)
    except ValueError as error:
        raise_problems([*problems, str(error)], DataError, "the data")
    if y.ndim != 1:
        problems.append(f"y has shape {y.shape}; give one label for each sample, shape (samples,).")
    else:
        if X.ndim == 2 and len(X) != len(y):
            problems.append(f"X has {len(X)} samples and y {len(y)} labels; give one label for each sample.")
        classes, counts = np.unique(y, return_counts=True)
        if len(classes) < 2:
            problems.append(f"y has one class only, {classes.tolist()}; give samples of at least two.")
        elif counts.max() < 2:
            problems.append(
                f"y has {len(classes)} classes of one sample each; give at least two samples of one, so that "
                "one can be held out."
            )
    raise_problems(problems, DataError, "the data")
    return X, y
