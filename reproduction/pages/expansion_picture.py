"""Draw the README's picture: what an expansion does to one neuron, and what it does to accuracy.

Usage: python docs/images/expansion.py        (``make results`` does it)

The right half is drawn from docs/results/fit/banking77-random.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fpe._util.files import write_atomically
from fpe.compare.report import DENSE, EXPANDED

HERE = Path(__file__).parents[2] / "docs" / "images"
DATA = HERE.parent / "results" / "fit" / "banking77-random.json"
INPUTS = [4.5, 3.5, 2.5, 1.5, 0.5, -0.5]
CHILD = [0, 1, 0, 1, 1, 0]  # who keeps which input
COLOURS = ("#2e6f95", "#e07a1f")


def wire(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, style: str) -> None:
    """Draw one weight."""
    axes.plot(*zip(start, end, strict=True), color=colour, linewidth=1.8, linestyle=style, zorder=1)


def nodes(axes: Axes, x: float, heights: list[float], colours: list[str], size: int) -> None:
    """Draw neurons, one below the other."""
    axes.scatter([x] * len(heights), heights, s=size, c=colours, zorder=2, edgecolors="white", linewidths=1.5)


def before(axes: Axes) -> None:
    """Draw a dense neuron: six inputs, three outputs, nine weights."""
    for height in INPUTS:
        wire(axes, (0, height), (1, 2), DENSE, "-")
    for height in (3.2, 2, 0.8):
        wire(axes, (1, 2), (2, height), DENSE, "-")
    nodes(axes, 0, INPUTS, ["#333333"] * 6, 60)
    nodes(axes, 1, [2], [DENSE], 380)
    nodes(axes, 2, [3.2, 2, 0.8], ["#333333"] * 3, 60)
    axes.set_title("dense: 1 neuron, 9 weights", fontsize=11)


def after(axes: Axes) -> None:
    """Draw its two children: the inputs shared out, the outputs copied, three weights pruned."""
    heights = (3.3, 0.7)
    pruned = {("in", 2), ("in", 4), ("out", 1, 0)}
    for i, (height, child) in enumerate(zip(INPUTS, CHILD, strict=True)):
        gone = ("in", i) in pruned
        wire(
            axes,
            (0, height),
            (1, heights[child]),
            "#c8c8c8" if gone else COLOURS[child],
            ":" if gone else "-",
        )
    for child in (0, 1):
        for i, height in enumerate((3.2, 2, 0.8)):
            gone = ("out", child, i) in pruned
            colour = "#c8c8c8" if gone else COLOURS[child]
            wire(axes, (1, heights[child]), (2, height), colour, ":" if gone else "-")
    nodes(axes, 0, INPUTS, ["#333333"] * 6, 60)
    nodes(axes, 1, list(heights), list(COLOURS), 380)
    nodes(axes, 2, [3.2, 2, 0.8], ["#333333"] * 3, 60)
    axes.set_title("expanded: 2 children, 9 weights", fontsize=11)


def accuracies(axes: Axes) -> None:
    """Draw test accuracy of dense and expanded networks, by their common count of non-zeros."""
    result = json.loads(DATA.read_text(encoding="utf-8"))
    rows = result["rows"]
    counts = [row["dense"]["nonzero"] for row in rows]
    for kind, colour, marker, below in (("dense", DENSE, "o", True), ("expanded", EXPANDED, "s", False)):
        means = [100 * row[kind]["accuracy"] for row in rows]
        spread = [100 * row[kind]["accuracy_sd"] for row in rows]
        axes.errorbar(
            counts, means, spread, color=colour, marker=marker, capsize=2, linewidth=1.8, label=kind
        )
        for count, mean in zip(counts, means, strict=True):
            place = (0, -13) if below else (0, 7)
            axes.annotate(
                f"{mean:.1f}", (count, mean), place, textcoords="offset points", ha="center", size=9
            )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("non-zero parameters, of both")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Banking77, 77 classes", fontsize=11)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write the picture."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    before(left)
    after(middle)
    for axes in (left, middle):
        axes.set_xlim(-0.15, 2.15)
        axes.set_ylim(-1.2, 5.2)
        axes.axis("off")
    accuracies(right)
    write_atomically(HERE / "expansion.png", lambda file: figure.savefig(file, dpi=150, facecolor="white"))


if __name__ == "__main__":
    main()
