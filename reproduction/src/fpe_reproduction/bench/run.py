"""Measure all cases, each in a process of its own, and store them."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fpe._util.files import read_json, write_json
from fpe.compare.runner import run_tasks
from fpe.compare.store import provenance
from fpe.errors import FPEError
from fpe_reproduction.bench.cases import BenchConfig, case_name
from fpe_reproduction.bench.measure import run_case_quietly

#: Lets glibc keep its memory: else the pages of each large output are returned after the call and faulted in
#: again, which takes longer than some products. Other allocators keep them by default.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
#: What a stored case has beside its result.
_RECORD = ("identity", "depends", "seconds", "provenance")


def run_bench(
    config: BenchConfig,
    folder: Path,
    *,
    devices: Sequence[str] = ("cpu",),
    advance: Callable[[str], object] = lambda text: None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure the cases that `folder` has no result of, and store and return ``results.json``.

    A case is stored in ``cases/`` once it is measured, and taken from there if settings, code, versions and
    kind of machine are the same; `fresh` discards stored cases. A case's ``measured`` is the time at which
    the run began that measured it. A failed case has a ``problem`` and no rows, and is measured again next
    time. `advance` gets a text after each case.
    """
    began, stored = now(), folder / "cases"
    if fresh:
        shutil.rmtree(stored, ignore_errors=True)

    def measure(case: dict[str, Any]) -> dict[str, Any]:
        return {**run_apart(case, config), "measured": began}

    def finished(name: str, record: dict[str, Any]) -> None:
        if "problem" in record:
            (stored / f"{name}.json").unlink()
        found = "" if record["measured"] == began else ": found"
        advance(f"{case_name(record)}{found}")

    tasks = {
        re.sub(r"[^\w.-]+", "-", "{device}-{kind}-{name}-x{factor}".format(**case)): {"case": case}
        for case in config.cases(devices)
    }
    records = run_tasks(measure, tasks, stored, conditions(config), jobs=1, on_finished=finished)
    result = {
        "config": asdict(config),
        "environment": KEEP_MEMORY,
        "cases": [{k: v for k, v in r.items() if k not in _RECORD} for r in records.values()],
        "provenance": {**provenance(), **processor(), "began": began},
    }
    write_json(folder / "results.json", result)
    return read_json(folder / "results.json") or {}


def conditions(config: BenchConfig) -> str:
    """Return what times depend on beside the case and the code: settings, versions, kind of machine."""
    settings = {
        k: v for k, v in asdict(config).items() if k not in ("sizes", "free", "files", "factors", "models")
    }
    settings["threads"] = config.threads or torch.get_num_threads()
    made = {k: v for k, v in provenance().items() if k not in ("commit", "written")}
    return json.dumps({**settings, **made, **processor()}, sort_keys=True)


def processor() -> dict[str, Any]:
    """Return the kind of processor and the versions of what exports and runs ONNX."""
    made: dict[str, Any] = {"instructions": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        made["gpu"] = torch.cuda.get_device_name()
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            made[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            made[name] = None
    return made


def now() -> str:
    """Return the time, as results give it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def run_apart(case: dict[str, Any], config: BenchConfig) -> dict[str, Any]:
    """Measure a case in a fresh process; if that fails, return the case with its problem."""
    os.environ.update(KEEP_MEMORY)  # which the new process reads when it starts
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(run_case_quietly, case, config).result()
        except Exception as error:  # of a library, or because the process was killed
            problem = f"the process ended with {type(error).__name__}: {error}"
            return {**case, "problem": problem, "forward": [], "training": []}


def found(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cases that an earlier run measured."""
    began = result["provenance"].get("began")
    return [case for case in result["cases"] if case.get("measured") != began]


def failed(result: dict[str, Any]) -> FPEError | None:
    """Return an error that names the cases that failed, if any did."""
    lines = [f"  - {case_name(case)}: {case['problem']}" for case in result["cases"] if "problem" in case]
    if not lines:
        return None
    return FPEError(f"{len(lines)} of {len(result['cases'])} cases failed:\n" + "\n".join(lines))
