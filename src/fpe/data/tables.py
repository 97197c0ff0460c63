"""Read tables of any common kind into pandas frames: text with separators, JSON and parquet."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpe.data.content import as_utf8, read_bytes
from fpe.data.separated import MISSING, SEPARATORS, Layout, layout_of
from fpe.errors import DataError

if TYPE_CHECKING:
    import pandas

#: Endings of the files that are read as tables, before an ending such as .gz.
SEPARATED = (".csv", ".tsv", ".tab", ".txt", ".data", ".dat")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
TABLES = (*SEPARATED, *PARQUET, *JSON)
#: Names that pandas gave to columns without one, written once more.
_LEFT_OVER = re.compile(r"Unnamed: \d+")


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes
    ----------
    frame : pandas.DataFrame
        Its columns, without its index; rows are numbered from 0.
    named : bool
        Whether the columns' names are the file's; False where it has no line of names.
    notes : list of str
        What was done that the file does not say: an index that was left out, an encoding that was guessed.
    """

    frame: pandas.DataFrame
    named: bool
    notes: list[str]


def is_table(path: Path) -> bool:
    """Return whether a file's name is a table's."""
    return kind_of(path) in TABLES


def kind_of(path: Path) -> str:
    """Return the ending of a file's name in small letters, before that of a compression."""
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in (".gz", ".bz2", ".xz", ".zip"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_frame(path: str | Path) -> pandas.DataFrame:
    """Read a table into a pandas frame, without its index.

    Parameters
    ----------
    path : str or Path
        As for `read_table`.

    Returns
    -------
    pandas.DataFrame
        Numbers as numbers; text as text, also ``"NA"`` and ``"None"``; columns of lists as pandas' Arrow
        type. Rows are numbered from 0.

    Raises
    ------
    DataError
        As `read_table`.
    """
    return read_table(path).frame


def read_table(path: str | Path) -> Table:
    """Read a table, and say what was done that its file does not say.

    What pandas stored as its index, in parquet, and the unnamed first column that ``DataFrame.to_csv``
    writes, are left out. An empty field is a missing value. ``NA``, ``nan``, ``null`` and the like are, too,
    where all other values of a column are numbers; in a column of text they are text.

    Parameters
    ----------
    path : str or Path
        A file whose name ends in ``.csv``, ``.tsv``, ``.tab``, ``.txt``, ``.data`` or ``.dat`` (the separator
        is found: comma, semicolon, tab, bar or blanks; so are the encoding and whether there is a line of
        names), ``.parquet`` or ``.pq``, ``.jsonl``, ``.ndjson`` or ``.json`` (objects line by line, or a list
        of objects); each also compressed by gzip, bzip2, xz or zip.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If the file is missing, empty, broken, or of another kind, has no rows, or two columns of one name.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind not in TABLES:
        raise DataError(f"{path} is no table of a known kind; files can end in {', '.join(TABLES)}.")
    data = read_bytes(path)
    if kind in PARQUET:
        table = _read_parquet(data, path)
    else:
        text, guessed = as_utf8(data, path)
        table = _read_json(text, path) if kind in JSON else _read_separated(text, path)
        if guessed is not None:
            table.notes.append(f"read as {guessed}, for it is not UTF-8")
    if table.frame.empty and not len(table.frame):
        raise DataError(f"{path} has column names but no rows.")
    left_over = [name for name in table.frame.columns if _LEFT_OVER.fullmatch(name)]
    if left_over:
        table.notes.append(
            f"{', '.join(map(repr, left_over))}, an index that was written as a column, is no feature"
        )
    frame = table.frame.drop(columns=left_over)
    if kind not in PARQUET:
        frame = frame.apply(_numbers_where_all_are)
    return Table(frame, table.named, table.notes)


def _read_parquet(data: bytes, path: Path) -> Table:
    import pandas
    import pyarrow
    import pyarrow.parquet

    try:
        arrow = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole parquet file ({error}); write it again.") from error
    _refuse_equal_names(arrow.column_names, path)
    of_lists = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)

    def kept(kind: Any) -> Any:
        """Leave lists in Arrow's arrays: as Python's lists they take many times the memory."""
        return pandas.ArrowDtype(kind) if any(is_of(kind) for is_of in of_lists) else None

    try:
        frame = arrow.to_pandas(types_mapper=kept, split_blocks=True, self_destruct=True)
    except (pyarrow.ArrowException, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read by pandas ({error}).") from error
    notes = []
    if not isinstance(frame.index, pandas.RangeIndex):
        stored = ", ".join(repr(str(name)) for name in frame.index.names if name is not None)
        notes.append(f"pandas' index{f' ({stored})' if stored else ''} is no feature")
    frame.columns = frame.columns.map(str)
    return Table(frame.reset_index(drop=True), True, notes)


def _read_json(text: bytes, path: Path) -> Table:
    import pandas

    try:
        if text.lstrip().startswith(b"["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("a row is no object")
        frame = pandas.DataFrame.from_records(records)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is neither JSON lines nor a list of objects ({error}); write one object for each row."
        ) from error
    frame.columns = frame.columns.map(str)
    return Table(frame.reset_index(drop=True), True, [])


def _read_separated(text: bytes, path: Path) -> Table:
    import pandas

    layout, notes = layout_of(text, path), []
    names = layout.names
    if names is not None:
        _refuse_equal_names([name for name in names if name], path)
    frame = _parsed(text, layout, ".", path)
    if layout.separator != "," and _has_decimal_commas(frame):
        frame = _parsed(text, layout, ",", path)
        notes.append("commas in its numbers are decimal commas")
    if names is None:
        notes.append("its first line holds no names: columns are numbered from 0")
        frame.columns = pandas.Index([str(i) for i in range(frame.shape[1])])
        return Table(frame, False, notes)
    unnamed = next((i for i, name in enumerate(names) if name), len(names))
    if unnamed:
        notes.append(
            f"the first {'column' if unnamed == 1 else f'{unnamed} columns'}, without a name, is no feature"
        )
    kept = [i for i, name in enumerate(names) if i >= unnamed and (name or not frame.iloc[:, i].isna().all())]
    if not all(names[i] for i in kept):
        places = ", ".join(str(i + 1) for i in kept if not names[i])
        raise DataError(f"{path} has values in a column without a name (number {places}); give it one.")
    frame = frame.iloc[:, kept]
    frame.columns = pandas.Index([names[i] for i in kept])
    return Table(frame, True, notes)


def _parsed(text: bytes, layout: Layout, decimal: str, path: Path) -> pandas.DataFrame:
    import pandas

    try:
        return pandas.read_csv(
            io.BytesIO(text),
            sep=r"\s+" if layout.separator == " " else layout.separator,
            header=None,
            skiprows=layout.skipped,
            decimal=decimal,
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
            low_memory=False,
        )
    except pandas.errors.EmptyDataError as error:
        raise DataError(f"{path} has column names but no rows.") from error
    except (ValueError, OSError) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise DataError(
            f"{path} is not a whole table separated by {SEPARATORS[layout.separator]} ({reason})."
        ) from error


def _numbers_where_all_are(column: pandas.Series[Any]) -> pandas.Series[Any]:
    """Turn a column of text into numbers if all its values are, but for those that stand for missing ones."""
    import pandas

    if not pandas.api.types.is_string_dtype(column.dtype) and column.dtype != object:
        return column
    given = column.dropna()
    if not given.map(lambda value: isinstance(value, str)).all():
        return column
    given = given.str.strip()
    told = given[~given.isin(MISSING)]
    if told.empty or told.str.contains("_").any():
        return column
    try:
        numbers = pandas.to_numeric(told)
    except (ValueError, TypeError):
        return column
    return numbers.reindex(column.index)


def _has_decimal_commas(frame: pandas.DataFrame) -> bool:
    """Return whether some column's values are all numbers if a comma is a point, and not all without."""
    for name in frame.columns:
        column = frame[name].dropna()
        if column.empty or not column.map(lambda value: isinstance(value, str)).all():
            continue
        given = column[~column.str.strip().isin(MISSING)]
        if len(given) and given.str.fullmatch(r"\s*[+-]?\d*(,\d+)?([eE][+-]?\d+)?\s*").all():
            return True
    return False


def _refuse_equal_names(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has several columns of one name: {', '.join(map(repr, twice[:5]))}; rename all but one."
        )
