"""Training and test parts before they are checked: their names, and their labels as class numbers."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fpe.errors import DataError

#: Names of a test part in files, columns and data sets, the preferred one first.
TESTS = ("test", "testing", "validation", "valid", "val", "dev", "eval")
TRAINS = ("train", "training")
#: Names of the column of labels where none is given.
LABELS = ("label", "fine_label", "labels", "intent", "class", "target")
#: What reading a damaged file raises.
BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Raw:
    """Unchecked features and labels of the parts ``"train"`` and, where there is one, ``"test"``.

    Features are arrays, or frames with the columns of a table.
    """

    parts: dict[str, tuple[Any, np.ndarray]]
    #: Names of the classes, where labels are numbers from 0.
    classes: np.ndarray | None = None
    label: str | None = None
    notes: list[str] = field(default_factory=list)


def label_names(values: Iterable[Any], what: str) -> list[str | None]:
    """Return the class's name of each label: None for None, NaN and blanks; ``"NA"`` and the like are names.

    Whole numbers have the same name as integers and as floats, which they become beside missing ones.
    """
    values = list(values)
    try:
        names = {key: _name(key[1], what) for key in dict.fromkeys((type(value), value) for value in values)}
    except TypeError as error:  # a list has no hash
        raise DataError(f"{what} has lists ({error}); give one name or one number for each row.") from error
    return [names[type(value), value] for value in values]


def _name(value: Any, what: str) -> str | None:
    if value is None or value != value or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float | np.floating):
        if not float(value).is_integer():
            raise DataError(
                f"{what} has numbers that are not whole, such as {value}; give classes. To predict "
                "numbers, use fpe.FPERegressor in Python."
            )
        value = int(value)
    return str(value).strip() or None


def number_classes(
    names: Mapping[str, Sequence[str | None]], source: str, classes: list[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Number the classes of all parts alike, from 0; −1 where a name is None.

    `classes` are in the order of their numbers; by default those of ``names["train"]``, in the order of
    numbers if all are whole numbers, else of the alphabet. A class of the test part alone is an error.
    """
    known = {part: set(own) - {None} for part, own in names.items()}
    strange = sorted(map(str, known.get("test", set()) - known["train"]))
    if strange:
        what = f"{len(strange)} classes that the training part does not have ({some(strange)})"
        raise DataError(f"the test part of {source} has {what}; remove them, or write the names alike.")
    if classes is None:
        classes = sorted(map(str, known["train"]))
        with suppress(ValueError):  # not all are numbers
            classes.sort(key=int)
    number: dict[str | None, int] = {None: -1} | {name: i for i, name in enumerate(classes)}
    codes = {part: np.array([number[name] for name in own], np.int64) for part, own in names.items()}
    return codes, classes


def some(values: Iterable[Any], most: int = 5) -> str:
    """Return the first few values as text."""
    every = list(values)
    return ", ".join(str(v) for v in every[:most]) + (", …" if len(every) > most else "")


def quoted(names: Iterable[str], most: int = 8) -> str:
    """Return the first few names as text, in quotes."""
    return some(map(repr, names), most)


def why_unfit(values: np.ndarray) -> str | None:
    """Return why numbers, (rows, …), cannot be learned from in float32; None if they can.

    Missing, infinite and too large values are refused, and columns whose values float32 rounds by more than a
    thousandth of their standard deviation.
    """
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    largest = np.maximum(-values.min(), values.max())  # NaN where a value is missing
    if not np.isfinite(largest):
        bad = np.isnan(values) if np.isnan(largest) else np.isinf(values)
        if np.isnan(largest) and bad.all():
            return "is empty; fill it in"
        row, *columns = (int(i[0]) for i in np.nonzero(bad))
        where = "".join(f", column {column}" for column in columns)
        what = "missing values, NaN," if np.isnan(largest) else "infinite values,"
        return f"has {bad.sum():,} {what} the first in row {row}{where} (from 0); remove or fill them in"
    if largest > np.finfo(np.float32).max:
        return f"has values up to {largest:.3g}, too large for float32; scale them"
    if values.dtype != np.float64:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        spread, largest = values.std(axis=0), np.maximum(-values.min(axis=0), values.max(axis=0))
        lost = np.isfinite(spread) & (spread > 1e-12 * largest) & (largest * 2.0**-24 > 1e-3 * spread)
    if not lost.any():
        return None
    where = f" in {some(np.flatnonzero(lost))}" if values.ndim > 1 else ""
    return f"has values near {largest.max():.10g}{where} that float32 cannot hold apart; subtract the least"
