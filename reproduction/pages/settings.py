"""Try settings that the text of the paper lost, and write how near each comes to its case study.

Usage: python reproduction/pages/settings.py        (about five minutes on two cores)

Runs resume in fpe-out/settings. Writes docs/results/boolean/settings.json, which
reproduction/pages/boolean.py puts into boolean.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fpe._util.files import write_json
from fpe.compare.runner import run_tasks
from fpe.compare.statistics import mean
from fpe.compare.store import provenance
from fpe_reproduction.experiments.boolean import KINDS, BooleanConfig, run_row
from fpe_reproduction.experiments.formulas import PAPER_CASE_STUDY

HERE = Path(__file__).parents[2] / "docs" / "results"
OUT = Path("fpe-out", "settings")

#: Learning rate, weight of the regulariser, samples.
TRIED = [
    (3e-3, 0.0, 4000),
    (3e-3, 1e-4, 4000),
    (3e-3, 1e-3, 4000),
    (1e-2, 0.0, 4000),
    (1e-2, 1e-4, 4000),
    (1e-2, 3e-4, 4000),
    (2e-2, 1e-4, 4000),
    (3e-3, 0.0, 8000),
]


def main() -> None:
    """Run what is not done yet, and write the table."""
    tasks = {
        f"lr{lr:g}-l2-{l2:g}-n{samples}": {
            "config": replace(BooleanConfig(), lr=lr, l2=l2, samples=samples),
            "clauses": 8,
            "neurons": (8,),
            "first_trial": 100,  # seeds that no experiment uses
            "trials": 10,
        }
        for lr, l2, samples in TRIED
    }
    records = run_tasks(run_row, tasks, OUT, "settings", on_finished=lambda name, _: print(name, flush=True))
    rows = []
    for (lr, l2, samples), record in zip(TRIED, records.values(), strict=True):
        accuracy = {
            kind: [100 * n["accuracy"] for n in record["networks"] if n["kind"] == kind] for kind in KINDS
        }
        off = sum(abs(mean(accuracy[kind]).value - PAPER_CASE_STUDY[kind]) for kind in KINDS)
        cells = [mean(accuracy[kind]).text(sign=False) for kind in KINDS]
        rows.append([f"{lr:g}", f"{l2:g}", f"{samples:,}", *cells, f"{off:.1f}"])
    columns = ["learning rate", "l2", "samples", "dense %", "clause-split %", "random-split %"]
    write_json(
        HERE / "boolean" / "settings.json",
        {"columns": [*columns, "points off, summed"], "rows": rows, "provenance": provenance()},
    )


if __name__ == "__main__":
    main()
