"""What can go wrong, each error also a built-in one, so that ordinary ``except`` clauses catch it.

A message says what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import fpe

# Nearly every module imports this one. On file systems that ignore case, the folder FPE of the distribution
# fpe, which is another project, is this folder; its __init__.py is empty.
if "__version__" not in vars(fpe):
    raise ImportError(
        f"the folder {next(iter(fpe.__path__))} has modules of fixed-parameter-expansion, and not its "
        "__init__.py: the package fpe, which is another project, was installed over it or removed. Run: "
        "pip uninstall fpe fixed-parameter-expansion; then install fixed-parameter-expansion again."
    )


class FPEError(Exception):
    """Root of everything that fpe raises on purpose."""


class ArgumentError(FPEError, ValueError):
    """An argument that no model could satisfy: a bad factor, an unknown split."""


class ModelError(FPEError, ValueError):
    """The model cannot be expanded as asked; it has not been changed."""


class BudgetError(FPEError, ValueError):
    """Too few weights can be pruned to make up for the copies."""


class DataError(FPEError, ValueError):
    """Data that cannot be read, or cannot be learned from."""


class CheckpointError(FPEError, ValueError):
    """A saved file that is truncated, foreign, or of another model."""


class WriteError(FPEError, OSError):
    """A file could not be written; an older file of that name is unchanged."""


def raise_problems(problems: Sequence[str], kind: type[FPEError], what: str) -> None:
    """Raise all `problems` as one error of class `kind`; do nothing if there are none."""
    if len(problems) == 1:
        raise kind(problems[0])
    if problems:
        lines = "\n".join(f"  - {p}" for p in problems)
        raise kind(f"{len(problems)} problems with {what}:\n{lines}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``' Did you mean …?'`` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
