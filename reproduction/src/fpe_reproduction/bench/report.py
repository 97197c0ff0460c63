"""The tables and the figure of ``fpe bench``, and the targets for packed layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.files import write_atomically
from fpe._util.terminal import text_table
from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.run import found
from fpe_reproduction.report.text import markdown_table

Table = tuple[list[str], list[list[str]]]

#: Color, dash and marker of each row, to be told apart in print without colors.
STYLES = {
    names.DENSE: ("black", "-", ""),
    names.PACKED: ("#c1272d", "-", "o"),
    names.GROUPS: ("#c1272d", ":", "p"),
    names.WIDE: ("#6f6f6f", "--", "s"),
    names.PRUNE: ("#6f6f6f", ":", "^"),
    names.CSR: ("#8f8f8f", "-.", "D"),
    names.CODES: ("#1f4e8b", "-", "v"),
    names.TWO_FOUR: ("#2a7d4f", "-", "*"),
    names.ONNX_DENSE: ("black", "--", "x"),
    names.ONNX_PACKED: ("#c1272d", "--", "+"),
}
OTHER_STYLE = ("#1f4e8b", ":", "P")


@dataclass(frozen=True)
class Target:
    """A target for what is measured of a row, at each batch size or at one.

    ``measure`` is "stored", "peak" or "seconds", divided by that of the row ``over``; or "ratio" (to the
    dense parent) or "to_packed".
    """

    what: str
    sign: str
    limit: float
    part: str
    row: str
    measure: str
    over: str = ""
    batch: str = ""

    def values(self, case: dict[str, Any]) -> dict[str, float]:
        """Return the values of a case by the place where they were measured; none if it lacks a row."""
        rows = {row["name"]: row for row in case[self.part]}
        if self.row not in rows or (self.over and self.over not in rows):
            return {}
        own, other = rows[self.row], rows.get(self.over)
        if self.measure == "stored":
            return {"": own["stored"] / rows[self.over]["stored"]}

        def number(times: dict[str, Any]) -> float:
            value = times[self.measure]
            return float(value["median"] if isinstance(value, dict) else value)

        batches = [b for b, t in own["batches"].items() if self.batch in ("", b) and self.measure in t]
        over = {b: number(other["batches"][b]) if other else 1 for b in batches}
        return {f"batch {b}": number(own["batches"][b]) / over[b] for b in batches}

    def cell(self, case: dict[str, Any]) -> tuple[str, bool | None]:
        """Write the worst value of a case and where it was; tell whether the target is met (None without values)."""
        values = self.values(case)
        if not values:
            return "–", None
        where, worst = (max if self.sign == "≤" else min)(values.items(), key=lambda item: item[1])
        holds = worst <= self.limit if self.sign == "≤" else worst >= self.limit
        return f"{worst:.3g}" + (f" ({where})" if where else "") + ("" if holds else " ✗"), holds


# fmt: off
TARGETS = (
    Target("blocks, forward: time over the dense parent's", "≤", 1.05, "forward", names.PACKED, "ratio"),
    Target("wide with zeros: time over the blocks'", "≥", 2, "forward", names.WIDE, "to_packed"),
    Target("CSR, one sample: time over the blocks'", "≥", 10, "forward", names.CSR, "to_packed", batch="1"),
    Target("mask in forward, one sample: time over the blocks'", "≥", 30,
           "forward", names.PRUNE, "to_packed", batch="1"),
    Target("network of blocks: bytes over the dense network's", "≤", 1.02,
           "training", names.PACKED, "stored", names.DENSE),
    Target("blocks, training step: time over the dense network's", "≤", 1.2,
           "training", names.PACKED, "ratio"),
    Target("blocks, training step: peak bytes over the dense network's", "≤", 1.1,
           "training", names.PACKED, "peak", names.DENSE),
    Target("codes of a random split: bytes over the dense parent's", "≤", 1.1,
           "forward", names.CODES, "stored", names.DENSE),
    Target("codes, one sample: time over wide with zeros", "≤", 1,
           "forward", names.CODES, "seconds", names.WIDE, "1"),
)
# fmt: on


def verdicts(result: dict[str, Any]) -> tuple[Table, list[bool | None]]:
    """Compare the layers of 4,096 inputs or more, if there are any, with all targets.

    Returns the head and the rows of a table, and whether each target is met, None where nothing was measured.
    """
    layers = [c for c in result["cases"] if c["kind"] == "layer" and c["device"] == "cpu"]
    cases = [case for case in layers if case["inputs"] >= 4096] or layers
    rows, verdict = [], []
    for target in TARGETS:
        cells = [target.cell(case) for case in cases]
        known = [holds for _, holds in cells if holds is not None]
        verdict.append(all(known) if known else None)
        said = {True: "yes", False: "no", None: "not measured"}[verdict[-1]]
        rows.append([target.what, f"{target.sign} {target.limit:g}", *(text for text, _ in cells), said])
    return (["", "target", *map(case_name, cases), "met"], rows), verdict


def case_name(case: dict[str, Any]) -> str:
    """Return the short name of a case."""
    name = case["name"].replace("x", " × ") if case["kind"] == "layer" else case["name"]
    return f"{name}, α = {case['factor']}" + ("" if case["device"] == "cpu" else f", {case['device']}")


def bench_text(result: dict[str, Any]) -> str:
    """Lay a result of `run_bench` out as text: medians; intervals are in ``results.json``."""
    lines: list[str] = []
    earlier = found(result)
    for case in result["cases"]:
        mark = f"  (found, of the run of {case['measured']})" if case in earlier else ""
        lines.append(case_name(case) + mark)
        if "problem" in case:
            lines += [f"  not measured: {case['problem']}", ""]
            continue
        forward, training = _forward(case, _short, "  × dense"), _training(case, _short)
        own = [*text_table(*forward), "", *text_table(*training), *_notes(case)]
        lines += [*(f"  {line}".rstrip() for line in own), ""]
    asked, _ = verdicts(result)
    if len(asked[0]) > 3:
        lines += ["Targets for packed layers, with the worst measured value", *text_table(*asked)]
    if earlier:
        lines += [
            "",
            f"{len(earlier)} of {len(result['cases'])} cases were measured by an earlier run and found in "
            "its folder; --fresh measures them again.",
        ]
    return "\n".join(lines)


def bench_markdown(case: dict[str, Any]) -> list[str]:
    """Write one case as lines of Markdown, with intervals."""
    if "problem" in case:
        return [f"Not measured: {case['problem']}", ""]
    limits, *notes = _notes(case)
    lines = [*markdown_table(*_forward(case, _long, "")), "", "A training step:", ""]
    lines += [*markdown_table(*_training(case, _long)), "", f"{limits}.", ""]
    return [*lines, *(f"- {note}." for note in notes), ""]


def _forward(case: dict[str, Any], cell: Callable[[dict[str, Any]], str], note: str) -> Table:
    batches = sorted(case["forward"][0]["batches"], key=int)
    few, many = batches[0], batches[-1]
    head = ["forward", "stored", *(f"batch {b}{note}" for b in case["forward"][0]["batches"])]
    head += [f"of bandwidth, batch {few}", f"of matrix rate, batch {many}"]
    rows = []
    for row in case["forward"]:
        times = row["batches"]
        shares = [f"{times[few]['bandwidth']:.0%}", f"{times[many]['rate']:.0%}"]
        rows.append([row["name"], size(row["stored"]), *map(cell, times.values()), *shares])
    return head, rows


def _training(case: dict[str, Any], cell: Callable[[dict[str, Any]], str]) -> Table:
    batches = case["training"][0]["batches"]
    head = ["training", "stored", *(f"batch {b}{what}" for b in batches for what in ("", ", peak"))]
    rows = []
    for row in case["training"]:
        cells = [text for times in row["batches"].values() for text in (cell(times), size(times["peak"]))]
        rows.append([row["name"], size(row["stored"]), *cells])
    return head, rows


def _short(times: dict[str, Any]) -> str:
    return f"{duration(times['seconds']['median'])}  {times['ratio']['median']:.2f}"


def _long(times: dict[str, Any]) -> str:
    seconds, ratio = times["seconds"], times["ratio"]
    return (
        f"{duration(seconds['median'])} [{duration(seconds['low'])}, {duration(seconds['high'])}]<br>"
        f"× {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}], n = {ratio['samples']}"
    )


def duration(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    digits = max(0, 2 - math.floor(math.log10(seconds * scale)))
    return f"{seconds * scale:.{digits}f} {unit}"


def size(count: int) -> str:
    """Write bytes in kB or MB, of which a million bytes make one."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _notes(case: dict[str, Any]) -> list[str]:
    """Say how fast the machine is, then how layers were packed and what is missing."""
    machine = case["machine"]
    limits = (
        f"The machine reads {machine['read'] / 1e9:.1f} GB/s, copies {machine['copy'] / 1e9:.1f} GB/s, "
        f"multiplies matrices at {machine['matrix'] / 1e9:,.0f} GFLOP/s, on {case['threads']} threads"
    )
    return [limits, *(f"{name}: {note}" for name, note in case["notes"].items())]


