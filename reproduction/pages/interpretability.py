"""Do children become more interpretable? Measures of a hidden layer, parent against children and controls.

On a Boolean formula, whose features are known, and on CIFAR-100's embeddings. About twenty minutes on two
cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import block, made_by, run_all, store, stored, table, trained_at
from torch import Tensor, nn

from fpe.compare.runner import one_thread
from fpe.data import dnf
from fpe.metrics import (
    class_purity,
    class_selectivity,
    code_overlap,
    effective_classes,
    effective_features,
    total_capacity,
)
from fpe.sklearn.inputs import mean_and_spread, scaler_of
from fpe.training.search import dense_count
from fpe_reproduction.autoencoder import fitted, latents_of
from fpe_reproduction.rivals import METHODS
from fpe_reproduction.rivals.contest import parts as arrays_of
from fpe_reproduction.rivals.methods import Cell, accuracy_of
from fpe_reproduction.statistics import mean

CLAUSES, LITERALS, SAMPLES, RATE = 8, 4, 4000, 1e-2
#: Data: name, neurons of the parent, epochs, samples in a mini-batch, latents of the autoencoder.
DATA = {"dnf": ("Boolean formula", 8, 500, 500, 64), "cifar100": ("CIFAR-100", 16, 15, 500, 256)}
#: Networks: title, method and its option. Controls have the children's density, in masks drawn at random.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "parent": ("dense parent", "dense", {}),
    "children-2": ("children, α = 2", "one-shot", {"factor": 2}),
    "children-4": ("children, α = 4", "one-shot", {"factor": 4}),
    "random-2": ("random masks, twice as wide", "static", {"factor": 2}),
    "random-4": ("random masks, four times as wide", "static", {"factor": 4}),
    "pruned-4": ("pruned gradually, from four times the width", "gradual", {"factor": 4}),
}
#: Measures: title, and whether more of it is more interpretable.
MEASURES = {
    "purity": ("class purity", True),
    "selectivity": ("class selectivity", True),
    "classes": ("effective classes of a neuron", False),
    "superposition": ("effective features per neuron", False),
    "capacity": ("capacity per feature", True),
    "codes": ("overlap of codes, within − across clauses", True),
}
SEEDS = range(10)


def data_of(data: str, seed: int) -> tuple[Cell, Tensor, Tensor, Tensor]:
    """Return the data to learn, test inputs and targets, and the class that counts as a test input's feature.

    On the formula the features are its clauses; samples that satisfy none or several are not measured (−1).
    """
    _, hidden, epochs, batch_size, _ = DATA[data]
    if data == "dnf":
        made = [dnf(CLAUSES, literals=LITERALS, samples=SAMPLES, seed=2 * seed + part) for part in (0, 1)]
        X, X_test = (torch.from_numpy(own.X) for own in made)
        y, y_test = (torch.from_numpy(own.y).long() for own in made)
        true = (X_test.view(len(X_test), CLAUSES, LITERALS) > 0.5).all(dim=2)
        features = torch.where(true.sum(1) == 1, true.int().argmax(1), -1)
    else:
        X, y, X_test, y_test = (torch.from_numpy(np.ascontiguousarray(own)) for own in arrays_of(data, 0))
        y, y_test = y.long(), y_test.long()
        center, scale = scaler_of(X.numpy(), None)
        X, X_test, features = (X - center) / scale, (X_test - center) / scale, y_test
    spread = torch.from_numpy(mean_and_spread(X.numpy(), None)[1])
    budget = dense_count(X.shape[1], hidden, int(y.max()) + 1)
    return Cell(X, y, spread, hidden, budget, epochs, batch_size, seed), X_test, y_test, features


def measure(data: str, network: str, seed: int) -> dict[str, Any]:
    """Train one network; return its accuracy and the measures of its hidden layer on test data."""
    _, method, option = NETWORKS[network]
    with one_thread():
        cell, X_test, y_test, features = data_of(data, seed)
        model = METHODS[method].train(cell, RATE, **option)
        with torch.no_grad():
            activations = nn.Sequential(*list(model)[:2])(X_test)
        alive = activations.abs().sum(0) > 0
        activations = activations[:, alive]
        known = features >= 0
        by_class = activations[known], features[known]
        autoencoder, explained = fitted(activations, DATA[data][4], seed=seed)
        weight = model[0].weight.detach()
        found = {
            "accuracy": accuracy_of(model, X_test, y_test),
            "neurons": int(alive.sum()),
            "purity": float(class_purity(*by_class).mean()),
            "selectivity": float(class_selectivity(*by_class).mean()),
            "classes": float(effective_classes(*by_class).mean()),
            "superposition": effective_features(latents_of(autoencoder, activations)) / int(alive.sum()),
            "explained": explained,
            "capacity": total_capacity(weight) / weight.shape[1],
        }
        if data == "dnf":
            overlap, clause = code_overlap(weight), torch.arange(weight.shape[1]) // LITERALS
            same = (clause[:, None] == clause) & ~torch.eye(len(clause), dtype=torch.bool)
            other = clause[:, None] != clause
            found["codes"] = float(overlap[same].mean() - overlap[other].mean())
    return found


def run(page: str) -> None:
    tasks = {
        f"{data}-{network}-{seed}": {"data": data, "network": network, "seed": seed}
        for seed in SEEDS
        for data in DATA
        for network in NETWORKS
    }
    results = [{**tasks[name], **record} for name, record in run_all(measure, tasks, page).items()]
    store(page, {"results": [{k: v for k, v in r.items() if k != "identity"} for r in results]})


def rows_of(results: list[dict[str, Any]], data: str) -> str:
    """Return the table of one data set: each network's measures, and children minus parent and control."""
    by = {
        network: [r for r in results if r["data"] == data and r["network"] == network] for network in NETWORKS
    }
    shown = [name for name in MEASURES if name in by["parent"][0]]
    rows = [
        [NETWORKS[network][0], mean([r["accuracy"] for r in own]).text(100, 1, sign=False)]
        + [mean([r[name] for r in own]).text(1, 3, sign=False) for name in shown]
        for network, own in by.items()
    ]
    for network, other in (("children-2", "parent"), ("children-2", "random-2"), ("children-4", "parent"),
                           ("children-4", "random-4")):  # fmt: skip
        apart = [
            mean([a[name] - b[name] for a, b in zip(by[network], by[other], strict=True)])
            for name in ("accuracy", *shown)
        ]
        title = f"{NETWORKS[network][0]} − {NETWORKS[other][0]}"
        rows.append([title, apart[0].text(100, 1), *(each.text(1, 3) for each in apart[1:])])
    return table(["network", "accuracy %", *(MEASURES[name][0] for name in shown)], rows)


def parts(page: str) -> dict[str, dict[str, str]]:
    results = stored(page)["results"]
    made = block(f"Seeds: {len(SEEDS)}. {made_by(results[-1], 'torch')}. {trained_at(results)}")
    return {page: {**{data: rows_of(results, data) for data in DATA}, "made": made}}
