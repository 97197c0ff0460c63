"""Callbacks that expand a network while a trainer trains it; each module loads its trainer alone.

`fpe.integrations.lightning.Expand` is for Lightning, `fpe.integrations.huggingface.Expand` for the Trainer of
transformers. With accelerate, or a loop of your own, `fpe.expand_` is the one line.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("huggingface", "lightning"):
        return importlib.import_module(f"fpe.integrations.{name}")
    raise AttributeError(f"module 'fpe.integrations' has no attribute {name!r}")