def bench_figure(result: dict[str, Any], path: Path) -> None:
    """Draw time over the dense parent's by batch size, a panel for each layer and factor on the CPU.

    Lines are medians of the ratios of each round, bars their 95 % intervals. Without layers on the CPU, all
    cases are drawn.
    """
    from matplotlib.figure import Figure

    measured = [case for case in result["cases"] if "problem" not in case]
    cases = [c for c in measured if c["kind"] == "layer" and c["device"] == "cpu"] or measured
    columns = max(1, min(len(result["config"]["factors"]), len(cases)))
    rows = max(1, -(-len(cases) // columns))
    picture = Figure(figsize=(5.4 * columns, 3.3 * rows + 1.6), layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False, sharey=True).flat
    shown: dict[str, Any] = {}
    for case, axes in zip(cases, panels, strict=False):
        shown |= _panel(case, axes)
    for axes in picture.axes[len(cases) :]:
        axes.set_axis_off()
    if shown:
        picture.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, frameon=False)
    write_atomically(path, lambda file: picture.savefig(file, dpi=110))


def _panel(case: dict[str, Any], axes: Any) -> dict[str, Any]:
    """Draw a case; return its lines by name."""
    drawn = {}
    for row in case["forward"]:
        color, dash, marker = STYLES.get(row["name"], OTHER_STYLE)
        ratios = [times["ratio"] for times in row["batches"].values()]
        middle, low, high = (np.array([r[key] for r in ratios]) for key in ("median", "low", "high"))
        style = {"color": color, "linestyle": dash, "marker": marker, "markersize": 5, "linewidth": 1.3}
        batches, spread = [int(batch) for batch in row["batches"]], [middle - low, high - middle]
        drawn[row["name"]] = axes.errorbar(batches, middle, spread, elinewidth=0.8, **style)
    axes.set(xscale="log", yscale="log", xlabel="samples in a batch", ylabel="time / dense parent's")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_title(case_name(case), fontsize=10)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn
