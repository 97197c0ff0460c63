"""The page that compares methods at one count: the best rival beside the best of fpe, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from common import RESULTS, block, reproduced, same_code, table, trained_at
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fpe._util.files import read_json, write_atomically, write_json
from fpe.compare.store import commits
from fpe_reproduction.rivals import METHODS
from fpe_reproduction.rivals.contest import DATA, RATES
from fpe_reproduction.rivals.report import OWN, accuracies, best
from fpe_reproduction.statistics import Interval

EVIDENCE = RESULTS.parent / "evidence"
PAGE, FIGURE = "../evidence/rivals", EVIDENCE / "rivals.png"
STORED = EVIDENCE / "data"
#: The largest p-value, corrected for the number of rows, at which a difference counts as shown.
LEVEL = 0.05


def run(page: str) -> None:
    """Compare the methods; store all runs, tables of them, what made them, and the figure."""
    folder = reproduced("rivals")
    records = [read_json(path) or {} for path in sorted(folder.glob("*.json"))]
    same_code(records, "rivals")
    frame = pd.read_csv(folder / "runs.csv")
    STORED.mkdir(parents=True, exist_ok=True)
    for name, own in {"runs": frame, "methods": accuracies(frame), "best": best(frame)}.items():
        path = STORED / f"rivals-{name}.csv"
        write_atomically(path, lambda file, own=own: own.to_csv(file, index=False, float_format="%.6g"))
    hours = sum(record["seconds"] for record in records) / 3600
    made = {"commits": commits(records), "provenance": records[-1]["provenance"]}
    write_json(STORED / "rivals.json", {**made, "hours": hours, "runs": len(frame)})
    draw(frame)


def stored() -> pd.DataFrame:
    """Return the stored runs: one row for each method, data set, width, split and seed."""
    return pd.read_csv(STORED / "rivals-runs.csv")


def interval(value: float, low: float, high: float) -> str:
    return Interval(value, low, high).text(100, 1)


def verdict(row: Mapping[str, Any], prefix: str = "") -> str:
    """Say which is better, by the corrected p-value; else the smallest difference that would be seen."""
    if row[f"{prefix}p"] < LEVEL:
        return "**fpe**" if row[f"{prefix}difference"] > 0 else "rival"
    return f"not shown ({100 * row[f'{prefix}detectable']:.1f})"


def best_table(frame: pd.DataFrame, found: pd.DataFrame) -> str:
    """Lay out the dense network, the best rival and the best of fpe, row by row."""
    rows, title = [], ""
    dense = frame[frame["method"] == "dense"].groupby(["data", "hidden"])["accuracy"].mean()
    for row in found.to_dict("records"):
        name = DATA[row["data"]].title
        cells = ["" if name == title else name, f"{row['hidden']}", f"{row['budget']:,}"]
        cells.append(f"{100 * dense[row['data'], row['hidden']]:.1f}")
        for side in ("rival", "fpe"):
            methods = [METHODS[name].title.removesuffix(" (fpe)") for name in row[side].split(", ")]
            cells.append(f"{' / '.join(methods)}<br>{100 * row[f'{side}_accuracy']:.1f}")
        cells += [compared(row), f"{100 * row['searched_accuracy']:.1f}", compared(row, "searched_")]
        rows.append(cells)
        title = name
    head = ["", "h", "non-zeros", "dense %", "best rival, %", "best of fpe, %", "fpe minus rival, points"]
    return table([*head, "`FPEClassifier` %", "minus rival, points"], rows)


def compared(row: Mapping[str, Any], prefix: str = "") -> str:
    """Return a difference with its interval, and which is better."""
    ends = (row[f"{prefix}{name}"] for name in ("difference", "low", "high"))
    return f"{interval(*ends)}<br>{verdict(row, prefix)}"


def counted(found: pd.DataFrame, prefix: str = "") -> dict[str, str]:
    """Count the rows by who is better, with texts by mark."""
    own = [verdict(row, prefix) for row in found.to_dict("records")]
    marks = {"fpe": "**fpe**", "rival": "rival", "open": "not shown"}
    return {
        prefix.replace("_", "-") + key: f"{sum(word in text for text in own)}" for key, word in marks.items()
    }


def at_the_ends(frame: pd.DataFrame) -> dict[str, str]:
    """Count the cases that were tuned, and those whose rate is the smallest or the largest that was tried."""
    rates = frame[frame["method"] != "searched"].groupby(["data", "hidden", "method", "split"])["lr"].first()
    return {"ends": f"{rates.isin([min(RATES), max(RATES)]).sum()}", "cases": f"{len(rates)}"}


def draw(frame: pd.DataFrame) -> None:
    """Draw the mean accuracy of every method in every row, and make the best of each side stand out."""
    cells, found = (
        list(frame.groupby(["data", "hidden"], sort=False)),
        best(frame).set_index(["data", "hidden"]),
    )
    figure = Figure(figsize=(9.5, 0.42 * len(cells) + 1.6), layout="constrained")
    axes = figure.subplots()
    styles = {  # from the back to the front
        "a rival": ("o", "#c4c4c4", 5),
        "a method of fpe": ("o", "#f3c69b", 5),
        "best rival": ("o", "#333333", 7),
        "best of fpe": ("o", "#d9680f", 7),
        "FPEClassifier": ("D", "#2f6f9f", 6),
    }
    for place, (cell, own) in enumerate(cells):
        means = own.groupby("method")["accuracy"].mean()
        points = 100 * (means - means["dense"])
        chosen = {
            label: 100 * (found.loc[[cell], f"{side}_accuracy"] - means["dense"])
            for label, side in (("best rival", "rival"), ("best of fpe", "fpe"))
        }
        drawn = {
            "a rival": points[points.index.difference(OWN)],
            "a method of fpe": points[points.index.intersection(OWN)],
            **chosen,
            "FPEClassifier": points[["searched"]],
        }
        for order, (label, (marker, color, size)) in enumerate(styles.items()):
            x = drawn[label].clip(lower=-20)
            axes.plot(x, [place] * len(x), marker, color=color, markersize=size, zorder=2 + order)
    axes.axvline(0, color="#333333", linewidth=0.8)
    labels = [f"{DATA[str(data)].title}, {hidden}" for (data, hidden), _ in cells]
    axes.set_yticks(range(len(cells)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("points above a dense network of the same count (below −20: drawn there)")
    axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], ls="", marker=m, color=c, markersize=s) for m, c, s in styles.values()]
    figure.legend(lines, list(styles), loc="outside upper center", ncols=len(styles), frameon=False)
    write_atomically(FIGURE, lambda file: figure.savefig(file, dpi=110, format="png"))


def parts(page: str) -> dict[str, dict[str, str]]:
    """Return the texts between the page's marks."""
    frame, made = stored(), read_json(STORED / "rivals.json") or {}
    found = best(frame)
    text = {
        "best": best_table(frame, found),
        "rows": f"{len(found)}",
        "methods": f"{frame['method'].nunique()}",
        "rates": f"{len(RATES)}",
        **at_the_ends(frame),
        "splits": f"{frame['split'].nunique()}",
        "seeds": f"{frame['seed'].nunique()}",
        **counted(found),
        **counted(found, "searched_"),
        "made": block(
            f"{made['runs']:,} networks, {made['hours']:.0f} hours of one core; torch "
            f"{made['provenance']['torch']}, {made['provenance']['machine']}. {trained_at([made])}"
        ),
    }
    return {PAGE: text}
