"""Draw docs/images/expansion.png: what an expansion does to one neuron, and what it does to accuracy."""

from __future__ import annotations

from typing import Any

from common import RESULTS, stored
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fpe._util.files import write_atomically
from fpe.compare.report import DENSE, EXPANDED

INPUTS, OUTPUTS = [4.5, 3.5, 2.5, 1.5, 0.5, -0.5], [3.2, 2, 0.8]
CHILD = [0, 1, 0, 1, 1, 0]  # the child of each input
COLORS, PRUNED = ("#2e6f95", "#e07a1f"), "#c8c8c8"


def neuron(
    axes: Axes, title: str, heights: list[float], colors: list[str], pruned: set[Any] = frozenset()
) -> None:
    """Draw a neuron, or its children: six inputs, shared out; three outputs, copied."""

    def wire(start: tuple[float, float], end: tuple[float, float], color: str, gone: bool) -> None:
        style = {"color": PRUNED, "linestyle": ":"} if gone else {"color": color}
        axes.plot(*zip(start, end, strict=True), linewidth=1.8, zorder=1, **style)

    def nodes(x: float, ys: list[float], color: Any, size: int) -> None:
        axes.scatter([x] * len(ys), ys, s=size, c=color, zorder=2, edgecolors="white", linewidths=1.5)

    for i, y in enumerate(INPUTS):
        child = CHILD[i] % len(heights)
        wire((0, y), (1, heights[child]), colors[child], ("in", i) in pruned)
    for child, height in enumerate(heights):
        for i, y in enumerate(OUTPUTS):
            wire((1, height), (2, y), colors[child], ("out", child, i) in pruned)
    nodes(0, INPUTS, "#333333", 60)
    nodes(1, heights, colors, 380)
    nodes(2, OUTPUTS, "#333333", 60)
    axes.set_title(title, fontsize=11)
    axes.set_xlim(-0.15, 2.15)
    axes.set_ylim(-1.2, 5.2)
    axes.axis("off")


def accuracies(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw test accuracy of dense and expanded networks, by their common count of non-zeros."""
    counts = [row["dense"]["nonzero"] for row in rows]
    for kind, color, marker, offset in (("dense", DENSE, "o", -13), ("expanded", EXPANDED, "s", 7)):
        means = [100 * row[kind]["accuracy"] for row in rows]
        spread = [100 * row[kind]["accuracy_sd"] for row in rows]
        axes.errorbar(counts, means, spread, color=color, marker=marker, capsize=2, linewidth=1.8, label=kind)
        for place in zip(counts, means, strict=True):
            label = f"{place[1]:.1f}"
            axes.annotate(label, place, (0, offset), textcoords="offset points", ha="center", size=9)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("non-zero parameters, of both")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Banking77, 77 classes", fontsize=11)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def run(page: str) -> None:
    """Draw the picture, from the data of ``fit``."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    neuron(left, "dense: 1 neuron, 9 weights", [2], [DENSE])
    pruned = {("in", 2), ("in", 4), ("out", 1, 0)}
    neuron(middle, "expanded: 2 children, 9 weights", [3.3, 0.7], list(COLORS), pruned)
    accuracies(right, stored("fit/banking77-random")["rows"])
    path = RESULTS.parent / "images" / "expansion.png"
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, facecolor="white"))


def parts(page: str) -> dict[str, dict[str, str]]:
    """Return nothing: no page has numbers of the picture."""
    return {}
