"""The tables and the figure of ``fpe bench``, and the targets for packed layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpe._util.files import write_atomically
from fpe._util.terminal import text_table
from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.run import found
from fpe_reproduction.report.text import markdown_table

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Target:
    """A target for a measure of a row, at each batch size or at one.

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

    def _values(self, case: dict[str, Any], name: str) -> dict[str, float]:
        """Return the measure of the row of that name by the place where it was measured."""
        for row in case[self.part]:
            if row["name"] == name and self.measure == "stored":
                return {"": row["stored"]}
            if row["name"] == name:
                times = {b: t.get(self.measure) for b, t in row["batches"].items() if self.batch in ("", b)}
                values = {b: v["median"] if isinstance(v, dict) else v for b, v in times.items()}
                return {f" (batch {b})": value for b, value in values.items() if value is not None}
        return {}

    def cell(self, case: dict[str, Any]) -> tuple[str, bool | None]:
        """Write the worst value of a case; tell whether the target is met, None if nothing was measured."""
        values = self._values(case, self.row)
        if self.over:
            others = self._values(case, self.over)
            values = {place: value / others[place] for place, value in values.items() if place in others}
        if not values:
            return "–", None
        most = self.sign == "≤"
        where, worst = (max if most else min)(values.items(), key=lambda item: item[1])
        holds = worst <= self.limit if most else worst >= self.limit
        return f"{worst:.3g}{where}{'' if holds else ' ✗'}", holds


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
#: What is measured of a case.
PARTS = ("forward", "training")


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
        forward, training = (text_table(*_table(case, part, _short, "  × dense")) for part in PARTS)
        own = [*forward, "", *training, *_notes(case)]
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
    forward, training = (markdown_table(*_table(case, part, _long)) for part in PARTS)
    limits, *notes = _notes(case)
    lines = [*forward, "", "A training step:", "", *training, "", f"{limits}.", ""]
    return [*lines, *(f"- {note}." for note in notes), ""]


def _table(case: dict[str, Any], part: str, cell: Callable[[dict[str, Any]], str], note: str = "") -> Table:
    """Return the head and the rows of what was measured forward or in training."""
    rows = []
    for row in case[part]:
        cells, batches = {part: row["name"], "stored": size(row["stored"])}, row["batches"]
        for batch, times in batches.items():
            cells[f"batch {batch}{note}"] = cell(times)
            if part == "training":
                cells[f"batch {batch}, peak"] = size(times["peak"])
        if part == "forward":
            few, many = min(batches, key=int), max(batches, key=int)
            cells[f"of bandwidth, batch {few}"] = f"{batches[few]['bandwidth']:.0%}"
            cells[f"of matrix rate, batch {many}"] = f"{batches[many]['rate']:.0%}"
        rows.append(cells)
    return list(rows[0]), [list(cells.values()) for cells in rows]


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
    import altair as alt
    import pandas as pd

    measured = [case for case in result["cases"] if "problem" not in case]
    cases = [c for c in measured if c["kind"] == "layer" and c["device"] == "cpu"] or measured
    values = [
        {"case": case_name(case), "row": row["name"], "batch": int(batch), **times["ratio"]}
        for case in cases
        for row in case["forward"]
        for batch, times in row["batches"].items()
    ]
    order = {key: list(dict.fromkeys(value[key] for value in values)) for key in ("case", "row", "batch")}
    log, rows, title = alt.Scale(type="log"), alt.Scale(domain=order["row"]), "time / dense parent's"
    batches = alt.Axis(values=order["batch"], format="d", grid=False)
    legend = alt.Legend(
        orient="bottom", title=None, columns=2, labelLimit=400, symbolType="stroke", symbolSize=500
    )
    base = alt.Chart(width=420, height=240).encode(
        alt.X("batch:Q", scale=log, title="samples in a batch", axis=batches),
        color=alt.Color("row:N", scale=rows, legend=legend),
        strokeDash=alt.StrokeDash("row:N", scale=rows, legend=legend),  # for print without colors
    )
    bars = base.mark_rule().encode(alt.Y("low:Q", scale=log, title=title), y2="high:Q")
    lines = base.mark_line().encode(alt.Y("median:Q", axis=alt.Axis(tickCount=4)))
    panels = alt.layer(bars, lines, data=pd.DataFrame(values)).facet(
        alt.Facet("case:N", sort=order["case"], title=None), columns=len(result["config"]["factors"])
    )
    write_atomically(path, lambda file: panels.save(file, format="png", scale_factor=1.5))
