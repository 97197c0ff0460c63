"""How the columns of a table become the inputs of a network: numbers, names as one-hot, lists of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from pandas.api import types

from fpe.data.parts import label_names, quoted, some, why_unfit
from fpe.data.tables import MISSING
from fpe.errors import DataError, raise_problems

#: The most different names in a column that becomes one-hot, and the least rows for each on average.
MOST_NAMES, LEAST_ROWS = 100, 2
#: A number that may have thousands separators, and what has one.
_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}([,.'’ \u00a0\u202f]\d{3})+)([.,]\d+)?")
_GROUPED = re.compile(r"\d[,.'’ \u00a0\u202f]\d{3}(?!\d)")


@dataclass(frozen=True)
class Column:
    """A column of a table, and how it becomes features.

    Attributes
    ----------
    name : str
        Its name in the table.
    kind : str
        ``"number"``: one feature. ``"names"``: one feature for each of the categories, 1 where the row has
        it and else 0. ``"list"``: as many features as the list is long.
    missing : float or None
        Of a number: what replaces missing values, the median of the training rows; None if they are refused.
    categories : tuple of str
        Of names: those of the training rows, in the order of their features.
    length : int
        Of a list.
    """

    name: str
    kind: str = "number"
    missing: float | None = None
    categories: tuple[str, ...] = ()
    length: int = 1

    @property
    def features(self) -> list[str]:
        """The names of its features."""
        if self.kind == "names":
            return [f"{self.name}={category}" for category in self.categories]
        if self.kind == "list":
            return [f"{self.name}[{i}]" for i in range(self.length)]
        return [self.name]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, such as JSON takes."""
        own: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "names":
            return {**own, "categories": list(self.categories)}
        return {**own, **({"length": self.length} if self.kind == "list" else {"missing": self.missing})}

    @classmethod
    def of(cls, column: pandas.Series[Any]) -> Column | str:
        """Choose how a column of training rows becomes features; or say why it cannot."""
        name = str(column.name)
        values = _values(column)
        if isinstance(values, str) and values == "text":
            known = [own for own in _names(column) if own is not None]
            categories = tuple(sorted(set(known)))
            if len(categories) > min(MOST_NAMES, len(known) / LEAST_ROWS):
                if example := grouped_number(known):
                    return f"is no feature: its values are {_written(example)}"
                return (
                    f"is no feature (text: {len(categories):,} different names in {len(known):,} rows); "
                    f"names become one-hot if there are at most {MOST_NAMES}, and half as many as rows: "
                    "embed texts by fpe embed"
                )
            return cls(name, "names", categories=categories)
        if isinstance(values, str):
            return f"is no feature ({values}); make it numbers, or names, or give it as --label"
        if values.ndim == 2:
            return cls(name, "list", length=values.shape[1])
        known_values = values[~np.isnan(values)]
        median = float(np.median(known_values)) if len(known_values) else None  # `encode` refuses no values
        return cls(name, "number", missing=median)


@dataclass(frozen=True)
class Encoding:
    """The columns of a table in the order of their features.

    Examples
    --------
    >>> import pandas
    >>> from fpe.data.encoding import Encoding
    >>> rows = pandas.DataFrame({"age": [30, None, 50], "city": ["Ulm", "Ulm", None]})
    >>> encoding = Encoding.of(rows, "rows", [])
    >>> encoding.features
    ['age', 'city=Ulm']
    >>> encoding.encode(rows, "rows").tolist()
    [[30.0, 1.0], [40.0, 1.0], [50.0, 0.0]]
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, frame: pandas.DataFrame, source: str, notes: list[str]) -> Encoding:
        """Choose an encoding for the training rows of a table; refuse all columns that are no features."""
        columns, problems = list[Column](), list[str]()
        for name in frame.columns:
            made = Column.of(frame[name])
            if isinstance(made, str):
                problems.append(f"column {name!r} of {source} {made}, or leave it out with --drop.")
            else:
                columns.append(made)
        raise_problems(problems[:10], DataError, source)
        for column in columns:
            absent = 0 if column.kind == "list" else int(frame[column.name].isna().sum())
            rows = f"{absent:,} of {len(frame):,} training rows have no"
            if column.kind == "names":
                example = grouped_number(column.categories)
                notes.append(
                    f"{column.name!r} has names: a feature for each of {len(column.categories)}"
                    + (f"; {rows} name, which is no feature" if absent else "")
                    + (f"; these are {_written(example)}" if example else "")
                )
            elif absent and column.missing is not None:
                notes.append(f"{rows} {column.name!r}: replaced by the median, {column.missing:g}")
        return cls(tuple(columns))

    @classmethod
    def from_list(cls, columns: Iterable[dict[str, Any]]) -> Encoding:
        """Return what `to_list` made a list of."""
        return cls(
            tuple(Column(**{**own, "categories": tuple(own.get("categories", ()))}) for own in columns)
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return its columns as plain data, such as JSON takes."""
        return [column.to_dict() for column in self.columns]

    @property
    def features(self) -> list[str]:
        """The names of all features, in their order."""
        return [name for column in self.columns for name in column.features]

    def encode(
        self,
        frame: pandas.DataFrame,
        source: str,
        notes: list[str] | None = None,
        *,
        dtype: Any = np.float32,
        new: bool = False,
    ) -> np.ndarray:
        """Return the features of the rows of a table, (rows, features); columns are found by their names.

        Missing numbers are replaced, missing and unknown names are zeros; `notes` gets what was unknown. If
        the rows are not `new`, but those of a training, values are refused that float32 cannot hold apart.
        """
        missing = [column.name for column in self.columns if column.name not in frame.columns]
        if missing:
            raise DataError(
                f"{source} has no columns {quoted(missing)}, which the model was trained on; it has "
                f"{quoted(frame.columns, 12)}."
            )
        twice = [c.name for c in self.columns if list(frame.columns).count(c.name) > 1]
        if twice:
            raise DataError(f"{source} has several columns called {quoted(twice)}; rename all but one.")
        if not len(frame):
            raise DataError(f"{source} has no rows; give at least one.")
        parts, problems = list[np.ndarray](), list[str]()
        for column in self.columns:
            made = _encoded(column, frame[column.name], [] if notes is None else notes, source)
            why = made if isinstance(made, str) else (_not_finite if new else why_unfit)(made)
            if why:
                hint = "." if new else ", or leave it out with --drop."
                problems.append(f"column {column.name!r} of {source} {why}{hint}")
            elif isinstance(made, np.ndarray):
                parts.append(made.reshape(len(frame), -1).astype(dtype, copy=False))
        raise_problems(problems[:10], DataError, source)
        return parts[0] if len(parts) == 1 else np.hstack(parts)

    def matrix(self, X: Any, notes: list[str], source: str = "X") -> np.ndarray:
        """Return the features of new rows in float64: of a DataFrame, or of an array in the stored order.

        An array has a column for each column of the table, or, if it has numbers only, for each feature.
        Errors and notes call the rows `source`.
        """
        if isinstance(X, pandas.DataFrame):
            return self.encode(X.rename(columns=str), source, notes, dtype=np.float64, new=True)
        X, count = np.asarray(X), len(self.features)
        if X.ndim == 2 and X.dtype.kind in "biuf" and X.shape[1] == count:
            fill = np.array([f for c in self.columns for f in _fills(c)], dtype=np.float64)
            filled = np.where(np.isnan(X), fill, X.astype(np.float64))
            if why := _not_finite(filled):
                raise DataError(f"{source} {why}.")
            return filled
        if X.ndim == 2 and X.shape[1] == len(self.columns):
            frame = pandas.DataFrame(X, columns=[column.name for column in self.columns])
            return self.encode(frame.infer_objects(), source, notes, dtype=np.float64, new=True)
        features = "" if count == len(self.columns) else f", or of the {count} features made of them"
        raise DataError(
            f"{source} has shape {X.shape} and type {X.dtype}; give a table with the columns "
            f"{quoted([column.name for column in self.columns], 12)}, or an array of these "
            f"{len(self.columns)} columns in this order{features}."
        )


