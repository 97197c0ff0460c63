"""Compare methods at one count of non-zeros: splits of the data, tuning, seeds, and what is stored."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split

from fpe.compare.runner import one_thread, run_tasks
from fpe.data import load
from fpe.errors import ArgumentError, BudgetError, ModelError
from fpe.sklearn.inputs import mean_and_spread, scaler_of
from fpe.training.folds import hold_out
from fpe.training.loop import DIVERGED
from fpe.training.search import dense_count
from fpe_reproduction.rivals import METHODS
from fpe_reproduction.rivals.methods import RATES, Cell, accuracy_of, nonzeros


@dataclass(frozen=True)
class Data:
    """A data set of the comparison, and how networks are trained on it."""

    title: str
    hidden: tuple[int, ...]  # dense networks whose counts are the budgets
    epochs: int
    batch_size: int | None = None  # None for the default
    table: bool = False  # whether trees are a rival


#: Data by name; rows of the comparison are their widths.
DATA = {
    "banking77": Data("Banking77", (4, 8, 16), 100),
    "cifar100": Data("CIFAR-100", (4, 16), 15, 500),
    "fashion-mnist": Data("Fashion-MNIST", (4, 16), 20, 500),
    "letter": Data("Letter", (8, 16, 32, 128), 60, 250, table=True),
    "digits": Data("digits", (8,), 60, table=True),
}
SPLITS, SEEDS = 3, 10
#: The same of a quick run, and by what its epochs are divided.
QUICK_SPLITS, QUICK_SEEDS, QUICK_EPOCHS = 2, 2, 20
#: What each run has of the record of its part.
KEPT = ("data", "hidden", "method", "split", "budget", "nonzero", "test_share", "lr")
#: Seeds of tuning are other ones than those of the comparison.
TUNING_SEED = 1000


@functools.lru_cache(maxsize=2)
def parts(data: str, split: int) -> tuple[np.ndarray, ...]:
    """Return inputs and classes to learn, and those to measure on.

    Split 0 is the published one; others draw test parts of the same size, with the same share of each class.
    """
    found = load(data)
    own = found.X_train, found.y_train, found.X_test, found.y_test
    if split == 0:
        return own
    X, y = np.concatenate([own[0], own[2]]), np.concatenate([own[1], own[3]])
    places = np.arange(len(y))
    kept, held = train_test_split(places, test_size=len(own[3]), random_state=split, stratify=y)
    return X[kept], y[kept], X[held], y[held]


def measure(
    data: str, hidden: int, method: str, split: int, seeds: int, epochs: int, batch_size: int | None
) -> dict[str, Any]:
    """Tune a method on a held-out fifth, train it with each seed, and return the test accuracies.

    First the rate is chosen with the default option, then the option at that rate. A network whose training
    diverges, or whose weights stand still, counts as one without a right answer.
    """
    X, y, X_test, y_test = parts(data, split)
    center, scale = scaler_of(X, None)
    inputs, targets = (torch.from_numpy(X) - center) / scale, torch.from_numpy(y).long()
    spread = torch.from_numpy(mean_and_spread(X, None)[1])
    budget = dense_count(X.shape[1], hidden, int(y.max()) + 1)
    whole = Cell(inputs, targets, spread, hidden, budget, epochs, batch_size, 0)
    rows, held = hold_out(y, 0.2, split)
    part = replace(whole, X=inputs[rows], y=targets[rows], seed=TUNING_SEED)
    own = METHODS[method]

    def score(lr: float, option: Mapping[str, Any]) -> float:
        try:
            return accuracy_of(own.train(part, lr, **option), inputs[held], targets[held])
        except BudgetError:  # an option that is impossible at these sizes; the default never is
            if not option:
                raise
            return -math.inf
        except (ArgumentError, ModelError) as error:
            return _failed(error)

    def tested(seed: int) -> tuple[float, int]:
        try:
            model = own.train(replace(whole, seed=seed), lr, **option)
        except (ArgumentError, ModelError) as error:
            return max(0.0, _failed(error)), 0
        if (used := nonzeros(model)) > budget:
            raise AssertionError(f"{method} with {option} has {used:,} non-zeros of {budget:,}")
        return accuracy_of(model, *test), used

    with one_thread():
        rates = {lr: score(lr, {}) for lr in RATES if own.options}
        lr = max(rates, key=lambda rate: rates[rate], default=0.0)
        scores = {i: score(lr, option) if i else rates[lr] for i, option in enumerate(own.options)}
        best = max(scores, key=lambda i: scores[i], default=0)
        option = own.options[best] if own.options else {}
        test = (torch.from_numpy(X_test) - center) / scale, torch.from_numpy(y_test).long()
        accuracies, counts = zip(*map(tested, range(seeds)), strict=True)
    return {
        "budget": budget,
        "test_share": len(y_test) / len(y),
        "nonzero": max(counts),
        "lr": lr,
        "option": dict(option),
        "validation": scores.get(best),
        "impossible": [str(own.options[i]) for i, value in scores.items() if value == -math.inf],
        "accuracies": list(accuracies),
        "collapsed": sum(accuracy < 2 / (int(y.max()) + 1) for accuracy in accuracies),
    }


def _failed(error: ArgumentError | ModelError) -> float:
    """Return the score of a network whose training diverged or stood still; raise for another error."""
    if isinstance(error, ArgumentError) and DIVERGED not in str(error):
        raise error
    return -math.inf


def tasks(
    quick: bool = False, data: Sequence[str] = (), methods: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the arguments of each comparison."""
    for split in range(QUICK_SPLITS if quick else SPLITS):
        for name in data or DATA:
            about = DATA[name]
            for hidden in about.hidden[:1] if quick else about.hidden:
                for method in methods or METHODS:
                    if METHODS[method].tables_only and not about.table:
                        continue
                    arguments = {"data": name, "hidden": hidden, "method": method, "split": split}
                    arguments |= {
                        "seeds": QUICK_SEEDS if quick else SEEDS,
                        "epochs": max(1, about.epochs // QUICK_EPOCHS) if quick else about.epochs,
                        "batch_size": about.batch_size,
                    }
                    yield f"{name}-h{hidden}-{method}-s{split}", arguments


def run(
    folder: Path,
    quick: bool = False,
    data: Sequence[str] = (),
    methods: Sequence[str] = (),
    jobs: int = -1,
    on_task: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Run what `folder` has no record of; return one row for each method, data set, width, split and seed."""
    work = dict(tasks(quick, data, methods))

    def finished(task: str, record: dict[str, Any]) -> None:
        if on_task is not None:
            on_task(task)

    found = run_tasks(measure, work, folder, "rivals", jobs=jobs, on_finished=finished)
    return frame({task: {**work[task], **record} for task, record in found.items()}.values())


def frame(records: Any) -> pd.DataFrame:
    """Return one row for each method, data set, width, split and seed."""
    rows = []
    for record in records:
        own = {key: record[key] for key in KEPT}
        own |= {"validation": record["validation"], "option": str(record["option"] or "default")}
        rows += [{**own, "seed": seed, "accuracy": value} for seed, value in enumerate(record["accuracies"])]
    return pd.DataFrame(rows)
