"""Stored results: JSON files, each whole or absent, with what made them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fpe._version import __version__
from fpe.files import write_atomically


def provenance() -> dict[str, Any]:
    """Say what made a result: versions, commit, kind of machine, time. No name of host or user."""
    packages = ("torch", "numpy", "scikit-learn", "safetensors")
    return {
        "fpe": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with ``+`` if its code was changed."""
    here = Path(__file__).resolve().parent.parent
    ask = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*ask, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return None
        commit = subprocess.run([*ask, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*ask, "status", "--porcelain", "."], capture_output=True, text=True)
    except OSError:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_json(path: Path, record: Any) -> None:
    """Write a record as JSON; a crash leaves the old file."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a record, or return None if there is none or it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
