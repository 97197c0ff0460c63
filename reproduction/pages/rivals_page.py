"""The page that compares methods at one count: the best rival beside the best of fpe, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from common import OUT, RESULTS, block, run_fpe, same_code, table, trained_at
from matplotlib.figure import Figure

from fpe._util.files import read_json, write_atomically, write_json
from fpe_reproduction.rivals import METHODS
from fpe_reproduction.rivals.contest import DATA, RATES, SEEDS, SPLITS
from fpe_reproduction.rivals.report import OWN, accuracies, best, chosen, difference
from fpe_reproduction.statistics import Interval

EVIDENCE = RESULTS.parent / "evidence"
PAGE, FIGURE = "../evidence/rivals", EVIDENCE / "rivals.png"
STORED = EVIDENCE / "data"


def run(page: str) -> None:
    """Compare the methods; store all runs, tables of them, what made them, and the figure."""
    folder = OUT / "rivals"
    if run_fpe("reproduce", "rivals", "--out", folder):
        raise SystemExit("fpe reproduce rivals failed")
    records = [read_json(path) or {} for path in sorted(folder.glob("*.json"))]
    same_code(records, "rivals")
    frame = pd.read_csv(folder / "runs.csv")
    for name, own in {"runs": frame, "methods": accuracies(frame), "best": best(frame)}.items():
        path = STORED / f"rivals-{name}.csv"
        write_atomically(path, lambda file, own=own: own.to_csv(file, index=False, float_format="%.6g"))
    hours = sum(record["seconds"] for record in records) / 3600
    made = {"commits": [records[-1]["provenance"]["commit"]], "provenance": records[-1]["provenance"]}
    write_json(STORED / "rivals.json", {**made, "hours": hours, "runs": len(frame)})
    draw(frame)


def stored() -> pd.DataFrame:
    """Return the stored runs: one row for each method, data set, width, split and seed."""
    return pd.read_csv(STORED / "rivals-runs.csv")


def interval(value: float, low: float, high: float) -> str:
    return Interval(value, low, high).text(100, 1)


def verdict(low: float, high: float) -> str:
    """Say which is better, by the interval of the difference."""
    return "**fpe**" if low > 0 else "rival" if high < 0 else "alike"


def best_table(frame: pd.DataFrame) -> tuple[str, list[str]]:
    """Lay out the best rival beside the best of fpe; also return who is better in each row."""
    rows, verdicts, title = [], [], ""
    for row in best(frame).to_dict("records"):
        said = verdict(row["low"], row["high"])
        verdicts.append(said.strip("*"))
        name = DATA[row["data"]].title
        cells = ["" if name == title else name, f"{row['hidden']}", f"{row['budget']:,}"]
        cells += [METHODS[row["rival"]].title, f"{100 * row['rival_accuracy']:.1f}"]
        cells += [METHODS[row["fpe"]].title.removesuffix(" (fpe)"), f"{100 * row['fpe_accuracy']:.1f}"]
        cells += [interval(row["difference"], row["low"], row["high"]), said]
        if "searched_accuracy" in row:
            ends = row["searched_difference"], row["searched_low"], row["searched_high"]
            cells += [f"{100 * row['searched_accuracy']:.1f}", interval(*ends)]
        rows.append(cells)
        title = name
    head = ["", "h", "non-zeros", "best rival", "%", "best of fpe", "%", "difference, points", "better"]
    if rows and len(rows[0]) > len(head):
        head += ["`FPEClassifier` %", "minus the best rival"]
    return table(head, rows), verdicts


def dense_table(frame: pd.DataFrame) -> str:
    """Say how far above a tuned dense network of the same count the best rival and the best of fpe are."""
    rows = []
    for (data, hidden), own in frame.groupby(["data", "hidden"], sort=False):
        names = own["method"].unique()
        rival = chosen(own, [name for name in names if name not in OWN])
        ours = chosen(own, [name for name in names if name in OWN and name != "searched"])
        cells = [DATA[str(data)].title, f"{hidden}"]
        cells += [difference(own, name, "dense").text(100, 1) for name in (rival, ours)]
        rows.append(cells)
    return table(["", "h", "best rival − dense, points", "best of fpe − dense, points"], rows)


def draw(frame: pd.DataFrame) -> None:
    """Draw the mean accuracy of every method in every row, those of fpe in color."""
    cells = list(frame.groupby(["data", "hidden"], sort=False))
    figure = Figure(figsize=(9.5, 0.42 * len(cells) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (_, own) in enumerate(cells):
        means = own.groupby("method")["accuracy"].mean()
        dense = means["dense"]
        for name, value in means.items():
            ours = name in OWN
            color = "#e07a1f" if ours else "#9a9a9a"
            x = 100 * (value - dense)
            axes.plot(np.clip(x, -20, None), place, "o", color=color, zorder=3 if ours else 2, markersize=6)
    axes.axvline(0, color="#333333", linewidth=0.8)
    labels = [f"{DATA[str(data)].title}, {hidden}" for (data, hidden), _ in cells]
    axes.set_yticks(range(len(cells)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("points above a dense network of the same count; orange: methods of fpe, gray: rivals")
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(FIGURE, lambda file: figure.savefig(file, dpi=110, format="png"))


def parts(page: str) -> dict[str, dict[str, str]]:
    """Return the texts between the page's marks."""
    frame, made = stored(), read_json(STORED / "rivals.json") or {}
    first, verdicts = best_table(frame)
    counts = {said: f"{verdicts.count(said)}" for said in ("fpe", "rival", "alike")}
    text: dict[str, Any] = {
        "best": first,
        "dense": dense_table(frame),
        "rows": f"{len(verdicts)}",
        "methods": f"{frame['method'].nunique()}",
        "rates": f"{len(RATES)}",
        "splits": f"{SPLITS}",
        "seeds": f"{SEEDS}",
        **counts,
        "made": block(
            f"{made['runs']:,} networks, {made['hours']:.0f} hours of one core; torch "
            f"{made['provenance']['torch']}, {made['provenance']['machine']}. {trained_at([made])}"
        ),
    }
    return {PAGE: text}
