"""Optional libraries, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from fpe.errors import ArgumentError


def need(module: str, extra: str) -> Any:
    """Import an optional library, or say with which extra of fpe it is installed."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        raise ArgumentError(
            f"this needs {package} ({error}): pip install 'fixed-parameter-expansion[{extra}]'"
        ) from error
