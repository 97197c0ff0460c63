"""How settings that the paper does not give were chosen: by seeds that no experiment uses."""

from __future__ import annotations

from dataclasses import replace

from common import block, made_by, run_all, store, stored, table

from fpe.compare.store import provenance
from fpe.data import load
from fpe_reproduction.experiments.boolean import BooleanConfig, run_row
from fpe_reproduction.experiments.tasks import SETTINGS
from fpe_reproduction.experiments.timeline import Source, run_networks
from fpe_reproduction.statistics import mean

#: Learning rate, weight of the regularizer, samples.
BOOLEAN = [
    (3e-3, 0.0, 4000), (3e-3, 1e-4, 4000), (3e-3, 1e-3, 4000), (1e-2, 0.0, 4000),
    (1e-2, 1e-4, 4000), (1e-2, 3e-4, 4000), (2e-2, 1e-4, 4000), (3e-3, 0.0, 8000),
]  # fmt: skip
#: Accuracies of the paper's case study.
PAPER = {"dense": 78.7, "clause": 99.4, "random": 88.7}
RATES = (1e-3, 3e-3, 1e-2)


def boolean() -> tuple[list[str], list[list[str]]]:
    """Measure how close each setting is to the paper's case study."""
    own = {"clauses": 8, "neurons": (8,), "first_trial": 100, "trials": 10}
    tasks = {
        f"lr{lr:g}-l2-{l2:g}-n{n}": {"config": replace(BooleanConfig(), lr=lr, l2=l2, samples=n), **own}
        for lr, l2, n in BOOLEAN
    }
    records = run_all(run_row, tasks, "settings")
    rows = []
    for (lr, l2, samples), record in zip(BOOLEAN, records.values(), strict=True):
        found = [[100 * n["accuracy"] for n in record["networks"] if n["kind"] == kind] for kind in PAPER]
        means = [mean(accuracies) for accuracies in found]
        off = sum(abs(ours.value - paper) for ours, paper in zip(means, PAPER.values(), strict=True))
        cells = [each.text(sign=False) for each in means]
        rows.append([f"{lr:g}", f"{l2:g}", f"{samples:,}", *cells, f"{off:.1f}"])
    kinds = [f"{kind} %" for kind in ("dense", "clause-split", "random-split")]
    return ["learning rate", "l2", "samples", *kinds, "points off, summed"], rows


def vision() -> tuple[list[str], list[list[str]]]:
    """Compare learning rates by dense networks."""
    rows = []
    for name, config in SETTINGS.items():
        source = Source(name, load(name).fingerprint)
        own = {"source": source, "hidden": (4, 8), "kinds": ["dense"], "trials": range(100, 110)}
        tasks = {f"{name}-{lr:g}": {"config": replace(config, lr=lr), **own} for lr in RATES}
        records = run_all(run_networks, tasks, "reproduce/settings")
        for lr, record in zip(RATES, records.values(), strict=True):
            cells = [
                mean([n[measure] for n in record["networks"] if n["hidden"] == hidden]).text(100, sign=False)
                for hidden in (4, 8)
                for measure in ("train_accuracy", "accuracy")
            ]
            chosen = ", chosen" if lr == config.lr else ""
            rows.append([name, f"{config.warmup_epochs} + {config.epochs}", f"{lr:g}{chosen}", *cells])
    columns = ["data", "epochs before and after the split", "learning rate"]
    return columns + [
        f"{part} %, {hidden} neurons" for hidden in (4, 8) for part in ("training", "test")
    ], rows


RUNS = {"boolean": boolean, "vision": vision}


def run(page: str) -> None:
    """Compare the settings of a page's experiments, and store the table."""
    columns, rows = RUNS[page]()
    store(f"{page}/settings", {"columns": columns, "rows": rows, "provenance": provenance()})


def text(page: str) -> str:
    """Return the table of a page's settings, and what made it."""
    record = stored(f"{page}/settings")
    made = made_by(record, "fpe", "torch", "commit")
    return block(f"{table(record['columns'], record['rows'])}\nMean [95 %]; {made}.")
