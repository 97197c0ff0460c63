"""The page of bytes, times and training cost: `fpe bench`, and two programs of reproduction/benchmarks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import OUT, copy, made_by, run_fpe, stored, table

from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.targets import verdicts

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
#: Data of the winners, as the page calls them.
DATA = {
    "banking77": "Banking77",
    "cifar100": "CIFAR-100",
    "fashion-mnist": "Fashion-MNIST",
    "letter": "Letter",
}


def run(page: str) -> None:
    """Run what the page shows, and store its data; finished cases and rows are kept."""
    if run_fpe("bench", "--out", OUT / "bench"):
        raise SystemExit("fpe bench failed")
    copy(OUT / "bench" / "results.json", "speed/bench.json")
    for program, *options in (("winners.py", "--out", OUT / "winners"), ("alternatives.py",)):
        subprocess.run([sys.executable, BENCHMARKS / program, *options, "--record"], check=True)


def parts(page: str) -> dict[str, dict[str, str]]:
    return {"speed": of_data(*(stored(f"speed/{name}") for name in ("bench", "winners", "alternatives")))}


def of_data(bench: dict[str, Any], winners: dict[str, Any], others: dict[str, Any]) -> dict[str, str]:
    """Return the parts of the page."""
    rows = winners["rows"]
    asked, targets = verdicts(bench)
    targets += winner_targets(rows)
    met = [row[4] == "yes" for row in targets if row[4] != "not measured"]
    made = bench["provenance"]
    keys = [key for key in ("fpe", "python", "torch", "onnxruntime") if made.get(key)]
    machine = next(case["machine"] for case in bench["cases"] if "machine" in case)
    return {
        "decision": table(
            ["network", "accuracy, points", "bytes", "1 sample", "64 samples", "training"],
            [*searched(rows), *forms(bench)],
        ),
        "met": f"{sum(met)} of {len(met)}",
        "targets": table(asked, targets),
        "winners": table(
            ["data", "non-zeros", "network", "file", "C differs", "int8 agrees", "flash", "flash, int8"],
            [winner(row) for row in rows],
        ),
        "training": table(
            ["network", "", "non-zeros", "step", "1 sample", "64 samples", "memory"],
            [beside(row) for row in others["training"]],
        ),
        "deployment": table(
            ["", "accuracy", "bytes", "one row"],
            [
                [row["way"], f"{row['accuracy']:.1%}", f"{row['bytes']:,}", microseconds(row["seconds"])]
                for row in others["deployment"]
            ],
        ),
        "machine": f"it reads {machine['read'] / 1e9:.0f} GB/s and multiplies matrices at "
        f"{machine['matrix'] / 1e9:,.0f} GFLOP/s",
        "made": f"{bench['config']['rounds']} rounds. {made_by(bench, *keys)}, {made['instructions']}; "
        f"commit `{made['commit']}`, {made['began'][:10]}",
    }


def interval(value: dict[str, Any]) -> str:
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def microseconds(value: dict[str, Any]) -> str:
    return f"{1e6 * value['median']:.2f} [{1e6 * value['low']:.2f}, {1e6 * value['high']:.2f}] µs"


def span(values: Sequence[float], form: str = ".2f") -> str:
    """Write the least and the greatest of several."""
    least, greatest = (f"{value:{form}}" for value in (min(values), max(values)))
    return least if least == greatest else f"{least} to {greatest}"


def searched(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row for winners without a hidden layer, and one for those with, as ranges over the data."""
    kinds = {
        "no hidden layer, pruned": [r for r in rows if r["network"] == "no hidden layer"],
        "hidden layer, pruned": [r for r in rows if r["network"] != "no hidden layer"],
    }
    lines = []
    for name, own in kinds.items():
        if own:
            gains = [gain for r in own if (gain := gained(r)) is not None]
            costs = [cost for gain, cost in gains]
            lines.append([
                f"{name} ({', '.join(dict.fromkeys(DATA.get(r['data'], r['data']) for r in own))})",
                span([gain for gain, _ in gains], "+.1f") if gains else "–",
                span([r["file"] / r["dense_file"] for r in own]),
                *(span([r["latency"][batch]["ratio"]["median"] for r in own]) for batch in ("1", "64")),
                f"{span(costs, '.0f')}, search included" if costs else "–",
            ])  # fmt: skip
    return lines


