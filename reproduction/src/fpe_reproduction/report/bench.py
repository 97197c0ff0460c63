"""The tables and the figure of ``fpe bench``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fpe._util.files import write_atomically
from fpe.expansion.plan import text_table
from fpe_reproduction.bench import rows as names
from fpe_reproduction.bench.run import found
from fpe_reproduction.bench.targets import case_name, verdicts
from fpe_reproduction.report.text import markdown_table

#: Grey, dash and marker of each row: to be told apart in print without colours.
STYLES = {
    names.DENSE: ("black", "-", ""),
    names.PACKED: ("#c1272d", "-", "o"),
    names.GROUPS: ("#c1272d", ":", "p"),
    names.WIDE: ("#6f6f6f", "--", "s"),
    names.PRUNE: ("#6f6f6f", ":", "^"),
    names.CSR: ("#8f8f8f", "-.", "D"),
    names.CODES: ("#1f4e8b", "-", "v"),
    names.BITMASK: ("#1f4e8b", ":", "P"),
    names.TWO_FOUR: ("#2a7d4f", "-", "*"),
    names.ONNX_DENSE: ("black", "--", "x"),
    names.ONNX_PACKED: ("#c1272d", "--", "+"),
}


def bench_text(result: dict[str, Any]) -> str:
    """Lay a result of `fpe_reproduction.bench.run.run_bench` out as text: medians; intervals are in ``results.json``."""
    lines: list[str] = []
    earlier = [case_name(case) for case in found(result)]
    for case in result["cases"]:
        name = case_name(case)
        mark = f"  (found, of the run of {case['measured']})" if name in earlier else ""
        lines += [name + mark, *_indented(case), ""]
    asked = verdicts(result)
    if asked["cases"]:
        lines += [
            "What is asked of packed layers, and the worst that was measured",
            *text_table(*_asked(asked)),
        ]
    if earlier:
        lines += [
            "",
            f"{len(earlier)} of {len(result['cases'])} cases were measured by an earlier run and found in "
            "its folder; --fresh measures them anew.",
        ]
    return "\n".join(lines)


def _indented(case: dict[str, Any]) -> list[str]:
    if "problem" in case:
        return [f"  not measured: {case['problem']}"]
    head, rows = _forward(case, _short, "  × dense")
    lines = [*text_table(head, rows), ""]
    head, rows = _training(case, _short)
    lines += [*text_table(head, rows), limits_line(case)]
    return [f"  {line}".rstrip() for line in [*lines, *note_lines(case)]]


def bench_markdown(case: dict[str, Any]) -> list[str]:
    """Write one case as lines of Markdown, with intervals."""
    if "problem" in case:
        return [f"Not measured: {case['problem']}", ""]
    lines = [*markdown_table(*_forward(case, _long, "")), "", "A training step:", ""]
    lines += [*markdown_table(*_training(case, _long)), "", limits_line(case) + "."]
    return [*lines, "", *(f"- {line}." for line in note_lines(case)), ""]


def asked_markdown(result: dict[str, Any]) -> list[str]:
    """Write the table of limits as lines of Markdown."""
    return markdown_table(*_asked(verdicts(result)))


def _asked(asked: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "limit", *asked["cases"], "holds"]
    return head, [
        [row["what"], row["limit"], *map(_worst, row["cells"]), _holds(row["holds"])] for row in asked["rows"]
    ]


def _worst(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "–"
    where = f" ({cell['where']})" if cell["where"] else ""
    return f"{cell['value']:.3g}{where}" + ("" if cell["holds"] else " ✗")


def _holds(holds: bool | None) -> str:
    return {True: "yes", False: "no", None: "not measured"}[holds]


def _forward(case: dict[str, Any], cell: Any, note: str) -> tuple[list[str], list[list[str]]]:
    batches = list(case["forward"][0]["batches"])
    few, many = min(batches, key=int), max(batches, key=int)
    head = ["forward", "stored", *(f"batch {b}{note}" for b in batches)]
    head += [f"of bandwidth, batch {few}", f"of matrix rate, batch {many}"]
    rows = []
    for row in case["forward"]:
        cells = [cell(row["batches"][b]) for b in batches]
        shares = [f"{row['batches'][few]['bandwidth']:.0%}", f"{row['batches'][many]['rate']:.0%}"]
        rows.append([row["name"], size(row["stored"]), *cells, *shares])
    return head, rows


def _training(case: dict[str, Any], cell: Any) -> tuple[list[str], list[list[str]]]:
    batches = list(case["training"][0]["batches"])
    head = ["training", "stored", *(f"batch {b}{what}" for b in batches for what in ("", ", peak"))]
    rows = []
    for row in case["training"]:
        cells = [text for b in batches for text in (cell(row["batches"][b]), size(row["batches"][b]["peak"]))]
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


def limits_line(case: dict[str, Any]) -> str:
    """Say how fast the machine reads and multiplies."""
    machine = case["machine"]
    return (
        f"The machine reads {machine['read'] / 1e9:.1f} GB/s, copies {machine['copy'] / 1e9:.1f} GB/s, "
        f"multiplies matrices at {machine['matrix'] / 1e9:,.0f} GFLOP/s, on {case['threads']} threads"
    )


def note_lines(case: dict[str, Any]) -> list[str]:
    """Say what was chosen and what is missing."""
    return [f"{name}: {note}" for name, note in case["notes"].items()]


def bench_figure(result: dict[str, Any], path: Path) -> None:
    """Draw time relative to the dense parent over batch size, a panel for each layer and factor.

    Lines are medians of the ratios of each round, bars their 95 % intervals.

    Parameters
    ----------
    result : dict
        What ``results.json`` holds. Layers on the CPU are drawn; if there are none, all that was measured.
    path : Path
        The picture; its ending says the format.

    Raises
    ------
    WriteError
        If the file cannot be written.
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
        colour, dash, marker = STYLES[row["name"]]
        ratios = [times["ratio"] for times in row["batches"].values()]
        middles = [ratio["median"] for ratio in ratios]
        spread = [
            [ratio["median"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["median"] for ratio in ratios],
        ]
        drawn[row["name"]] = axes.errorbar(
            [int(batch) for batch in row["batches"]],
            middles,
            spread,
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=5,
            linewidth=1.3,
            elinewidth=0.8,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [int(batch) for batch in case["forward"][0]["batches"]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(case_name(case), fontsize=10)
    axes.set_xlabel("samples in a batch")
    axes.set_ylabel("time / dense parent's")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn
