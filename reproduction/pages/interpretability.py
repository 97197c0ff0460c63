"""Do children become more interpretable? Measures of a hidden layer, parent against children and controls.

On a Boolean formula, whose features are known, and on CIFAR-100's embeddings. About twenty minutes on two
cores.
"""

from __future__ import annotations

import textwrap
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from common import RESULTS, block, made_by, run_all, same_code, table, trained_at
from matplotlib.figure import Figure
from torch import Tensor, nn

from fpe._util.files import read_json, write_atomically, write_json
from fpe.compare.runner import one_thread
from fpe.compare.store import commits
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
from fpe_reproduction.statistics import Interval, holm, mean

EVIDENCE = RESULTS.parent / "evidence"
PAGE, STORED = "../evidence/interpretability", EVIDENCE / "data"
CLAUSES, LITERALS, SAMPLES, RATE = 8, 4, 4000, 1e-2
#: Data: name, neurons of the parent, epochs, samples in a mini-batch, latents of the autoencoder.
DATA = {"dnf": ("Boolean formula", 8, 500, 500, 64), "cifar100": ("CIFAR-100", 16, 15, 500, 256)}
#: Networks: title, method and its option. Controls have the children's density, in masks drawn at random.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "parent": ("dense parent", "dense", {}),
    "children-2": ("children, α = 2", "one-shot", {"factor": 2}),
    "children-4": ("children, α = 4", "one-shot", {"factor": 4}),
    "random-2": ("random masks, twice as wide", "static", {"factor": 2, "last": None}),
    "random-4": ("random masks, four times as wide", "static", {"factor": 4, "last": None}),
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
#: Who is judged, and what each is compared with.
CHILDREN, OTHERS = "children-2", {"parent": "the parent", "random-2": "random masks"}
SEEDS = range(2 if common.QUICK else 10)
#: The largest p-value, corrected for the number of verdicts, at which a difference counts as shown.
LEVEL = 0.05


def data_of(data: str, seed: int) -> tuple[Cell, Tensor, Tensor, Tensor]:
    """Return the data to learn, test inputs and targets, and the class that counts as a test input's feature.

    On the formula the features are its clauses; samples that satisfy none or several are not measured (−1).
    """
    _, hidden, epochs, batch_size, _ = DATA[data]
    if common.QUICK:
        epochs = max(2, epochs // 10)
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
    """Train and measure all networks; store the measures, what made them, and the figure."""
    tasks = {
        f"{data}-{network}-{seed}": {"data": data, "network": network, "seed": seed}
        for seed in SEEDS
        for data in DATA
        for network in NETWORKS
    }
    found = run_all(measure, tasks, page)
    same_code(found.values(), page)
    names = ("accuracy", "neurons", "explained", *MEASURES)
    rows = [{**own, **{key: found[task].get(key) for key in names}} for task, own in tasks.items()]
    frame = pd.DataFrame(rows)
    STORED.mkdir(parents=True, exist_ok=True)
    path = STORED / "interpretability.csv"
    write_atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.6g"))
    made = {"commits": commits(found.values()), "provenance": found[next(iter(tasks))]["provenance"]}
    seconds = sum(record["seconds"] for record in found.values())
    write_json(STORED / "interpretability.json", {**made, "hours": seconds / 3600})
    draw(frame)


def values(frame: pd.DataFrame, data: str, network: str, measure: str) -> np.ndarray:
    """Return a measure of a network by seed."""
    own = frame[(frame["data"] == data) & (frame["network"] == network)]
    return np.asarray(own.sort_values("seed")[measure], dtype=float)


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare children with the parent and with the control in each measure, corrected for their number.

    Columns are ``data``, ``measure``, ``other``, ``apart`` (an `Interval`, paired by seed), ``p``, ``said``.
    """
    rows = []
    for data in DATA:
        for name in MEASURES:
            own = values(frame, data, CHILDREN, name)
            if np.isnan(own).all():
                continue
            for other in OTHERS:
                apart = mean(own - values(frame, data, other, name))
                rows.append({"data": data, "measure": name, "other": other, "apart": apart})
    found = pd.DataFrame(rows)
    found["p"] = holm([own.p_zero for own in found["apart"]])
    found["said"] = [said(*row) for row in found[["measure", "apart", "p"]].itertuples(index=False)]
    return found


def said(measure: str, apart: Interval, p: float) -> str:
    """Say whether a difference makes neurons more interpretable; else which one could have been seen."""
    if p < LEVEL:
        return "**more**" if (apart.value > 0) == MEASURES[measure][1] else "**less**"
    return f"not shown ({apart.detectable:.2g})"


def verdict_table(frame: pd.DataFrame) -> str:
    """Lay out each measure: the three networks, and what was seen."""
    rows, title, shown = [], "", ("parent", CHILDREN, "random-2")
    for (data, name), own in verdicts(frame).groupby(["data", "measure"], sort=False):
        cells = ["" if DATA[data][0] == title else DATA[data][0], MEASURES[name][0]]
        title = DATA[data][0]
        cells.append("more" if MEASURES[name][1] else "less")
        cells += [f"{values(frame, data, each, name).mean():.3f}" for each in shown]
        for row in own.itertuples():
            cells.append(f"{row.apart.text(1, 3)}<br>{row.said}")
        rows.append(cells)
    head = ["", "measure", "better is", "parent", "children", "random masks"]
    head += [f"children − {other}: more interpretable?" for other in OTHERS.values()]
    return table(head, rows)


def draw(frame: pd.DataFrame) -> None:
    """Draw all networks in each measure, with intervals; a row of panels for each data set."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    rows = figure.subplots(len(DATA), len(MEASURES), sharey=True)
    for data, panels in zip(DATA, rows, strict=True):
        for (name, (title, more)), axes in zip(MEASURES.items(), panels, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            for place, network in enumerate(NETWORKS):
                found = mean(values(frame, data, network, name))
                color = "#e07a1f" if network.startswith("children") else "#2e6f95"
                error = [[found.value - found.low], [found.high - found.value]]
                axes.errorbar(found.value, place, xerr=error, fmt="o", color=color, capsize=2, markersize=4)
            text = textwrap.fill(f"{title} (more interpretable: {'→' if more else '←'})", 26)
            axes.set_title(text, fontsize=7)
            axes.tick_params(labelsize=7)
        panels[0].set_yticks(range(len(NETWORKS)), [own[0] for own in NETWORKS.values()], fontsize=7)
        panels[0].set_ylabel(DATA[data][0], fontsize=8)
        if data != "dnf":
            panels[-1].set_visible(False)  # codes are of clauses
    rows[0][0].invert_yaxis()  # all panels share it
    path = EVIDENCE / "interpretability.png"
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def stored() -> pd.DataFrame:
    """Return the stored measures: one row for each network."""
    return pd.read_csv(STORED / "interpretability.csv")


def parts(page: str) -> dict[str, dict[str, str]]:
    """Return the texts between the page's marks."""
    frame, made = stored(), read_json(STORED / "interpretability.json") or {}
    found = verdicts(frame)
    counts = {
        f"{word}-{other}": str(int(found["said"][found["other"] == other].str.contains(word).sum()))
        for other in OTHERS
        for word in ("more", "less")
    }
    text = f"{made['hours']:.1f} hours of one core. {made_by(made, 'torch')}. {trained_at([made])}"
    return {
        PAGE: {
            "verdicts": verdict_table(frame),
            **counts,
            "measures": f"{len(found) // len(OTHERS)}",
            "seeds": f"{frame['seed'].nunique()}",
            "made": block(text),
        }
    }
