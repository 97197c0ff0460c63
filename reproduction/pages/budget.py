"""`FPEClassifier(budget=N)` at the counts of small dense networks, against dense networks of the same tuning.

Everything is chosen on a held-out fifth of the training data, and measured once on the test data.
About two hours on two cores.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import block, made_by, run_all, store, stored, table, trained_at
from trained import arrays

from fpe.compare.runner import one_thread
from fpe.sklearn import FPEClassifier
from fpe.sklearn.inputs import scaler_of
from fpe.training.candidates import Candidate, Entry, Task, trained
from fpe.training.folds import Fold, hold_out
from fpe.training.loop import accuracy, accuracy_of
from fpe.training.losses import Objective
from fpe.training.search import ACTIVATION, SMOOTHING, dense_count
from fpe.training.trials import Trial, train_trials
from fpe_reproduction.statistics import mean

#: Data: name, epochs, samples in a mini-batch (None for the default), neurons of the dense networks.
DATA: dict[str, tuple[str, int, int | None, tuple[int, ...]]] = {
    "banking77": ("Banking77", 100, None, (4, 8, 16)),
    "cifar100": ("CIFAR-100", 15, 500, (4, 16)),
    "fashion-mnist": ("Fashion-MNIST", 20, 500, (4, 16)),
    "letter": ("Letter", 60, 250, (8, 16, 32)),
}
#: Budgets that other methods were compared at: the counts of dense networks of 27 classes.
BUDGETS = {("letter", 8): 379, ("letter", 16): 731, ("letter", 32): 1435}
#: Learning rates of the dense networks; with the best, another activation and label smoothing are tried too.
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
#: The dense network of h neurons, the best of ten methods at its count, and the dense network of 2h neurons,
#: in percent: seen on the test data, in two or three seeds.
BEFORE = {
    ("banking77", 4): (65.4, 90.1, 85.4),
    ("banking77", 8): (85.4, 91.9, 90.3),
    ("banking77", 16): (90.3, 92.7, 91.1),
    ("cifar100", 4): (27.5, 57.3, 44.8),
    ("cifar100", 16): (56.4, 64.5, 63.2),
    ("fashion-mnist", 4): (68.1, 87.5, 83.9),
    ("fashion-mnist", 16): (86.0, 88.2, 87.5),
    ("letter", 8): (73.9, 80.4, 84.3),
    ("letter", 16): (84.3, 88.6, 90.5),
    ("letter", 32): (90.5, 93.7, 94.3),
}
SEEDS = range(5)


def measure(data: str, hidden: int, kind: str, seed: int) -> dict[str, Any]:
    """Train one network; return its accuracy on the test data, and what it is."""
    _, epochs, batch_size, _ = DATA[data]
    X, y, X_test, y_test = arrays(data, "test")
    classes = int(y.max()) + 1
    budget = BUDGETS.get((data, hidden), dense_count(X.shape[1], hidden, classes))
    with one_thread():
        start = time.process_time()
        if kind == "searched":
            made = FPEClassifier(budget=budget, epochs=epochs, batch_size=batch_size, random_state=seed)
            made.fit(X.numpy(), y.numpy())
            searched = time.process_time() - start
            best = made.search_[0].candidate
            again = {"hidden": best.hidden, "direct": best.direct, "lr": best.lr, "budget": budget}
            again |= {"epochs": epochs, "batch_size": batch_size, "random_state": seed}
            start = time.process_time()
            FPEClassifier(activation=best.activation, **again).fit(X.numpy(), y.numpy())
            found: dict[str, Any] = {"entries": [entry.to_dict() for entry in made.search_]}
            found |= {"network": best.name, "nonzero": made.n_nonzero_}
            found |= {"accuracy": float(made.score(X_test.numpy(), y_test.numpy()))}
            return {**found, "search_seconds": searched, "winner_seconds": time.process_time() - start}
        own = Candidate(hidden, False, dense_count(X.shape[1], hidden, classes))
        return tuned(own, [X, y, X_test, y_test], epochs, batch_size, seed)


def tuned(
    candidate: Candidate, data: list[torch.Tensor], epochs: int, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """Choose rate, activation and smoothing of a dense network on a held-out fifth, and train it on all.

    The best with ReLU and no smoothing is trained on all, too.
    """
    X, y, X_test, y_test = data
    center, scale = scaler_of(X.numpy(), None)
    X, X_test = (X - center) / scale, (X_test - center) / scale
    rows, held = hold_out(y.numpy(), 0.2, seed)
    fold = Fold(X[rows], y[rows], X[held], y[held])
    task = Task([fold], int(y.max()) + 1, batch_size, seed, accuracy_of)

    def best_of(tried: list[Candidate], *known: Entry) -> Entry:
        found = [entry for entries in trained(task, tried, epochs) for entry in entries]
        return min([*known, *found], key=lambda entry: entry.rank)

    def accuracy_on_test(own: Candidate) -> float:
        trial = Trial.start(own.recipe(epochs, batch_size, Objective()), task.network(own, seed), seed)
        train_trials([trial], X, y)
        return accuracy(trial.model, X_test, y_test)

    plain = best_of([replace(candidate, lr=lr) for lr in RATES])
    chosen = best_of([replace(plain.candidate, activation=ACTIVATION)], plain)
    best = best_of([replace(chosen.candidate, smoothing=SMOOTHING)], chosen).candidate
    return {
        "network": f"{best.name}, rate {best.lr:g}, smoothing {best.smoothing:g}",
        "nonzero": candidate.budget,
        "accuracy": accuracy_on_test(best),
        "plain_accuracy": accuracy_on_test(plain.candidate),
    }


def records(
    results: Sequence[Mapping[str, Any]], data: str, hidden: int, kind: str
) -> list[Mapping[str, Any]]:
    """Return the results of one network, for all seeds."""
    return [r for r in results if (r["data"], r["hidden"], r["kind"]) == (data, hidden, kind)]


def dense_rivals(
    results: Sequence[Mapping[str, Any]], data: str, hidden: int
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the results of the dense networks of h and of 2h neurons."""
    return {
        kind: records(results, data, width, "dense")
        for kind, width in (("dense", hidden), ("twice", 2 * hidden))
    }


