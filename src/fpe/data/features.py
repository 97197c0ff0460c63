"""Columns of a table as one matrix of float32; what cannot be one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fpe.errors import DataError, raise_problems

if TYPE_CHECKING:
    import pandas

#: A column is refused if rounding to float32 moves its values by this share of their standard deviation.
_ROUNDING = 1e-3
_HALF_A_PLACE = 2.0**-24


def matrix(frame: pandas.DataFrame, source: str) -> tuple[np.ndarray, list[str]]:
    """Turn all columns of a frame into features.

    Numbers and truth values are a feature each, lists of numbers as many as they are long.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns of features.
    source : str
        What they were read from, for messages.

    Returns
    -------
    X : ndarray
        (rows, features), float32, finite.
    names : list of str
        Of the features; those of a list are called ``name[0]`` and so on.

    Raises
    ------
    DataError
        If columns are text, dates or lists of other things or of several lengths; hold missing, infinite or
        too large values, or values that float32 cannot tell apart. All of them are named.
    """
    columns: list[np.ndarray] = []
    names: list[str] = []
    odd: list[str] = []
    problems: list[str] = []
    for name in frame.columns:
        found = _values(frame[name])
        if isinstance(found, str):
            odd.append(f"{name!r} ({found})")
            continue
        problem = _problem(found)
        if problem is not None:
            problems.append(f"column {name!r} of {source} {problem}")
        with np.errstate(over="ignore"):
            columns.append(found.astype(np.float32, copy=False))
        width = 1 if found.ndim == 1 else found.shape[1]
        names += [str(name)] if found.ndim == 1 else [f"{name}[{i}]" for i in range(width)]
    if odd:
        shown = ", ".join(odd[:5]) + (", …" if len(odd) > 5 else "")
        problems.insert(
            0,
            f"{source} has columns that are no numbers: {shown}. Leave them out with --drop, name the column "
            "of labels with --label, or write them as numbers, such as pandas.get_dummies makes.",
        )
    raise_problems(problems[:10], DataError, source)
    if len(columns) == 1:
        return np.ascontiguousarray(columns[0].reshape(len(frame), -1)), names
    X = np.empty((len(frame), len(names)), dtype=np.float32)
    at = 0
    for values in columns:
        width = 1 if values.ndim == 1 else values.shape[1]
        X[:, at : at + width] = values.reshape(len(frame), -1)
        at += width
    return X, names


def merged_columns(X: np.ndarray) -> list[int]:
    """Return the columns of a matrix whose differences are lost in float32."""
    values = X.astype(np.float64)
    if not np.isfinite(values).all():
        return []
    with np.errstate(over="ignore", invalid="ignore"):
        spread = values.std(axis=0)
        largest = np.abs(values).max(axis=0)
        lost = (
            np.isfinite(spread) & (spread > 1e-12 * largest) & (largest * _HALF_A_PLACE > _ROUNDING * spread)
        )
    return [int(i) for i in np.flatnonzero(lost)]


def is_numeric(column: pandas.Series[Any]) -> bool:
    """Return whether a column's values can be features."""
    return not isinstance(_values(column), str)


def _values(column: pandas.Series[Any]) -> np.ndarray | str:
    """Return a column's numbers, (rows,) or for lists (rows, length); or what it holds instead."""
    import pandas
    from pandas.api import types

    kind: Any = column.dtype
    if isinstance(kind, pandas.CategoricalDtype):
        column = column.astype(kind.categories.dtype)
        kind = column.dtype
    if isinstance(kind, pandas.ArrowDtype):
        return _arrow_lists(column)
    if types.is_bool_dtype(kind) or (types.is_numeric_dtype(kind) and not types.is_complex_dtype(kind)):
        exact = np.float32 if kind in (np.float32, np.float16) else np.float64
        return np.asarray(column.to_numpy(dtype=exact, na_value=np.nan))
    if types.is_datetime64_any_dtype(kind) or types.is_timedelta64_dtype(kind):
        return "dates or times"
    given = column.dropna()
    if not len(given):
        return np.full(len(column), np.nan)
    kinds = {type(value) for value in given}
    if kinds <= {str}:
        return "text"
    if all(issubclass(k, list | tuple | np.ndarray) for k in kinds):
        return _lists(column)
    try:
        if kinds & {str, bytes, dict}:
            raise TypeError
        # Such as decimals, or truth values and None.
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError):
        return "of mixed types" if len(kinds) > 1 else kinds.pop().__name__


def _arrow_lists(column: pandas.Series[Any]) -> np.ndarray | str:
    """Read lists from Arrow's flat array of their values, which is copied only if it has gaps."""
    import pyarrow
    import pyarrow.compute

    lists: Any = pyarrow.chunked_array(pyarrow.array(column.array))
    if isinstance(lists, pyarrow.ChunkedArray):
        lists = lists.combine_chunks()
    absent = lists.null_count
    if absent:
        return f"{absent:,} rows without a list"
    inner = lists.type.value_type
    if not (
        pyarrow.types.is_integer(inner) or pyarrow.types.is_floating(inner) or pyarrow.types.is_boolean(inner)
    ):
        return f"lists of {inner}"
    lengths = pyarrow.compute.list_value_length(lists)
    bounds = pyarrow.compute.min_max(lengths).as_py()
    if bounds["min"] != bounds["max"] or not bounds["max"]:
        return f"lists of {bounds['min']} to {bounds['max']} values"
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(column), -1)


def _lists(column: pandas.Series[Any]) -> np.ndarray | str:
    if column.isna().any():
        return f"{int(column.isna().sum()):,} rows without a list"
    lengths = {len(value) for value in column}
    if len(lengths) > 1 or not max(lengths):
        return f"lists of {min(lengths)} to {max(lengths)} values"
    try:
        values = np.array([np.asarray(value) for value in column])
    except ValueError:
        return "lists of lists"
    if values.dtype == object:
        try:
            values = values.astype(np.float64)  # None among numbers is NaN
        except (TypeError, ValueError):
            return "lists of other things than numbers"
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or values.ndim != 2:
        return "lists of other things than numbers"
    return values


def _problem(values: np.ndarray) -> str | None:
    """Return why a column's values cannot be learnt from in float32, None if they can."""
    if not (np.issubdtype(values.dtype, np.floating)):
        values = values.astype(np.float64)
    missing = np.isnan(values)
    if missing.all():
        return "is empty; leave it out with --drop."
    if missing.any():
        first = int(np.argmax(missing.reshape(len(values), -1).any(axis=1)))
        return (
            f"has {int(missing.sum()):,} missing values, NaN, the first in row {first} (from 0); "
            "fill them in, remove those rows, or leave the column out with --drop."
        )
    size = np.abs(values)
    if np.isinf(size).any():
        return (
            f"has {int(np.isinf(size).sum()):,} infinite values; replace them, or leave it out with --drop."
        )
    if size.max() > np.finfo(np.float32).max:
        return f"has values up to {size.max():.3g}, too large for float32; scale it."
    if values.dtype == np.float64 and merged_columns(values.reshape(len(values), -1)):
        return (
            f"has values near {size.max():.10g} whose differences float32 cannot hold; subtract its smallest "
            "value, or leave it out with --drop."
        )
    return None