def gained(row: dict[str, Any]) -> tuple[float, float] | None:
    """Return points of accuracy above the dense network, and the cost of the search in its last trainings."""
    results = stored("budget")["results"]
    own = [r for r in results if (r["data"], r["kind"]) == (row["data"], "searched")]
    own = [r for r in own if r["nonzero"] == row["budget"]]
    if not own:
        return None
    dense = [
        r["accuracy"] for r in results
        if (r["data"], r["hidden"], r["kind"]) == (row["data"], own[0]["hidden"], "dense")
    ]  # fmt: skip
    points = 100 * float(np.mean([r["accuracy"] for r in own]) - np.mean(dense))
    cost = float(np.median([1 + r["search_seconds"] / r["winner_seconds"] for r in own]))
    return points, cost


def forms(bench: dict[str, Any]) -> list[list[str]]:
    """Return a row for each form of a large layer."""
    layers = [("layer", names.PACKED, "blocks, fixed", names.PACKED)]
    layers += [("layer", names.PACKED, "blocks, moving", names.MOVING)]
    layers += [
        ("model", names.FUSED, "blocks, fused", ""),
        ("model", names.FUSED_DENSE, "dense, by the fused code", ""),
    ]
    layers += [("free", names.FAN_IN, "constant fan-in", ""), ("free", names.SPARSE, "free mask", "")]
    lines = []
    for kind, row, label, trained in layers:
        cases = [c for c in bench["cases"] if c["kind"] == kind and c["device"] == "cpu"]
        cases = [c for c in cases if by_name(c["forward"], row) and by_name(c["forward"], names.DENSE)]
        pairs = [(by_name(c["forward"], row), by_name(c["forward"], names.DENSE), c) for c in cases]
        if not pairs:
            continue
        cells = [span([own["stored"] / dense["stored"] for own, dense, _ in pairs])]
        for batch in ("1", "64"):
            ratios = [
                own["batches"][batch]["ratio"]["median"] for own, _, _ in pairs if batch in own["batches"]
            ]
            cells.append(span(ratios) if ratios else "–")
        steps = [
            times["ratio"]["median"]
            for _, _, c in pairs
            for times in by_name(c["training"], trained).get("batches", {}).values()
        ]
        sizes = ", ".join(dict.fromkeys(c["name"].replace("x", " × ") for c in cases))
        lines.append([f"{label} ({sizes})", "–", *cells, span(steps) if steps else "–"])
    return lines


def by_name(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((row for row in rows if row["name"] == name), {})


def winner_targets(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return rows of the table of targets for the files and the C code of winners."""

    def flash(row: dict[str, Any]) -> float:
        return max((row[w]["flash"] - 4096) / row[w]["constants"] for w in ("float32", "int8"))

    asked: list[tuple[str, str, Callable[[Any], float], float, str]] = [
        ("winners: bytes of the file", "≤ 1.3", lambda r: r["file"] / r["dense_file"], 1.3, ".2f"),
        ("winners: C in float32, largest difference over the largest output", "≤ 1e-5",
         lambda r: r["float32"]["difference"], 1e-5, ".0e"),
        ("winners: C in int8, share of classes that differ", "≤ 0.5 %",
         lambda r: 1 - r["int8"]["agreement"], 0.005, ".2%"),
        ("winners: flash less 4 kB, over weights and places", "≤ 1.15", flash, 1.15, ".2f"),
    ]  # fmt: skip
    lines = []
    for what, limit, measure, most, form in asked:
        if not rows:
            lines.append([what, limit, "–", "", "not measured", ""])
            continue
        worst = max(rows, key=measure)
        where = f"{DATA.get(worst['data'], worst['data'])}, {worst['budget']:,}"
        met = "yes" if measure(worst) <= most else "no"
        lines.append([what, limit, f"{measure(worst):{form}}", where, met, ""])
    return lines


def winner(row: dict[str, Any]) -> list[str]:
    plain, rounded = row["float32"], row["int8"]
    return [
        DATA.get(row["data"], row["data"]),
        f"{row['count']:,}",
        row["network"],
        f"{row['file'] / row['dense_file']:.2f}",
        f"{plain['difference']:.0e}",
        f"{rounded['agreement']:.2%}",
        *(f"{own['flash']:,}" for own in (plain, rounded)),
    ]


def beside(row: dict[str, Any]) -> list[str]:
    times = [interval(row[key]["ratio"]) for key in ("step", "forward 1", "forward 64")]
    return [
        row["network"],
        row["way"],
        f"{row['nonzero']:,}",
        *times,
        f"{row['memory']['median'] / 1e6:.1f} MB",
    ]
