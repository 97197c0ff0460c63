"""Which columns of a table are features, which holds the labels, which rows are the test part."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fpe.data.features import is_numeric, matrix
from fpe.data.labels import LABELS, label_names
from fpe.data.parts import TESTS, TRAINS, Raw
from fpe.data.tables import Table, read_table
from fpe.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Columns:
    """Which columns are what, as asked for; None and nothing where that is to be found."""

    label: str | None = None
    split: str | None = None
    drop: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def given(self) -> list[str]:
        """Return the options that were given."""
        every = {
            "--label": self.label,
            "--split-column": self.split,
            "--drop": self.drop,
            "--features": self.features,
        }
        return [name for name, value in every.items() if value]


def read_parts(path: Path, test: Path | None, asked: Columns) -> Raw:
    """Read a table, and another one or some of its rows as the test part.

    Raises
    ------
    DataError
        If a column is missing, or cannot be what it is asked to be.
    """
    table = read_table(path)
    frame, notes = table.frame, list(table.notes)
    label = _label_of(table, asked, path)
    dropped = _matching(frame, asked.drop, path)
    if asked.split is not None:
        _require(frame, asked.split, path)
    apart = {label, asked.split, *dropped}
    chosen = _matching(frame, asked.features, path) if asked.features else list(frame.columns)
    chosen = [name for name in chosen if name not in apart]
    if not chosen:
        raise DataError(f"{path} has no columns but the labels {label!r}; there is nothing to learn from.")
    unused = [name for name in frame.columns if name not in chosen and name not in (label, asked.split)]
    if unused:
        notes.append(
            f"left out as asked: {', '.join(map(repr, unused[:8]))}{', …' if len(unused) > 8 else ''}"
        )
    other = None
    if test is not None and asked.split is not None:
        raise DataError("both a file and a column say which rows are the test part; give one.")
    if test is not None:
        tested = read_table(test)
        other = tested.frame
        missing = [name for name in (label, *chosen) if name not in other.columns]
        if missing:
            raise DataError(f"{test} has no columns {', '.join(map(repr, missing[:8]))}, which {path} has.")
        notes += [f"{test.name}: {note}" for note in tested.notes if note not in notes]
    elif asked.split is not None:
        frame, other = _split(frame, asked.split, path, notes)
    X, y, features = _arrays(frame, label, chosen, str(path), notes)
    counting = [n for n in chosen if _counts(frame[n])]
    if counting:
        notes.append(
            f"{', '.join(map(repr, counting))} counts the rows: leave it out with --drop if it is no feature"
        )
    X_test = y_test = None
    if other is not None:
        X_test, y_test, _ = _arrays(other, label, chosen, f"{test or path} (test part)", notes)
    return Raw(X, y, X_test, y_test, None, features, label, notes)


def _arrays(
    frame: pandas.DataFrame, label: str, chosen: list[str], source: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names = label_names(frame[label].tolist(), f"column {label!r} of {source}")
    known = np.array([name is not None for name in names])
    if not known.any():
        raise DataError(f"column {label!r} of {source} holds no labels at all.")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} of {len(known):,} rows of {source} have no label: left out")
        frame = frame[known]
    X, features = matrix(frame[chosen], source)
    return X, np.array([name for name in names if name is not None], dtype=object), features


def _label_of(table: Table, asked: Columns, path: Path) -> str:
    frame = table.frame
    if asked.label is not None:
        _require(frame, asked.label, path)
        return asked.label
    dropped = set(_matching(frame, asked.drop, path))
    names = [str(n) for n in frame.columns if n not in dropped and n != asked.split]
    found = [n for n in names if n.lower() in LABELS]
    if len(found) > 1:
        raise DataError(
            f"{path} has several columns that could hold the labels: {', '.join(map(repr, found))}. Name one "
            "with --label, and leave the others out with --drop unless they are features."
        )
    if not found:
        found = [n for n in names if not is_numeric(frame[n]) and _is_text(frame[n])]
    if len(found) != 1:
        shown = ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")
        raise DataError(
            f"{path} has no column 'label'. Name the column of labels with --label; there are {shown}."
        )
    return found[0]


def _is_text(column: pandas.Series[Any]) -> bool:
    given = column.dropna()
    return bool(len(given)) and given.map(lambda value: isinstance(value, str)).all()


def _require(frame: pandas.DataFrame, name: str, path: Path) -> None:
    if name not in frame.columns:
        names = [str(n) for n in frame.columns]
        raise DataError(
            f"{path} has no column {name!r}.{did_you_mean(name, names)} Name the column of labels with "
            f"--label; there are {', '.join(map(repr, names[:12]))}{', …' if len(names) > 12 else ''}."
        )


def _matching(frame: pandas.DataFrame, patterns: tuple[str, ...], path: Path) -> list[str]:
    names = [str(n) for n in frame.columns]
    found: list[str] = []
    for pattern in patterns:
        own = [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]
        if not own:
            raise DataError(f"{path} has no column {pattern!r}.{did_you_mean(pattern, names)}")
        found += [n for n in own if n not in found]
    return found


def _split(
    frame: pandas.DataFrame, column: str, path: Path, notes: list[str]
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    values = np.array(
        [(name or "").lower() for name in label_names(frame[column].tolist(), f"column {column!r}")]
    )
    there = set(values.tolist())
    test = next((name for name in TESTS if name in there), None)
    train = next((name for name in TRAINS if name in there), None)
    if train is None or test is None:
        raise DataError(
            f"column {column!r} of {path} holds {', '.join(sorted(map(repr, there))[:8])}; it must "
            "say 'train' or 'test'."
        )
    rest = int((~np.isin(values, [train, test])).sum())
    if rest:
        notes.append(f"{rest:,} rows are neither {train!r} nor {test!r} in column {column!r}: left out")
    return frame[values == train], frame[values == test]


def _counts(column: pandas.Series[Any]) -> bool:
    """Return whether a column counts the rows from 0 or 1."""
    if column.dtype.kind not in "iuf" or len(column) < 20:
        return False
    values = column.to_numpy()
    return bool(values[0] in (0, 1) and (np.diff(values) == 1).all())