def closed(accuracies: Sequence[float], rivals: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> str:
    """Return the share of the gap between the means of the dense networks, in percent."""
    dense, twice = (float(np.mean([r[key] for r in rivals[kind]])) for kind in ("dense", "twice"))
    return f"{(np.mean(accuracies) - dense) / (twice - dense):.0%}" if twice > dense else "–"


def run(page: str) -> None:
    tasks = {
        f"{data}-h{hidden}-{kind}-{seed}": {"data": data, "hidden": hidden, "kind": kind, "seed": seed}
        for seed in SEEDS
        for data, (*_, widths) in DATA.items()
        for kind, sizes in (("searched", widths), ("dense", {*widths, *(2 * h for h in widths)}))
        for hidden in sorted(sizes)
    }
    results = [{**tasks[name], **record} for name, record in run_all(measure, tasks, page).items()]
    store("budget", {"results": [{k: v for k, v in r.items() if k != "identity"} for r in results]})


def parts(page: str) -> dict[str, dict[str, str]]:
    results = stored("budget")["results"]
    rows, chosen, against = [], [], []
    for data, (title, _, _, widths) in DATA.items():
        for hidden in widths:
            found, rivals = records(results, data, hidden, "searched"), dense_rivals(results, data, hidden)
            accuracies = [r["accuracy"] for r in found]
            dense = [
                mean([r["accuracy"] for r in rivals[kind]]).text(100, sign=False)
                for kind in ("dense", "twice")
            ]
            searched = mean(accuracies).text(100, sign=False)
            gaps = [closed(accuracies, rivals, key) for key in ("accuracy", "plain_accuracy")]
            networks = "; ".join(f"{name} ({n})" for name, n in Counter(r["network"] for r in found).items())
            cost = np.median([r["search_seconds"] / r["winner_seconds"] for r in found])
            row = [title, f"{hidden}", f"{found[0]['nonzero']:,}"]
            rows.append([*row, dense[0], searched, dense[1], *gaps, f"{cost:.1f}"])
            chosen.append([*row[:2], networks])
            once, before, twice = BEFORE[data, hidden]
            difference = mean([value - before / 100 for value in accuracies]).text(100)
            gap = f"{(100 * np.mean(accuracies) - once) / (twice - once):.0%}"
            against.append([*row[:2], f"{once}", f"{before}", f"{twice}", searched, difference, gap])
    head = ["", "h", "non-zeros", "dense, h %", "searched %", "dense, 2h %"]
    seeds = len({r["seed"] for r in results})
    made = block(f"Seeds: {seeds}. {made_by(results[-1], 'torch')}. {trained_at(results)}")
    columns = ["dense, h", "best before %", "dense, 2h", "searched %", "above the best", "of the gap"]
    other = table(["", "h", *columns], against)
    networks = table(["", "h", "networks"], chosen)
    best = table(head, [row[:6] for row in rows])
    head += ["of the gap", "of ReLU's gap", "cost"]
    own = {"budget": table(head, rows), "networks": networks, "before": other, "budget-made": made}
    columns = ["", "non-zeros", "dense", "fpe", "dense, twice the neurons"]
    short = table(columns, [[row[0], *row[2:6]] for row in rows])
    return {"budget": own, "overview": {"best": best}, "../../README": {"budget-short": short}}
