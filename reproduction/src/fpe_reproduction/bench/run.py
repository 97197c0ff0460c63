"""All cases, each in a process of its own, and what is stored of them."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fpe._util.files import write_json
from fpe.compare.store import provenance
from fpe.errors import FPEError
from fpe_reproduction.bench.case import steps_of
from fpe_reproduction.bench.config import BenchConfig
from fpe_reproduction.bench.kept import conditions, find, keep, processor

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
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure every case that `folder` has no result of, and store ``results.json``.

    Each case is stored once it is measured, and taken from there if it was measured before by the same
    settings, code and versions on the same kind of machine. All of one case is measured in one run.

    Parameters
    ----------
    config : BenchConfig
        What to measure.
    folder : Path
        Where the result goes; each case into ``cases/``.
    on : sequence of str
        Devices: ``"cpu"``, ``"cuda"``.
    advance : callable
        Gets a short text after each step; there are ``len(cases) * steps_of(config)``.
    fresh : bool, default False
        Throw away the cases of an earlier run.

    Returns
    -------
    dict
        What was stored: ``config``, ``cases``, ``environment``, ``provenance``. Each case says by
        ``measured`` when the run began that measured it; that of this run is ``provenance["began"]``. A case
        that failed holds its ``problem`` and no rows, and is measured again next time.

    Raises
    ------
    WriteError
        If the result cannot be written.
    KeyboardInterrupt
        After Ctrl-C, with a message that says what is finished and how to go on.
    """
    began = now()
    kept, how = folder / "cases", {**conditions(config), "environment": KEEP_MEMORY}
    if fresh:
        shutil.rmtree(kept, ignore_errors=True)
    asked = config.cases(on)
    cases: list[dict[str, Any]] = []
    try:
        for case in asked:
            result = find(case, how, kept)
            if result is not None:
                for _ in range(steps_of(config)):
                    advance(f"{case['name']} α={case['factor']}: found")
            else:
                result = {**run_apart(case, config, advance), "measured": began}
                if "problem" not in result:
                    keep(case, how, kept, result)
            cases.append(result)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped. {len(cases)} of {len(asked)} cases are finished and kept in {kept}; "
            "run the same command again to go on from there."
        ) from None
    result = {
        "config": config.to_dict(),
        "environment": KEEP_MEMORY,
        "cases": cases,
        "provenance": {**provenance(), **processor(), "began": began},
    }
    write_json(folder / "results.json", result)
    return result


def now() -> str:
    """Return the time, as results give it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def found(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cases that an earlier run had measured."""
    began = result["provenance"].get("began")
    return [case for case in result["cases"] if case.get("measured") != began]


def run_apart(case: dict[str, Any], config: BenchConfig, advance: Callable[[str], object]) -> dict[str, Any]:
    """Measure a case in a fresh process; if it fails, return the case with its problem."""
    command = [
        sys.executable,
        "-m",
        "fpe_reproduction.bench.worker",
        json.dumps(case),
        json.dumps(config.to_dict()),
    ]
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
