"""What each part of gradual pruning adds, at equal counts, epochs and tuning; what removing a weight costs.

About half an hour on two cores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from budget import BUDGETS, DATA, RATES, arrays
from common import block, made_by, run_all, store, stored, table, trained_at
from scipy.stats import spearmanr
from torch.nn import functional as F

from fpe.compare.runner import one_thread
from fpe.rewiring.gradual import SCORES
from fpe.rewiring.model_masks import with_masks
from fpe.rewiring.pruner import GradualPruner
from fpe.sklearn.inputs import scaler_of
from fpe.training.candidates import Candidate, Task
from fpe.training.folds import Fold, hold_out
from fpe.training.loop import Cosine, accuracy, adam, default_batch_size, train
from fpe.training.losses import Objective
from fpe.training.recipe import Recipe
from fpe.training.search import dense_count
from fpe.training.trials import Trial, train_trials
from fpe_reproduction.statistics import mean

ROWS = (("banking77", 8), ("cifar100", 4), ("fashion-mnist", 4), ("letter", 16))
#: Each part, and what it is called in the table.
METHODS = {
    "dense": "dense",
    "one-shot": "expanded once, α = 2",
    "rewired": "rewired, α = 4",
    "magnitude": "gradual, |w|",
    "moment": "gradual, |w|·v^¼",
    "fisher": "gradual, |w|·v^½",
    "direct": "direct, |w|·v^¼",
    "linear": "no hidden layer, |w|·v^¼",
}
SEEDS = range(3)
#: When the cost of removing a weight is measured, as shares of training, and of how many weights of a layer.
STAGES, WEIGHTS, SAMPLES = (0.1, 0.25, 0.45), 700, 3000


def recipe_of(
    method: str, hidden: int, budget: int, epochs: int, batch_size: int | None
) -> tuple[Any, Recipe]:
    """Return the network, and its training at the default rate."""
    wide = {"direct": (16, True), "linear": (0, False)}.get(method, (3 * hidden, False))
    score = method if method in SCORES else "moment"
    candidate = Candidate(*((hidden, False) if method in ("dense", "one-shot", "rewired") else wide), budget)
    recipe = replace(candidate, score=score).recipe(epochs, batch_size, Objective())
    if method in ("one-shot", "rewired"):
        half = 0 if method == "rewired" else epochs // 2
        how: dict[str, Any] = {"rewire": True} if method == "rewired" else {"factor": 2}
        recipe = Recipe.choose(
            **how, warmup_epochs=half, epochs=epochs - half, lr=1e-2, decay=True, batch_size=batch_size
        )
    return candidate, recipe


def measure(data: str, hidden: int, method: str, seed: int) -> dict[str, Any]:
    """Choose the rate on a held-out fifth, train on all, and return the accuracy on the test data."""
    _, epochs, batch_size, _ = DATA[data]
    X, y, X_test, y_test = arrays(data, "test")
    center, scale = scaler_of(X.numpy(), None)
    X, X_test, classes = (X - center) / scale, (X_test - center) / scale, int(y.max()) + 1
    budget = BUDGETS.get((data, hidden), dense_count(X.shape[1], hidden, classes))
    candidate, recipe = recipe_of(method, hidden, budget, epochs, batch_size)
    rows, held = hold_out(y.numpy(), 0.2, seed)
    task = Task([Fold(X[rows], y[rows], X[held], y[held])], classes, batch_size, seed, lambda *_: 0.0)

    def trained(lr: float, X: torch.Tensor, y: torch.Tensor) -> torch.nn.Module:
        trial = Trial.start(replace(recipe, lr=lr), task.network(candidate, seed), seed)
        train_trials([trial], X, y)
        return trial.model

    with one_thread():
        scores = {lr: accuracy(trained(lr, X[rows], y[rows]), X[held], y[held]) for lr in RATES}
        best = max(scores, key=lambda lr: scores[lr])
        return {"lr": best, "accuracy": accuracy(trained(best, X, y), X_test, y_test)}


def removed(data: str, hidden: int) -> dict[str, Any]:
    """Remove single weights of a network that is being pruned; return by how much the loss rises.

    For each stage: the exponents of a fit ``rise ∝ |w|^a · v^b``, and rank correlations of rise and score.
    """
    _, epochs, batch_size, _ = DATA[data]
    X, y, *_ = arrays(data, "test")
    center, scale = scaler_of(X.numpy(), None)
    X, classes = (X - center) / scale, int(y.max()) + 1
    budget = BUDGETS.get((data, hidden), dense_count(X.shape[1], hidden, classes))
    batch_size = batch_size or default_batch_size(len(X))
    generator, done, found = torch.Generator().manual_seed(0), 0, []
    with one_thread():
        model = with_masks(
            Task([Fold(X, y, X, y)], classes, None, 0, lambda *_: 0.0).network(
                Candidate(3 * hidden, False, budget), 0
            )
        )
        optimizer = adam(model, 1e-2)
        steps = epochs * -(-len(X) // batch_size)
        pruner = GradualPruner(model, optimizer, budget=budget, steps=steps)
        sample = torch.randperm(len(X), generator=generator)[:SAMPLES]
        for share in STAGES:
            until = max(1, round(share * epochs))
            how: dict[str, Any] = {"optimizer": optimizer, "generator": generator, "rewirer": pruner}
            decay = Cosine(epochs, done)
            train(model, X, y, epochs=until - done, batch_size=batch_size, decay=decay, **how)
            done = until
            w, v, rise = _rises(model, optimizer, X[sample], y[sample], generator)
            up = rise > 0
            columns = np.stack([np.log(w[up]), np.log(v[up]), np.ones(up.sum())], axis=1)
            (a, b, _), *_ = np.linalg.lstsq(columns, np.log(rise[up]), rcond=None)
            ranks = {name: float(spearmanr(w * v**p, rise)[0]) for name, p in SCORES.items()}
            found.append(
                {"share": share, "nonzero": pruner.count_at(pruner.taken), "a": float(a), "b": float(b)}
            )
            found[-1] |= {"up": float(up.mean()), "ranks": ranks}
    return {"stages": found}


@torch.no_grad()
def _rises(
    model: torch.nn.Module, optimizer: Any, X: torch.Tensor, y: torch.Tensor, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return |w|, v and the rise of the loss without w, for some weights of each layer."""

    def loss() -> float:
        return float(F.cross_entropy(model(X).double(), y))

    before, rows = loss(), []
    for weight in (p for p in model.parameters() if p.dim() == 2):
        moments, places = optimizer.state[weight]["exp_avg_sq"], weight.nonzero()
        for i, j in places[torch.randperm(len(places), generator=generator)[:WEIGHTS]].tolist():
            value = weight[i, j].item()
            weight[i, j] = 0
            rows.append((abs(value), moments[i, j].item() + 1e-30, loss() - before))
            weight[i, j] = value
    w, v, rise = np.array(rows).T
    return w, v, rise


