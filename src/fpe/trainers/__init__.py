"""Callbacks that expand a network while a trainer trains it; each module loads its trainer alone.

`fpe.trainers.lightning.Expand` is for Lightning, `fpe.trainers.huggingface.Expand` for the Trainer of
transformers. With accelerate, or a loop of your own, `fpe.expand_` is the one line.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("huggingface", "lightning"):
        return importlib.import_module(f"fpe.trainers.{name}")
    raise AttributeError(f"module 'fpe.trainers' has no attribute {name!r}")
