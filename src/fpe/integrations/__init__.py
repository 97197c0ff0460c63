"""Callbacks for Lightning and for the Trainer of transformers; the Hub. Each module imports its own library.

With accelerate, or a loop of your own, call `fpe.expand_`.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("events", "hub", "huggingface", "lightning"):
        return importlib.import_module(f"fpe.integrations.{name}")
    raise AttributeError(f"module 'fpe.integrations' has no attribute {name!r}")
