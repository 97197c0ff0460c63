"""Read features and labels from .npz, .parquet and .csv files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fpe.errors import DataError, did_you_mean

#: X, y, X_test, y_test, classes; the last three may be None.
Arrays = tuple[Any, Any, Any, Any, Any]


def read_npz(path: Path, label: str) -> Arrays:
    """Read X_train, y_train, X_test, y_test, or X, y; `label` plays no part."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a whole .npz file of plain arrays ({error}); it may be truncated, or hold Python "
            "objects. Write it again with numpy.savez, labels as numbers or fixed-length strings."
        ) from error
    for names in (("X_train", "y_train", "X_test", "y_test"), ("X_train", "y_train"), ("X", "y")):
        if all(name in arrays for name in names):
            found = [arrays[name] for name in names] + [None] * (4 - len(names))
            return (*found, arrays.get("classes"))
    raise DataError(
        f"{path} holds {', '.join(arrays) or 'nothing'}; give X_train and y_train, with X_test and y_test if "
        "there is a test part, or X and y."
    )


def read_parquet(path: Path, label: str) -> Arrays:
    """Read a table whose column `label` holds the labels; columns of lists count as many features."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({error}); write it again.") from error
    return _columns(table, label, path)


def read_csv(path: Path, label: str) -> Arrays:
    """Read a table with a line of column names, whose column `label` holds the labels."""
    import pyarrow
    import pyarrow.csv

    try:
        table = pyarrow.csv.read_csv(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole table in CSV ({error}).") from error
    return _columns(table, label, path)


def _columns(table: Any, label: str, path: Path) -> Arrays:
    import pyarrow

    if label not in table.column_names:
        raise DataError(
            f"{path} has no column {label!r}.{did_you_mean(label, table.column_names)} Name the column of "
            f"labels with --label; there are {', '.join(map(repr, table.column_names[:12]))}"
            f"{', …' if len(table.column_names) > 12 else ''}."
        )
    if table.num_rows == 0:
        raise DataError(f"{path} has column names but no rows.")
    features, odd = [], []
    for name in table.column_names:
        if name == label:
            continue
        column = table[name].combine_chunks()
        kind = column.type
        if (
            pyarrow.types.is_list(kind)
            or pyarrow.types.is_large_list(kind)
            or pyarrow.types.is_fixed_size_list(kind)
        ):
            array = _list_column(column)
        elif (
            pyarrow.types.is_integer(kind)
            or pyarrow.types.is_floating(kind)
            or pyarrow.types.is_boolean(kind)
        ):
            array = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)[:, None]
        else:
            array = None
        if array is None:
            odd.append(f"{name!r} ({kind})")
        else:
            features.append(array)
    if odd:
        raise DataError(
            f"{path} has columns that are no numbers: {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}. "
            "Turn them into numbers, remove them, or name the column of labels with --label."
        )
    if not features:
        raise DataError(f"{path} has no columns but the labels {label!r}; there is nothing to learn from.")
    if table[label].null_count:
        raise DataError(f"{path} has {table[label].null_count} rows without a label; remove them.")
    y = table[label].combine_chunks().to_numpy(zero_copy_only=False)
    y = y.astype(str) if y.dtype == object else y
    return np.concatenate(features, axis=1), y, None, None, None


def _list_column(column: Any) -> np.ndarray | None:
    """Turn lists of numbers, all of one length, into a matrix; None if they are not."""
    rows = [np.asarray(row) for row in column.to_pylist()]
    lengths = {row.shape for row in rows}
    if len(lengths) != 1 or rows[0].ndim != 1 or not np.issubdtype(rows[0].dtype, np.number):
        return None
    return np.stack(rows).astype(np.float64)
