"""What made a stored result."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fpe._version import __version__


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
