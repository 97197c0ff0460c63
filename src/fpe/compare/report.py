"""The table and the figures of ``fpe fit``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fpe._util.files import write_atomically
from fpe._util.terminal import text_table
from fpe.budget.recommendation import Recommendation, simple

DENSE, EXPANDED, DOUBLE = "#7a7a7a", "#d1495b", "#4a7fb5"


def fit_table(result: dict[str, Any]) -> str:
    """Return the rows of a result of `fpe.compare.fit.run_fit` as text, and what the columns mean."""
    wide, double = _wide(result), "double" in result["rows"][0]
    head = ["hidden", "non-zeros", "dense %", f"{wide} %", "gain"]
    head += ["twice %", "gap closed"] if double else []
    head += ["rel. impr.", "capacity", "cosine"]
    trials = result["config"]["trials"]
    over = f"mean ± standard deviation over {trials} trials" if trials > 1 else "one trial"
    lines = [
        *text_table(head, [_cells(row) for row in result["rows"]], left=0),
        "",
        f"test accuracy, {over}; gain in points, pairwise; each arrow is dense → {wide}",
        f"always answering the most frequent class gives {result['data']['majority_accuracy']:.1%}",
        "capacity: total feature capacity of the first layer; cosine: mean cosine similarity of its neurons",
    ]
    if double:
        lines.append(
            "twice: a dense network of twice the hidden neurons, about twice the non-zeros, trained alike; "
            "gap closed: the gain as a share of its lead over dense"
        )
    return "\n".join(lines)


def _wide(result: dict[str, Any]) -> str:
    """Name the network that dense is compared with: for factor 1 itself, trained on with a fresh Adam."""
    return "fresh Adam" if result["config"]["factor"] == 1 else "expanded"


def _cells(row: dict[str, Any]) -> list[str]:
    dense, expanded = row["dense"], row["expanded"]
    sign = "=" if dense["nonzero"] == expanded["nonzero"] else "≠"
    cells = [
        f"{row['hidden']} → {expanded['neurons']}",
        f"{dense['nonzero']:,} {sign} {expanded['nonzero']:,}",
        percent(dense["accuracy"], dense["accuracy_sd"]),
        percent(expanded["accuracy"], expanded["accuracy_sd"]),
        percent(row["gain"], row["gain_sd"], "+"),
    ]
    if "double" in row:
        closed = "no gap" if row["gap_closed"] is None else f"{row['gap_closed']:.0%}"
        cells += [percent(row["double"]["accuracy"], row["double"]["accuracy_sd"]), closed]
    improvement = row["relative_improvement"]
    return [
        *cells,
        "–" if improvement is None else f"{improvement:+.1%}",
        f"{dense['capacity']:.2f} → {expanded['capacity']:.2f}",
        "-" if dense["cosine"] is None else f"{dense['cosine']:.3f} → {expanded['cosine']:.3f}",
    ]


def percent(mean: float, spread: float | None, sign: str = "") -> str:
    """Write a share, and its standard deviation if there is one, in percent."""
    text = f"{100 * mean:{sign}.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def fit_figure(result: dict[str, Any], path: Path) -> None:
    """Draw test accuracy against width as a file whose suffix is the format; needs matplotlib.

    Lines are means, bands their 95 % intervals (Student's t over the trials), dots the trials.
    """
    from matplotlib.figure import Figure

    config, rows = result["config"], result["rows"]
    how = config["split"] if config["prune"] == "magnitude" else f"{config['split']}, {config['prune']}"
    how += ", rewired" if config["rewire"] else ""
    expanded = _wide(result) if config["factor"] == 1 else f"expanded by {config['factor']} ({how})"
    kinds = {
        "dense": ("dense", DENSE, "o"),
        "expanded": (expanded, EXPANDED, "s"),
        "double": ("dense, twice the hidden neurons", DOUBLE, "^"),
    }
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    widths = [row["hidden"] for row in rows]
    for kind, (label, color, marker) in kinds.items():
        if kind not in rows[0]:
            continue
        own = [[t[kind]["accuracy"] for t in result["trials"] if t["hidden"] == width] for width in widths]
        values = 100 * np.array(own)
        mean, trials = values.mean(axis=1), values.shape[1]
        axes.plot(widths, mean, color=color, marker=marker, label=label)
        if trials > 1:
            half = stats.t.ppf(0.975, trials - 1) * stats.sem(values, axis=1)
            axes.fill_between(widths, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)
        axes.scatter(np.repeat(widths, trials), values, color=color, marker=".", s=14, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [f"{row['hidden']}\n{row['dense']['nonzero']:,}" for row in rows])
    axes.minorticks_off()
    axes.set_xlabel("hidden neurons of the dense network, and non-zero parameters of both")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{result['data']['name']}: same non-zero parameters, more neurons")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, dpi=160))


def budget_figure(found: Recommendation, rows: Sequence[dict[str, Any]], name: str, path: Path) -> None:
    """Draw accuracy against non-zeros: the best network of each budget, and simple rivals; needs matplotlib.

    `rows` have the count and the accuracies of the best networks.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    rivals = [entry for own in found.classifiers for entry in simple(own.search_) if not entry.reason]
    drawn: set[int] = set()
    for label, color, marker, hidden in (
        ("dense", DENSE, "o", True),
        ("no hidden layer", DOUBLE, "^", False),
    ):
        best: dict[int, float] = {}  # by count, of several rates and budgets
        for entry in (e for e in rivals if bool(e.candidate.hidden) == hidden):
            best[entry.nonzero] = max(100 * entry.score, best.get(entry.nonzero, 0))
        if best:
            axes.plot(*zip(*sorted(best.items()), strict=True), color=color, marker=marker, label=label)
            drawn |= best.keys()
    rows = list({row["nonzero"]: row for row in rows}.values())  # one network may be the best of two budgets
    counts = sorted({row["nonzero"] for row in rows})
    rows.sort(key=lambda row: row["nonzero"])
    for key, label, style in (
        ("validation_accuracy", "best, on the part that chose it", "s-"),
        ("test_accuracy", "best, on the test data", "s:"),
    ):
        values = [100 * row[key] for row in rows]
        axes.plot(counts, values, style, color=EXPANDED, label=label,
                  markerfacecolor="white" if style == "s:" else EXPANDED)  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = _apart(counts, drawn)
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.set_xlabel("non-zero parameters")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{name}: the best network of each budget")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, dpi=160))


def _apart(first: Sequence[int], others: Iterable[int]) -> list[int]:
    """Return all of `first`, and of the others those whose labels do not overlap on a logarithmic axis."""
    ticks = list(first)
    for count in sorted(others):
        if all(max(count, tick) > 1.3 * min(count, tick) for tick in ticks):
            ticks.append(count)
    return sorted(ticks)
