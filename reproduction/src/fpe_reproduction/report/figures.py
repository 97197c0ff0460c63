"""The figures of an experiment as a picture, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.files import write_atomically
from fpe_reproduction.experiments.networks import label
from fpe_reproduction.report.kinds import colours


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw all figures of an experiment into one picture, PNG or SVG.

    Parameters
    ----------
    result : dict
        What ``results.json`` of `fpe_reproduction.experiments.reproduce` holds.
    path : Path
        The picture; its ending says the format.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    figures = result["figures"]
    columns = min(2, len(figures))
    rows = -(-len(figures) // columns)
    picture = Figure(figsize=(6.2 * columns, 4.3 * rows + 0.4), layout="constrained")
    picture.suptitle(f"{result['question']}  ({result['where']})", fontsize=11)
    for figure, axes in zip(figures, picture.subplots(rows, columns, squeeze=False).flat, strict=False):
        {"lines": _lines, "points": _points, "matrix": _matrix}[figure["type"]](figure, axes)
        axes.set_title(figure["title"], fontsize=10)
        axes.set_xlabel(figure["x"])
        axes.set_ylabel(figure["y"])
    for axes in picture.axes[len(figures) : rows * columns]:
        axes.set_axis_off()
    write_atomically(path, lambda file: picture.savefig(file, dpi=110))


def _lines(figure: dict[str, Any], axes: Any) -> None:
    palette = colours([line["kind"] for line in figure["lines"]])
    for line in figure["lines"]:
        colour = palette[line["kind"]]
        axes.plot(line["x"], line["means"], color=colour, marker="o", label=label(line["kind"]))
        low, high = (np.array(line[side], dtype=float) for side in ("low", "high"))  # None becomes NaN
        axes.fill_between(line["x"], low, high, color=colour, alpha=0.18, linewidth=0)
    if figure["level"] is not None:
        axes.axhline(figure["level"], color="black", linestyle="--", linewidth=1)
    ticks = figure["lines"][0]["x"]
    if figure.get("scale", "log") == "log":
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _tidy(axes)


def _points(figure: dict[str, Any], axes: Any) -> None:
    palette = colours(list(figure["points"]))
    for kind, points in figure["points"].items():
        x, y = np.array(points).T
        axes.scatter(x, y, color=palette[kind], s=16, alpha=0.6, label=label(kind))
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=palette[kind])
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _matrix(figure: dict[str, Any], axes: Any) -> None:
    values = np.array(figure["values"])
    most = max(float(np.abs(values).max()), 1e-12)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    for names, set_ticks in ((figure["columns"], axes.set_xticks), (figure["rows"], axes.set_yticks)):
        step = -(-len(names) // 16)
        set_ticks(range(0, len(names), step), names[::step], fontsize=8)
    every_row, every_column = figure["every"]
    if every_row:
        for at in range(every_row, values.shape[0], every_row):
            axes.axhline(at - 0.5, color="black", linewidth=0.5)
    if every_column:
        for at in range(every_column, values.shape[1], every_column):
            axes.axvline(at - 0.5, color="black", linewidth=0.5)
    if values.size <= 64:
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if abs(value) > 0.6 * most else "black"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=ink)
