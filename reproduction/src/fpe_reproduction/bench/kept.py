"""Cases that are measured stay measured: a file for each, and what it depends on."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fpe._util.files import read_json, write_json
from fpe.compare.store import code_digest, provenance
from fpe_reproduction.bench.config import BenchConfig

#: What says which cases there are, and nothing of how one is measured.
WHICH = ("sizes", "factors", "models")
#: What has nothing to do with how fast anything is: `code_digest` stands for the commit.
APART = ("commit", "written")


def path_of(case: dict[str, Any], folder: Path) -> Path:
    """Return the file of a case."""
    name = re.sub(r"[^\w.-]+", "-", case["name"])
    return folder / f"{case['device']}-{name}-x{case['factor']}.json"


def conditions(config: BenchConfig) -> dict[str, Any]:
    """Return all that the result of a case depends on, beside the case.

    Parameters
    ----------
    config : BenchConfig
        How it is measured.

    Returns
    -------
    dict
        Settings, code, versions, and the kind of machine, fit for JSON.
    """
    settings = {key: value for key, value in config.to_dict().items() if key not in WHICH}
    settings["threads"] = config.threads or torch.get_num_threads()
    made = {key: value for key, value in {**provenance(), **processor()}.items() if key not in APART}
    return {**settings, **made, "code": code_digest()}


def identity_of(case: dict[str, Any], how: dict[str, Any]) -> str:
    """Return what stands for a case and the conditions under which it is measured."""
    return hashlib.sha256(json.dumps([case, how], sort_keys=True).encode()).hexdigest()[:16]


def processor() -> dict[str, Any]:
    """Say what kind of processor computes, and by which versions of what writes and runs ONNX."""
    made: dict[str, Any] = {"instructions": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        made["gpu"] = torch.cuda.get_device_name()
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            made[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            made[name] = None
    return made


def find(case: dict[str, Any], how: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return what was measured of a case under these conditions, if it was."""
    record = read_json(path_of(case, folder))
    if record is None or record.get("identity") != identity_of(case, how):
        return None
    return dict(record["result"])


def keep(case: dict[str, Any], how: dict[str, Any], folder: Path, result: dict[str, Any]) -> None:
    """Store what was measured of a case, in the place of what was measured under other conditions."""
    record = {"identity": identity_of(case, how), "conditions": how, "result": result}
    write_json(path_of(case, folder), record)
