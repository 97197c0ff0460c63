"""A trained network at its own count: trained on, expanded once, rewired, or expanded and pruned back.

All are trained as a dense network for half of the epochs, and then for the other half. Everything is chosen
on held-out training data, and measured once on the test data. Dense networks trained in one go are the
page "budget"'s. About half an hour on two cores.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from budget import arrays, dense_rivals, records
from common import block, made_by, run_all, store, stored, table, trained_at
from torch import nn

from fpe.compare.runner import one_thread
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.sklearn import FPEClassifier
from fpe.sklearn.inputs import scaler_of
from fpe.training import late
from fpe.training.loop import accuracy
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials
from fpe_reproduction.statistics import mean

#: Data: name, epochs before and after, samples in a mini-batch (None for the default), neurons.
DATA: dict[str, tuple[str, int, int, int | None, tuple[int, ...]]] = {
    "banking77": ("Banking77", 50, 50, None, (4, 8, 16)),
    "letter": ("Letter", 30, 30, 250, (8, 16, 32)),
    "cifar100": ("CIFAR-100", 8, 7, 500, (4, 16)),
    "fashion-mnist": ("Fashion-MNIST", 10, 10, 500, (4, 16)),
}
SEEDS = range(5)
KINDS = ("on", "once", "rewired", "back")


def measure(data: str, hidden: int, kind: str, seed: int) -> dict[str, Any]:
    """Train one network; return its accuracy on the test data, its count, and what was chosen."""
    _, before, after, batch_size, _ = DATA[data]
    parts = X, y, X_test, y_test = arrays(data, "test")
    how: dict[str, Any] = {"warmup_epochs": before, "epochs": after, "batch_size": batch_size}
    with one_thread():
        if kind in ("on", "once"):
            found = chosen_rate(hidden, 1 if kind == "on" else 2, parts, how, seed)
        else:
            extra: dict[str, Any] = {"rewire": True} if kind == "rewired" else {"gradual": True}
            made = FPEClassifier(hidden=hidden, random_state=seed, **how, **extra).fit(X.numpy(), y.numpy())
            found = {
                "accuracy": float(made.score(X_test.numpy(), y_test.numpy())),
                "nonzero": made.n_nonzero_,
            }
            if kind == "back":
                way = made.decision_.chosen
                found |= {"network": way.name, "factor": way.recipe.factor, "why": str(made.decision_)}
    return found


def chosen_rate(
    hidden: int, factor: int, data: list[torch.Tensor], how: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Train a parent, and train it on as it is or expanded once; the late rate is chosen as `back` does."""
    X, y, X_test, y_test = data
    center, scale = scaler_of(X.numpy(), None)
    X, X_test = (X - center) / scale, (X_test - center) / scale
    recipe = Recipe.choose(factor=factor, lr=1e-2, **how)
    recipes = [replace(recipe, late_lr=rate) for rate in late.RATES]

    def build(own: int) -> nn.Module:
        return mlp(X.shape[1], hidden, int(y.max()) + 1, seed=own)

    way = late.decide(recipes, build, X, y, y.numpy(), seed=seed).ways[0]
    trial = Trial.start(way.recipe, build(seed), seed)
    train_trials([trial], X, y)
    network = f"rate {way.recipe.late_lr:g}"
    nonzero = count_nonzero(trial.model)
    return {"network": network, "nonzero": nonzero, "accuracy": accuracy(trial.model, X_test, y_test)}


def run(page: str) -> None:
    tasks = {
        f"{data}-h{hidden}-{kind}-{seed}": {"data": data, "hidden": hidden, "kind": kind, "seed": seed}
        for seed in SEEDS
        for data, (*_, widths) in DATA.items()
        for hidden in widths
        for kind in KINDS
    }
    results = [{**tasks[name], **record} for name, record in run_all(measure, tasks, page).items()]
    store("trained", {"results": [{k: v for k, v in r.items() if k != "identity"} for r in results]})


def parts(page: str) -> dict[str, dict[str, str]]:
    results = stored("trained")["results"]
    others = stored("budget")["results"]
    rows = []
    for data, (title, *_, widths) in DATA.items():
        for hidden in widths:
            by_kind = {kind: records(results, data, hidden, kind) for kind in KINDS}
            by_kind |= dense_rivals(others, data, hidden)
            texts = {
                kind: mean([r["accuracy"] for r in made]).text(100, sign=False)
                for kind, made in by_kind.items()
            }
            means = {kind: float(np.mean([r["accuracy"] for r in made])) for kind, made in by_kind.items()}
            gap = means["twice"] - means["dense"]
            closed = f"{(means['back'] - means['dense']) / gap:.0%}" if gap > 0 else "–"
            counts = Counter(r["factor"] for r in by_kind["back"])
            chosen = ", ".join(
                f"{number} × {'not expanded' if factor == 1 else f'α = {factor}'}"
                for factor, number in sorted(counts.items())
            )
            count = f"{by_kind['back'][0]['nonzero']:,}"
            cells = [texts[kind] for kind in ("dense", *KINDS, "twice")]
            rows.append([title, f"{hidden}", count, *cells, closed, chosen])
    head = ["", "h", "non-zeros", "dense, h %", "trained on %", "expanded once %", "rewired %"]
    head += ["pruned back %", "dense, 2h %", "of the gap", "chosen"]
    took = f"{sum(result['seconds'] for result in results) / 60:,.0f} minutes of one core"
    seeds = len({r["seed"] for r in results})
    made = block(f"Seeds: {seeds}. {made_by(results[-1], 'torch')}, {took}. {trained_at(results)}")
    return {"trained": {"trained": table(head, rows), "trained-made": made}}
