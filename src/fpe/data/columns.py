"""Tables as features and labels: which column is what, which rows are the test part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from pandas.api import types

from fpe.data.parts import LABELS, TESTS, TRAINS, Raw, label_names, quoted, why_unfit
from fpe.data.tables import read_table
from fpe.errors import ArgumentError, DataError, did_you_mean, raise_problems


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
    label = label_column(names, label, path, [name for name in names if _is_text(frame[name])])
    chosen = _matching(frame, features, path) if features else names
    chosen = [name for name in chosen if name in names and name != label]
    if not chosen:
        raise DataError(f"{path} has no columns but the labels {label!r}; there is nothing to learn from.")
    unused = [name for name in frame.columns if name not in (*chosen, label, split_column)]
    if unused:
        notes.append(f"left out as asked: {quoted(unused)}")
    other = None
    if test is not None:
        other, test_notes = read_table(test)
        missing = [name for name in (label, *chosen) if name not in other.columns]
        if missing:
            raise DataError(f"{test} has no columns {quoted(missing)}, which {path} has.")
        notes += [f"{test.name}: {note}" for note in test_notes if note not in notes]
    elif split_column is not None:
        require_column(frame.columns, split_column, path)
        frame, other = _split(frame, split_column, path, notes)
    X, y, columns = _arrays(frame, label, chosen, str(path), notes)
    counting = [name for name in chosen if _counts_rows(frame[name])]
    if counting:
        notes.append(f"{quoted(counting)} counts the rows: leave it out with --drop if it is no feature")
    parts = {"train": (X, y)}
    if other is not None:
        parts["test"] = _arrays(other, label, chosen, f"{test or path} (test part)", notes)[:2]
    return Raw(parts, None, columns, label, notes)


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


def _arrays(
    frame: pandas.DataFrame, label: str, chosen: list[str], source: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return features, labels and the features' names of all rows that have a label."""
    names = np.array(label_names(frame[label].tolist(), f"column {label!r} of {source}"), dtype=object)
    known = np.array([name is not None for name in names])
    if not known.any():
        raise DataError(f"column {label!r} of {source} has no labels at all.")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} of {len(known):,} rows of {source} have no label: left out")
        frame = frame[known]
    X, features = _matrix(frame[chosen], source)
    return X, names[known], features


def _matrix(frame: pandas.DataFrame, source: str) -> tuple[np.ndarray, list[str]]:
    """Turn columns into float32: a number is a feature, a list of numbers as many as it is long.

    All columns that cannot be features are named in one error.
    """
    columns, names, problems = list[np.ndarray](), list[str](), list[str]()
    for name in frame.columns:
        values, why = _values(frame[name]), None
        if isinstance(values, str):
            why = f"is no feature ({values}); make it numbers as pandas.get_dummies does, give it as --label"
        elif not (why := why_unfit(values)):
            columns.append(values.reshape(len(frame), -1).astype(np.float32, copy=False))
            names += [name] if values.ndim == 1 else [f"{name}[{i}]" for i in range(values.shape[1])]
        if why:
            problems.append(f"column {name!r} of {source} {why}, or leave it out with --drop.")
    raise_problems(problems[:10], DataError, source)
    return columns[0] if len(columns) == 1 else np.hstack(columns), names


def _is_text(column: pandas.Series[Any]) -> bool:
    return not isinstance(column.dtype, pandas.ArrowDtype) and types.infer_dtype(column) == "string"


def _values(column: pandas.Series[Any]) -> np.ndarray | str:
    """Return a column's numbers, (rows,) or for lists (rows, length); or what it has instead."""
    if isinstance(column.dtype, pandas.ArrowDtype):
        return _lists(column)
    found = types.infer_dtype(column)
    if found in ("empty", "boolean", "decimal", "integer", "floating", "mixed-integer-float"):
        exact = np.float32 if column.dtype in (np.float32, np.float16) else np.float64
        return np.asarray(column.to_numpy(dtype=exact, na_value=np.nan))
    if found == "string":
        return "text"
    if found.startswith(("date", "time")):
        return "dates or times"
    if all(isinstance(value, list | tuple | np.ndarray) for value in column.dropna()):
        return _lists(column)
    return f"of type {found}"


def _lists(column: pandas.Series[Any]) -> np.ndarray | str:
    """Return lists of numbers as an array, (rows, length); those in Arrow's flat array are not copied."""
    absent = int(column.isna().sum())
    if absent:
        return f"{absent:,} rows without a list"
    try:
        if isinstance(column.dtype, pandas.ArrowDtype):
            import pyarrow.compute

            lists: Any = pyarrow.chunked_array(pyarrow.array(column.array)).combine_chunks()
            lengths = pyarrow.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
            values = lists.flatten().to_numpy(zero_copy_only=False)
        else:
            lengths = column.map(len)
            values = np.array([value for row in column for value in row])
        if values.dtype == object and not any(isinstance(value, str | bytes) for value in values):
            values = values.astype(np.float64)  # None among numbers is NaN
    except (TypeError, ValueError):
        return "lists of lists"
    if lengths.min() != lengths.max() or not len(values):
        return f"lists of {lengths.min()} to {lengths.max()} values"
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        return "lists of other things than numbers"
    return np.asarray(values.reshape(len(column), -1))


def _counts_rows(column: pandas.Series[Any]) -> bool:
    """Return whether a column counts the rows from 0 or 1."""
    if column.dtype.kind not in "iuf" or len(column) < 20:
        return False
    values = column.to_numpy()
    return bool(values[0] in (0, 1) and (np.diff(values) == 1).all())
