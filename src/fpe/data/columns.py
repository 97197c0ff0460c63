"""Which column of a table is the label, which are features, and which rows are the test part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from fpe.data.encoding import is_text
from fpe.data.parts import LABELS, TESTS, TRAINS, Raw, label_names, quoted
from fpe.data.tables import read_table
from fpe.errors import ArgumentError, DataError, did_you_mean


def read_parts(
    path: Path,
    *,
    test: Path | None = None,
    label: str | None = None,
    split_column: str | None = None,
    drop: Sequence[str] = (),
    features: Sequence[str] = (),
) -> Raw:
    """Read a table, and another one or some of its rows as the test part; see `fpe.data.load`."""
    if test is not None and split_column is not None:
        raise ArgumentError("both a file and a column say which rows are the test part; give one.")
    frame, notes = read_table(path)
    dropped = _matching(frame, drop, path)
    names = [name for name in frame.columns if name not in dropped and name != split_column]
    texts = [name for name in names if is_text(frame[name])]
    label = label_column(names, label, path, texts)
    if label in frame.attrs.get("padded", ()):  # 007 is a name
        frame[label], texts = read_table(path, texts=[label])[0][label], [*texts, label]
    chosen = _matching(frame, features, path) if features else names
    chosen = [name for name in chosen if name in names and name != label]
    if not chosen:
        raise DataError(f"{path} has no columns but the labels {label!r}; there is nothing to learn from.")
    unused = [name for name in frame.columns if name not in (*chosen, label, split_column)]
    if unused:
        notes.append(f"left out as asked: {quoted(unused)}")
    other = None
    if test is not None:
        other, test_notes = read_table(test, (label, *chosen), texts)
        missing = [name for name in (label, *chosen) if name not in other.columns]
        if missing:
            raise DataError(f"{test} has no columns {quoted(missing)}, which {path} has.")
        notes += [f"{test.name}: {note}" for note in test_notes if note not in notes]
    elif split_column is not None:
        require_column(frame.columns, split_column, path)
        frame, other = _split(frame, split_column, path, notes)
    X, y = _labeled(frame, label, chosen, str(path), notes)
    counting = [name for name in chosen if _counts_rows(frame[name])]
    if counting:
        notes.append(f"{quoted(counting)} counts the rows: leave it out with --drop if it is no feature")
    parts = {"train": (X, y)}
    if other is not None:
        parts["test"] = _labeled(other, label, chosen, f"{test or path} (test part)", notes)
    return Raw(parts, None, label, notes)


def label_column(names: Sequence[str], label: str | None, source: object, texts: Sequence[str] = ()) -> str:
    """Return the column of labels: the one asked for, of a usual name, or the only one of `texts`."""
    if label is not None:
        return require_column(names, label, source)
    found = [name for name in names if name.lower() in LABELS] or list(texts)
    if len(found) == 1:
        return found[0]
    what = f"several columns that could be the label, {quoted(found)}" if found else "no column 'label'"
    hint = "name one with --label, and drop others that are no features"
    raise DataError(f"{source} has {what}; {hint}: there are {quoted(names, 12)}.")


def require_column(names: Iterable[str], name: str, source: object) -> str:
    """Return the name of a column, or say which columns there are."""
    names = list(names)
    if name in names:
        return name
    near = did_you_mean(name, names)
    raise ArgumentError(f"{source} has no column {name!r}; there are {quoted(names, 12)}.{near}")


def _matching(frame: pandas.DataFrame, patterns: Sequence[str], path: Path) -> list[str]:
    """Return the columns that are named or matched by patterns."""
    names, found = list(frame.columns), list[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        own = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        found += own or [require_column(names, pattern, path)]
    return list(dict.fromkeys(found))


def _split(
    frame: pandas.DataFrame, column: str, path: Path, notes: list[str]
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Divide the rows by a column that says train or test."""
    names = label_names(frame[column].tolist(), f"column {column!r}")
    values = pandas.Series(names, index=frame.index, dtype=object).fillna("").str.lower()
    train, test = (next((n for n in usual if n in set(values)), None) for usual in (TRAINS, TESTS))
    if train is None or test is None:
        given = quoted(sorted(set(values)))
        raise DataError(f"column {column!r} of {path} has {given}; give 'train' and 'test'.")
    rest = int((~values.isin([train, test])).sum())
    if rest:
        notes.append(f"{rest:,} rows are neither {train!r} nor {test!r} in column {column!r}: left out")
    return frame[values == train], frame[values == test]


def _labeled(
    frame: pandas.DataFrame, label: str, chosen: list[str], source: str, notes: list[str]
) -> tuple[pandas.DataFrame, np.ndarray]:
    """Return the chosen columns and the labels of all rows that have a label."""
    names = np.array(label_names(frame[label].tolist(), f"column {label!r} of {source}"), dtype=object)
    known = np.array([name is not None for name in names])
    if not known.any():
        raise DataError(f"column {label!r} of {source} has no labels at all.")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} of {len(known):,} rows of {source} have no label: left out")
        frame = frame[known]
    return frame[chosen], names[known]


def _counts_rows(column: pandas.Series[Any]) -> bool:
    """Return whether a column counts the rows from 0 or 1."""
    if column.dtype.kind not in "iuf" or len(column) < 20:
        return False
    values = column.to_numpy()
    return bool(values[0] in (0, 1) and (np.diff(values) == 1).all())
