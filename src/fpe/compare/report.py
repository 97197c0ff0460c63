"""The table and the figure of ``fpe fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fpe._util.files import write_atomically
from fpe.compare.statistics import mean
from fpe.expansion.plan import text_table

DENSE, EXPANDED, DOUBLE = "#7a7a7a", "#d1495b", "#4a7fb5"


def fit_table(result: dict[str, Any]) -> str:
    """Lay the rows of a result of `fpe.compare.fit.run_fit` out as text.

    Parameters
    ----------
    result : dict
        What ``results.json`` holds.

    Returns
    -------
    str
        One line for each width, and what the columns mean.
    """
    head: tuple[str, ...] = (
        "hidden",
        "non-zeros",
        "dense %",
        f"{_wide(result)} %",
        "gain",
        "rel. impr.",
        "capacity",
        "cosine",
    )
    rows = [_cells(row) for row in result["rows"]]
    doubled = "double" in result["rows"][0]
    if doubled:
        head = (*head[:5], "twice %", "gap closed", *head[5:])
    lines = text_table(head, rows, left=0)
    trials = result["config"]["trials"]
    over = f"mean ± standard deviation over {trials} trials" if trials > 1 else "one trial"
    lines += [
        "",
        f"test accuracy, {over}; gain in points, pairwise; each arrow is dense → {_wide(result)}",
        f"always answering the most frequent class gives {result['data']['majority_accuracy']:.1%}",
        "capacity: total feature capacity of the first layer; cosine: mean cosine similarity of its neurons",
    ]
    if doubled:
        lines.append(
            "twice: a dense network of twice the hidden neurons, about twice the non-zeros, trained alike; "
            "gap closed: the gain as a share of its lead over dense"
        )
    return "\n".join(lines)


def _wide(result: dict[str, Any]) -> str:
    """Name what the dense network is compared with: with factor 1 itself, trained on with a fresh Adam."""
    return "fresh Adam" if result["config"]["factor"] == 1 else "expanded"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    dense, expanded = row["dense"], row["expanded"]
    same = dense["nonzero"] == expanded["nonzero"]
    return (
        f"{row['hidden']} → {expanded['neurons']}",
        f"{dense['nonzero']:,} = {expanded['nonzero']:,}"
        if same
        else f"{dense['nonzero']:,} ≠ {expanded['nonzero']:,}",
        _percent(dense["accuracy"], dense["accuracy_sd"]),
        _percent(expanded["accuracy"], expanded["accuracy_sd"]),
        _percent(row["gain"], row["gain_sd"], "+"),
        *_doubled(row),
        "–" if row["relative_improvement"] is None else f"{row['relative_improvement']:+.1%}",
        f"{dense['capacity']:.2f} → {expanded['capacity']:.2f}",
        "-" if dense["cosine"] is None else f"{dense['cosine']:.3f} → {expanded['cosine']:.3f}",
    )


def _doubled(row: dict[str, Any]) -> tuple[str, ...]:
    if "double" not in row:
        return ()
    closed = "no gap" if row["gap_closed"] is None else f"{row['gap_closed']:.0%}"
    return _percent(row["double"]["accuracy"], row["double"]["accuracy_sd"]), closed


def _percent(mean: float, spread: float | None, sign: str = "") -> str:
    text = f"{100 * mean:{sign}.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def fit_figure(result: dict[str, Any], path: Path) -> None:
    """Draw test accuracy against width, dense and expanded, and write it as PNG or SVG.

    Where masks move, dense networks of twice the hidden neurons stand beside.

    Lines are means, bands their 95 % intervals (Student's t over the trials), dots the trials.

    Parameters
    ----------
    result : dict
        What ``results.json`` holds.
    path : Path
        The picture; its ending says the format.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    factor = result["config"]["factor"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    widths = [row["hidden"] for row in result["rows"]]
    kinds = [("dense", DENSE, "o"), ("expanded", EXPANDED, "s"), ("double", DOUBLE, "^")]
    for kind, colour, marker in [each for each in kinds if each[0] in result["rows"][0]]:
        values = [[t[kind]["accuracy"] * 100 for t in result["trials"] if t["hidden"] == h] for h in widths]
        means = [sum(v) / len(v) for v in values]
        label = {
            "dense": "dense",
            "expanded": _wide(result) if factor == 1 else f"expanded by {factor} ({_how(result)})",
            "double": "dense, twice the hidden neurons",
        }[kind]
        axes.plot(widths, means, color=colour, marker=marker, label=label)
        if result["config"]["trials"] > 1:
            bands = [mean(v) for v in values]
            low, high = [band.low for band in bands], [band.high for band in bands]
            axes.fill_between(widths, low, high, color=colour, alpha=0.18, linewidth=0)
        dots = [(w, v) for w, vs in zip(widths, values, strict=True) for v in vs]
        axes.scatter([w for w, _ in dots], [v for _, v in dots], color=colour, marker=".", s=14, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [f"{row['hidden']}\n{row['dense']['nonzero']:,}" for row in result["rows"]])
    axes.minorticks_off()
    axes.set_xlabel("hidden neurons of the dense network, and non-zero parameters of both")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{result['data']['name']}: same non-zero parameters, more neurons")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, dpi=160))


def _how(result: dict[str, Any]) -> str:
    config = result["config"]
    split = config["split"]
    how = split if config["prune"] == "magnitude" else f"{split}, {config['prune']}"
    return f"{how}, rewired" if config["rewire"] else how