def _fills(column: Column) -> Sequence[float | None]:
    return [column.missing] if column.kind == "number" else [None] * len(column.features)


def _encoded(column: Column, values: pandas.Series[Any], notes: list[str], source: str) -> np.ndarray | str:
    """Return the features of a column, or what is wrong with it."""
    if column.kind == "names":
        names = pandas.Series(_names(values), dtype=object)
        codes = pandas.Categorical(names.where(names.isin(column.categories)), column.categories).codes
        unknown = sorted(set(names[(codes < 0) & names.notna()]))
        if unknown:
            count = int(names.isin(unknown).sum())
            notes.append(
                f"{count:,} of {len(names):,} rows of {source} have names in column {column.name!r} that the "
                f"training rows did not have ({some(map(repr, unknown))}): taken for missing"
            )
        return np.asarray(codes[:, None] == np.arange(len(column.categories)), dtype=np.float32)
    made = _values(values)
    if isinstance(made, str) and values.dropna().astype(str).str.strip().isin(MISSING).all():
        made = np.full(len(values), np.nan)
    if isinstance(made, str):
        example = grouped_number(map(str, values.dropna())) if made == "text" else None
        made = _written(example) if example else made
        return f"has {made}; the model was trained on {'lists of ' * (column.kind == 'list')}numbers"
    shape = (len(values), column.length) if column.kind == "list" else (len(values),)
    if made.shape != shape:
        return f"has rows of shape {made.shape[1:]}; the model was trained on {shape[1:]}"
    if column.kind == "list" or column.missing is None:
        return made
    return np.where(np.isnan(made), made.dtype.type(column.missing), made)


def _names(column: pandas.Series[Any]) -> list[str | None]:
    values = column.astype(object).tolist()  # a file of new rows may have numbers alone in a column of names
    texts = [str(v) if isinstance(v, float) and v % 1 > 0 else v for v in values]
    return label_names(texts, f"column {column.name!r}")


def _not_finite(values: np.ndarray) -> str | None:
    """Say where new rows have missing or infinite numbers."""
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    row, *columns = (int(i[0]) for i in np.nonzero(bad))
    where = "".join(f", column {column}" for column in columns)
    what = "missing values, NaN," if np.isnan(values).any() else "infinite values,"
    return f"has {what} the first in row {row}{where} (from 0); fill them in, or leave these rows out"


def grouped_number(texts: Iterable[str]) -> str | None:
    """Return the first number with thousands separators, if all are numbers but those that are missing."""
    given = [text.strip() for text in texts if text.strip() not in MISSING]
    if not all(map(_NUMBER.fullmatch, given)):
        return None
    return next((text for text in given if _GROUPED.search(text)), None)


def _written(example: str) -> str:
    return f"numbers with thousands separators, such as {example!r}; write them without"


def is_text(column: pandas.Series[Any]) -> bool:
    """Return whether a column has texts, or names."""
    return not isinstance(column.dtype, pandas.ArrowDtype) and types.infer_dtype(column) == "string"


def _values(column: pandas.Series[Any]) -> np.ndarray | str:
    """Return a column's numbers, (rows,) or for lists (rows, length); or what it has instead."""
    if isinstance(column.dtype, pandas.CategoricalDtype):
        column = column.astype(object)
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
