"""All cases, each in a process of its own, and what is stored of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fpe.bench.config import BenchConfig
from fpe.errors import FPEError
from fpe.experiments.store import provenance
from fpe.files import write_json

#: Lets glibc keep the memory that it was given: else the pages of each large output are handed back after the
#: call and faulted in anew, which takes longer than some products. Other allocators keep them anyway.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def devices() -> tuple[str, ...]:
    """Return what there is to measure on."""
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def run_bench(
    config: BenchConfig,
    folder: Path,
    on: Sequence[str] = ("cpu",),
    advance: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure every case and store ``results.json``.

    Parameters
    ----------
    config : BenchConfig
        What to measure.
    folder : Path
        Where the result goes.
    on : sequence of str
        Devices: ``"cpu"``, ``"cuda"``.
    advance : callable
        Gets a short text after each step; there are ``len(cases) * steps_of(config)``.

    Returns
    -------
    dict
        What was stored: ``config``, ``cases``, ``environment``, ``provenance``. A case that failed holds
        its ``problem`` and no rows.

    Raises
    ------
    WriteError
        If the result cannot be written.
    """
    cases = [run_apart(case, config, advance) for case in config.cases(on)]
    result = {
        "config": config.to_dict(),
        "environment": KEEP_MEMORY,
        "cases": cases,
        "provenance": {**provenance(), **_processor()},
    }
    write_json(folder / "results.json", result)
    return result


def run_apart(case: dict[str, Any], config: BenchConfig, advance: Callable[[str], object]) -> dict[str, Any]:
    """Measure a case in a fresh process; if it fails, return the case with its problem."""
    command = [sys.executable, "-m", "fpe.bench.worker", json.dumps(case), json.dumps(config.to_dict())]
    result = None
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **KEEP_MEMORY}
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                record = json.loads(line)
                if "done" in record:
                    advance(record["done"])
                result = record.get("result", result)
        finally:
            if process.poll() is None and result is None:
                process.kill()
        code = process.wait()
        errors.seek(0)
        said = errors.read().strip()
    if result is None:
        last = said.splitlines()[-1] if said else "it said nothing"
        return {**case, "problem": f"the process ended with {code}: {last}", "forward": [], "training": []}
    return dict(result)


def _processor() -> dict[str, Any]:
    """Say what kind of processor computed, and by which version of onnxruntime."""
    import torch

    made: dict[str, Any] = {"instructions": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        made["gpu"] = torch.cuda.get_device_name()
    try:
        made["onnxruntime"] = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        made["onnxruntime"] = None
    return made


def failed(result: dict[str, Any]) -> FPEError | None:
    """Return an error that names the cases that failed, if there are any."""
    lines = [
        f"  - {case['name']}, factor {case['factor']}, {case['device']}: {case['problem']}"
        for case in result["cases"]
        if "problem" in case
    ]
    if not lines:
        return None
    return FPEError(f"{len(lines)} of {len(result['cases'])} cases failed:\n" + "\n".join(lines))
