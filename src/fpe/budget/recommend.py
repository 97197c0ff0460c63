"""`recommend`: the best network for a budget of weights, and for a half and a quarter of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from fpe import __version__
from fpe._util.files import read_json, write_json
from fpe.budget.recommendation import Recommendation
from fpe.errors import ArgumentError, BudgetError
from fpe.sklearn import FPEClassifier
from fpe.training.candidates import Entry
from fpe.training.search import dense_count

#: Hidden neurons of the dense network whose count is the default budget.
DEFAULT_HIDDEN = 16
#: The front is made of these parts of the budget.
PARTS = (4, 2, 1)


def recommend(
    X: Any,
    y: Any,
    budget: int | None = None,
    *,
    epochs: int | None = None,
    front: bool = True,
    batch_size: int | None = None,
    scale: str | None = "auto",
    seed: int = 0,
    n_jobs: int | None = None,
    prefer_blocks: bool = False,
    verbose: bool = False,
    folder: str | os.PathLike[str] | None = None,
    on_budget: Callable[[Recommendation], None] | None = None,
) -> Recommendation:
    """Find and train the best network for a budget of non-zero parameters, and compare it with simple ones.

    For each budget an `fpe.sklearn.FPEClassifier` searches: without a hidden layer, with one of several
    widths, and with direct connections beside it, at rates that it chooses, all pruned to the budget.

    The winner's accuracy on the validation part is optimistic, as it was chosen by it.

    Parameters
    ----------
    X : array-like or sparse matrix of shape (samples, features)
        Finite numbers. float32 stays float32, anything else becomes float64.
    y : array-like of shape (samples,)
        Labels of any type, at least two different ones.
    budget : int, optional
        The most non-zero parameters, biases included. By default those of a dense network of 16 hidden
        neurons.
    epochs : int, optional
        Passes over the data in the last round; by default those of 3000 steps, from 15 to 300.
    front : bool, default True
        Whether to do the same for a quarter and for half of the budget.
    batch_size, scale, n_jobs, prefer_blocks
        As for `fpe.sklearn.FPEClassifier`.
    seed : int, default 0
        Of everything.
    verbose : bool, default False
        Show a progress bar on a terminal.
    folder : path-like, optional
        Where each group of candidates is stored as soon as it is trained. The same call finds it there, so
        that an interrupted search is resumed.
    on_budget : callable, optional
        Gets what is recommended so far, as soon as a budget is finished.

    Returns
    -------
    Recommendation
        The trained winner, a table of all candidates, and the winner of each budget. Print it.

    Raises
    ------
    ArgumentError, DataError, ValueError
        For arguments or data that cannot be used, before any training; ArgumentError also if all candidates
        diverge.
    BudgetError
        If the budget is smaller than the biases of the outputs.

    Examples
    --------
    >>> import fpe
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> found = fpe.recommend(X[:300], y[:300], budget=400, epochs=8, front=False)
    >>> found.classifier.n_nonzero_
    400
    """
    if budget is None:
        outputs = len(np.unique(np.asarray(y)))
        budget = dense_count(np.shape(X)[1], DEFAULT_HIDDEN, 1 if outputs == 2 else outputs)
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 1:
        raise ArgumentError(f"budget is {budget!r}; give an integer of at least 1.")
    how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "scale": scale, "random_state": seed}
    identity = None if folder is None else _identity(X, y, how)
    found = Recommendation(int(budget), [])
    for part in (part for part in (PARTS if front else (1,)) if budget >= part):
        own = int(budget) // part
        same: dict[str, Any] = {"n_jobs": n_jobs, "prefer_blocks": prefer_blocks, "verbose": verbose}
        classifier = FPEClassifier(budget=own, **same, **how)
        if folder is not None:
            file = Path(folder) / f"search-{own}.json"
            record = read_json(file)
            if record is not None and record.get("identity") == identity:
                classifier._known = [Entry.from_dict(entry) for entry in record["entries"]]

            def store(entries: list[Entry], file: Path = file) -> None:
                write_json(file, {"identity": identity, "entries": [entry.to_dict() for entry in entries]})

            classifier._on_entries = store
        try:
            found.classifiers.append(classifier.fit(X, y))
        except BudgetError:
            if part == 1:
                raise
            continue  # a part of the budget may be too small for any network
        if on_budget is not None:
            on_budget(found)
    return found


def _identity(X: Any, y: Any, how: dict[str, Any]) -> str:
    """Return a hash of data, arguments and version."""
    digest = hashlib.sha256()
    if scipy.sparse.issparse(X):
        digest.update(str(X.shape).encode())
        X = X.tocsr()
        parts = [X.data, X.indices, X.indptr]
    else:
        parts = [X]
    for array in map(np.ascontiguousarray, (*parts, y)):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(array.tobytes() if array.dtype.kind != "O" else repr(array.tolist()).encode())
    digest.update(json.dumps({"fpe": __version__, **how}, sort_keys=True).encode())
    return digest.hexdigest()[:16]
