"""What the benchmarks share: runs by turns, medians, and recording what is printed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpe._util.files import write_atomically, write_json
from fpe.compare.store import provenance

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """Read options with these defaults from the command line, and --record."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        many = isinstance(value, list)
        kind = type(value[0] if many else value)
        parser.add_argument(f"--{name}", type=kind, default=value, nargs="+" if many else None)
    parser.add_argument("--record", action="store_true", help="write the result to docs/results, too")
    return parser.parse_args()


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes."""
    start = clock()
    action()
    return clock() - start


def by_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Let each run measure once in each round, in an order that turns around; return an array for each.

    What slows the machine slows all runs of a round alike, so ratios are those of one round.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            taken[name].append(runs[name]())
    return {name: np.array(values) for name, values in taken.items()}


def spread(values: np.ndarray, form: str = ".2f") -> str:
    """Write the median and the range."""
    return f"{np.median(values):{form}} ({values.min():{form}} – {values.max():{form}})"


def made() -> str:
    """Name versions, machine and commit."""
    by = provenance()
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return (
        f"torch {by['torch']}, numpy {by['numpy']}, {by['machine']}, {threads} threads, {instructions}, "
        f"commit `{by['commit']}`."
    )


def record(name: str, result: str | dict[str, Any]) -> None:
    """Write values to docs/results/NAME.json, or text after the mark in docs/results/NAME.md."""
    if isinstance(result, dict):
        write_json(RESULTS / f"{name}.json", {**result, "provenance": provenance()})
        return
    page = RESULTS / f"{name}.md"
    prose, mark, _ = page.read_text(encoding="utf-8").partition("<!-- measured -->\n")
    assert mark, f"{page} has no place for the result: <!-- measured -->"
    write_atomically(page, lambda file: file.write_text(f"{prose}{mark}{result}\n", encoding="utf-8"))
