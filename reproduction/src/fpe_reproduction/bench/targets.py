"""What is asked of packed layers, and how far a result of ``fpe bench`` meets it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.cases import case_name


@dataclass(frozen=True)
class Value:
    """A measured ratio: its median and interval, where it was measured, and what the machine allows."""

    median: float
    low: float
    high: float
    where: str
    least: float | None = None
    by: str = ""

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.median:.2f}{interval}"


@dataclass(frozen=True)
class Target:
    """A limit of the ratios of a row, in cases of some kinds and names and at some batch sizes, or at all.

    If no case of these names was measured, all of these kinds count; of several rows, a case's first.
    """

    what: str
    limit: float
    row: str | tuple[str, ...]
    kinds: tuple[str, ...]
    part: str = "forward"
    measure: str = "ratio"  # to the row that it is compared to; or "peak", over the dense parent's
    batch: str = ""
    only: tuple[str, ...] = ()

    def values(self, result: dict[str, Any]) -> list[Value]:
        """Return what was measured."""
        own = [c for c in result["cases"] if c["kind"] in self.kinds and c["device"] == "cpu"]
        cases = [c for c in own if c["name"] in self.only] or own
        if self.part == "files":
            return [
                Value(f["ratio"], f["ratio"], f["ratio"], f"{case_name(c)}, {f['zeros']:.0%} zeros")
                for c in cases
                for f in c.get("files", ())
            ]
        return [value for case in cases for value in self._of(case)]

    def _of(self, case: dict[str, Any]) -> Iterator[Value]:
        rows = {row["name"]: row for row in case[self.part]}
        wanted = (self.row,) if isinstance(self.row, str) else self.row
        own = next((rows[name] for name in wanted if name in rows), None)
        if own is None:
            return
        other = rows.get(own["over"])
        for batch, times in own["batches"].items():
            if self.batch not in ("", batch) or other is None:
                continue
            where = f"{case_name(case)}, {batch} sample{'' if batch == '1' else 's'}"
            if self.measure == "peak":
                ratio = times["peak"] / other["batches"][batch]["peak"]
                yield Value(ratio, ratio, ratio, where)
            elif "ratio" in times:
                ratio, bound = times["ratio"], times.get("bound")
                value = Value(ratio["median"], ratio["low"], ratio["high"], where)
                if bound is not None:
                    parents = other["batches"][batch]["seconds"]["median"]
                    value = replace(value, least=bound["seconds"] / parents, by=bound["by"])
                yield value

    def worst(self, result: dict[str, Any]) -> Value | None:
        """Return the largest ratio, or None if nothing was measured."""
        return max(self.values(result), key=lambda value: value.median, default=None)


_MODELS, _LARGE = ("model",), ("4096x4096", "GPT-2 MLP 768-3072-768")
_BOTH = ("layer", "model")
# fmt: off
TARGETS = (
    Target("blocks, whole models, fused if possible: time", 1.35, (names.FUSED, names.PACKED), _MODELS),
    Target("the same, compiled as a whole: time over the compiled parent's", 1.1,
           (names.COMPILED_FUSED, names.COMPILED), _MODELS),
    Target("whole models in onnxruntime: time over the parent's there", 1.1, names.ONNX_PACKED, _MODELS),
    Target("blocks, layers of 4,096 inputs: time", 1.05, names.PACKED, ("layer",)),
    Target("free mask, 75 % zeros, one sample: time", 1.2, names.SPARSE, ("free",), batch="1"),
    Target("free mask, 75 % zeros, 64 samples: time", 2.5, names.SPARSE, ("free",), batch="64"),
    Target("training step with moving blocks: time", 1.2, names.MOVING, _BOTH, "training", only=_LARGE),
    Target("training step with moving blocks: peak memory", 1.1, names.MOVING, _BOTH, "training", "peak",
           only=_LARGE),
    Target("files of free masks, 50 to 90 % zeros: bytes over values and places", 1.02, "", ("files",),
           "files"),
)
# fmt: on


def met(value: Value | None, limit: float) -> bool | None:
    """Tell whether the median is within the limit; None if nothing was measured."""
    return None if value is None else value.median <= limit


def why(value: Value, limit: float) -> str:
    """Say what the machine allows where a limit is missed."""
    if value.median <= limit or value.least is None:
        return ""
    verdict = "so it cannot be met on this machine" if value.least > limit else "which is not what limits it"
    return f"{value.by} alone takes {value.least:.2f} of the parent's time, {verdict}"


def verdicts(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table of all targets, with the worst measured value of each."""
    rows = []
    for target in TARGETS:
        worst = target.worst(result)
        said = {True: "yes", False: "no", None: "not measured"}[met(worst, target.limit)]
        measured = ["–", "", said, ""]
        if worst is not None:
            measured = [str(worst), worst.where, said, why(worst, target.limit)]
        rows.append([target.what, f"≤ {target.limit:g}", *measured])
    return ["× the dense parent of the same count", "asked", "worst", "where", "met", "why not"], rows