def run(page: str) -> None:
    tasks = {
        f"{data}-h{hidden}-{method}-{seed}": {"data": data, "hidden": hidden, "method": method, "seed": seed}
        for seed in SEEDS
        for data, hidden in ROWS
        for method in METHODS
    }
    results = [{**tasks[name], **record} for name, record in run_all(measure, tasks, page).items()]
    single = {f"removed-{data}": {"data": data, "hidden": hidden} for data, hidden in ROWS}
    rises = [{**single[name], **r} for name, r in run_all(removed, single, page).items()]
    clean = [[{k: v for k, v in r.items() if k != "identity"} for r in group] for group in (results, rises)]
    store("pruning", dict(zip(("results", "removed"), clean, strict=True)))


def parts(page: str) -> dict[str, dict[str, str]]:
    data = stored("pruning")
    results = data["results"]

    def cell(name: str, hidden: int, method: str) -> str:
        own = [
            r["accuracy"] for r in results if (r["data"], r["hidden"], r["method"]) == (name, hidden, method)
        ]
        return mean(own).text(100, sign=False)

    titles = [f"{DATA[name][0]}, {hidden}" for name, hidden in ROWS]
    rows = [[text, *(cell(*row, method) for row in ROWS)] for method, text in METHODS.items()]
    single = [
        [
            *(DATA[r["data"]][0], f"{s['share']:.0%}", f"{s['nonzero']:,}"),
            *(f"{value:.2f}" for value in (s["a"], s["b"], s["b"] / s["a"])),
            *(f"{s['ranks'][name]:.2f}" for name in SCORES),
        ]
        for r in data["removed"]
        for s in r["stages"]
    ]
    head = ["", "of training", "non-zeros", "a", "b", "b / a", "|w|", "|w|·v^¼", "|w|·v^½"]
    made = block(f"{made_by(results[-1], 'torch')}. {trained_at(results)}")
    return {
        "pruning": {
            "parts": table(["", *titles], rows),
            "removed": table(head, single),
            "pruning-made": made,
        }
    }
