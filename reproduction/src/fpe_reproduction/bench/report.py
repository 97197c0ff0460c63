"""The tables of ``fpe bench``."""

from __future__ import annotations

import math
from typing import Any

from fpe._util.terminal import text_table
from fpe_reproduction.bench.cases import case_name
from fpe_reproduction.bench.run import found
from fpe_reproduction.bench.targets import verdicts


def bench_text(result: dict[str, Any]) -> str:
    """Lay a result of `run_bench` out as text: medians; intervals are in ``results.json``."""
    lines: list[str] = []
    earlier = found(result)
    for case in result["cases"]:
        mark = f"  (found, of the run of {case['measured']})" if case in earlier else ""
        lines.append(case_name(case) + mark)
        lines += [*(f"  {line}".rstrip() for line in _of(case)), ""]
    lines += ["Targets, with the worst measured value", *text_table(*verdicts(result), left=6)]
    if earlier:
        lines += [
            "",
            f"{len(earlier)} of {len(result['cases'])} cases were measured by an earlier run and found in "
            "its folder; --fresh measures them again.",
        ]
    return "\n".join(lines)


def _of(case: dict[str, Any]) -> list[str]:
    """Return the lines about a case."""
    if "problem" in case:
        return [f"not measured: {case['problem']}"]
    if "files" in case:
        rows = [
            [
                f"{f['zeros']:.0%}",
                f"{f['nonzero']:,}",
                size(f["bytes"]),
                size(f["asked"]),
                f"{f['ratio']:.3f}",
            ]
            for f in case["files"]
        ]
        return list(text_table(["zeros", "non-zeros", "file", "values and places", "ratio"], rows))
    parts = [text_table(*_table(case, part)) for part in ("forward", "training") if case[part]]
    return [line for part in parts for line in (*part, "")] + _notes(case)


def _table(case: dict[str, Any], part: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of what was measured forward or in training."""
    rows = []
    for row in case[part]:
        cells = {part: row["name"], "stored": size(row["stored"])}
        for batch, times in row["batches"].items():
            seconds = times["seconds"]["median"]
            cells[f"batch {batch}"] = duration(seconds)
            cells[f"× {batch}"] = f"{times['ratio']['median']:.2f}" if "ratio" in times else "–"
            if "bound" in times:
                cells[f"limit {batch}"] = f"{times['bound']['seconds'] / seconds:.0%}"
            if part == "training":
                cells[f"peak {batch}"] = size(times["peak"])
        rows.append(cells)
    return list(rows[0]), [list(cells.values()) for cells in rows]


def duration(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    digits = max(0, 2 - math.floor(math.log10(seconds * scale)))
    return f"{seconds * scale:.{digits}f} {unit}"


def size(count: int) -> str:
    """Write bytes in kB or MB, of which a million bytes make one."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _notes(case: dict[str, Any]) -> list[str]:
    """Say what the columns are, how fast the machine is, how layers were packed, and what is missing."""
    machine = case["machine"]
    others = sorted({f"{r['name']}: {r['over']}" for r in case["forward"] if r["over"] != r["name"]})
    compared = "; ".join(name for name in others if not name.endswith(": dense parent"))
    return [
        "×: time over the dense parent's" + (f" ({compared})" if compared else "")
        + "; limit: the least time that the machine allows, as a share of the time",
        f"The machine reads {machine['read'] / 1e9:.1f} GB/s, copies {machine['copy'] / 1e9:.1f} GB/s, "
        f"multiplies matrices at {machine['matrix'] / 1e9:,.0f} GFLOP/s, on {case['threads']} threads",
        *(f"{name}: {note}" for name, note in case["notes"].items()),
    ]  # fmt: skip
