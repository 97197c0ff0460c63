"""How dynamic masks should be trained where the dense parent is trained before the expansion.

Pruning and learning rate are compared on a held-out fifth of the training data. The choice is then
trained on all of it and compared on the test data. About an hour on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import block, made_by, run_all, store, stored, table, trained_at
from sklearn.model_selection import train_test_split

from fpe.compare.runner import one_thread
from fpe.data import load
from fpe.errors import BudgetError
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.loop import Cosine
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials
from fpe_reproduction.statistics import mean

#: Data: epochs before the expansion, of as many after it; name.
DATA = {"banking77": (50, "Banking77"), "letter": (50, "Letter"), "fashion-mnist": (10, "Fashion-MNIST")}
WIDTHS = (4, 16)
#: What is compared. All are trained at 1e-2, for as long.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"factor": 1},
    "expanded once": {"factor": 2},
    "balanced": {"rewire": "accumulated", "prune": "balanced"},
    "magnitude": {"rewire": "accumulated", "prune": "magnitude"},
    "columns": {"rewire": "columns", "prune": "columns"},
}
#: The learning rate: constant; falling over all epochs; constant until the expansion, then falling.
RATES = ("constant", "all", "after")
ARGUMENTS = ("data", "part", "hidden", "variant", "rate", "before", "epochs", "seeds")
SEEDS = {"validation": range(100, 105), "test": range(10)}


@dataclass(frozen=True)
class Rated(Recipe):
    """A recipe with one of the ways in which the learning rate falls."""

    rate: str = "constant"

    def cosine(self, behind: int) -> Cosine | None:
        """Return how the learning rate falls after so many epochs; None where it does not."""
        if self.rate == "all":
            return Cosine(self.warmup_epochs + self.epochs, behind)
        after = self.rate == "after" and behind >= self.warmup_epochs
        return Cosine(self.epochs) if after else None


def arrays(data: str, part: str) -> list[torch.Tensor]:
    """Return inputs and classes to learn, and those to measure on: held-out training data, or test data."""
    found = load(data)
    parts = found.X_train, found.y_train, found.X_test, found.y_test
    if part == "validation":
        X, y = parts[:2]
        kept, held = train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)
        parts = X[kept], y[kept], X[held], y[held]
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in parts]


def measure(
    data: str, part: str, hidden: int, variant: str, rate: str, before: int, epochs: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train networks of one variant from several seeds; return their accuracies, or why there are none."""
    X, y, X_held, y_held = arrays(data, part)
    recipe = Recipe.choose(**VARIANTS[variant], warmup_epochs=before, epochs=epochs, lr=1e-2)
    recipe = Rated(**{**vars(recipe), "rate": rate, "late_lr": None, "shrink": 1.0})
    with one_thread():
        dense = [mlp(X.shape[1], hidden, int(y.max()) + 1, seed=seed) for seed in seeds]
        trials = [Trial.start(recipe, n, seed) for n, seed in zip(dense, seeds, strict=True)]
        try:
            train_trials(trials, X, y)
        except BudgetError as error:
            return {"error": str(error)}
        networks = [trial.model for trial in trials]
        accuracies = ensemble.accuracies(networks, X_held, y_held)
    return {"accuracies": accuracies, "nonzero": count_nonzero(networks[0])}


def run(page: str) -> None:
    tasks: dict[str, dict[str, Any]] = {}
    for data, (half, _) in DATA.items():
        trained = [("validation", v, rate, half, half) for v in VARIANTS for rate in RATES]
        trained += [("test", v, "constant", half, half) for v in ("dense", "expanded once", "balanced")]
        untrained = [(part, "balanced", "all", 0, 2 * half) for part in ("validation", "test")]
        for hidden in WIDTHS:
            for part, variant, rate, before, epochs in [*trained, *untrained]:
                values = data, part, hidden, variant, rate, before, epochs, list(SEEDS[part])
                name = f"{part}-{data}-h{hidden}-{variant}-{rate}-{before}".replace(" ", "-")
                tasks[name] = dict(zip(ARGUMENTS, values, strict=True))
    results = [{**tasks[name], **record} for name, record in run_all(measure, tasks, page, jobs=1).items()]
    store("rewiring/trained", {"results": [{k: v for k, v in r.items() if k != "identity"} for r in results]})


def parts(page: str) -> dict[str, dict[str, str]]:
    results = stored("rewiring/trained")["results"]
    found = {tuple(r[key] for key in ARGUMENTS[:6]): r for r in results}

    def pick(*key: Any) -> list[float]:
        return list(found[key].get("accuracies", []))

    choice, test = [], []
    for data, (half, title) in DATA.items():
        for hidden in WIDTHS:
            for variant in list(VARIANTS)[1:]:
                cells = [text(pick(data, "validation", hidden, variant, rate, half)) for rate in RATES]
                name = variant if variant == "expanded once" else f"rewired, {variant}"
                choice.append([title, f"{hidden}", name, *cells])
            own = [
                (data, "test", hidden, v, "constant", half) for v in ("dense", "expanded once", "balanced")
            ]
            dense, once, rewired = (pick(*key) for key in own)
            gain = text([b - a for a, b in zip(once, rewired, strict=True)], sign=True)
            untrained = text(pick(data, "test", hidden, "balanced", "all", 0))
            count = f"{found[own[0]]['nonzero']:,}"
            test.append([title, f"{hidden}", count, *map(text, (dense, once, rewired)), gain, untrained])
    columns = ["", "neurons", "non-zeros", "dense %", "expanded once %", "rewired, trained parent %"]
    columns += ["rewired − once", "rewired, untrained parent %"]
    heads = ["", "neurons", "%", "constant", "falls over all epochs", "falls after it"]
    took = f"{sum(result['seconds'] for result in results):,.0f} seconds of one core"
    own_parts = {
        "trained-choice": table(heads, choice),
        "trained-test": table(columns, test),
        "trained-made": block(f"{made_by(results[-1], 'torch')}, {took}. {trained_at(results)}"),
    }
    return {"rewiring": own_parts}


def text(values: Sequence[float], sign: bool = False) -> str:
    return mean(values).text(100, sign=sign) if values else "–"
