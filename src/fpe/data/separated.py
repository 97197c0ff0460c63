"""How a text with separators is laid out: the separator, and whether its first line names the columns."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fpe.errors import DataError

#: What stands for a missing number in a column whose other values are numbers.
MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NAN", "null", "NULL", "None", "?", "-", ".")
)
#: Separators; where several fit equally well, the first. A blank stands for any run of blanks.
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars", " ": "blanks"}
#: Rows that are looked at to find the separator and the line of names.
_SAMPLE = 100


@dataclass(frozen=True)
class Layout:
    """How the text is laid out.

    Attributes
    ----------
    separator : str
        One of `SEPARATORS`.
    names : list of str or None
        A name for each column, stripped, ``""`` for a column without one; None if there is no line of names.
    skipped : int
        Lines before the first row of values.
    """

    separator: str
    names: list[str] | None
    skipped: int


def layout_of(text: bytes, path: Path) -> Layout:
    """Find out how a text is laid out, and check that all its rows have as many fields.

    Parameters
    ----------
    text : bytes
        UTF-8.
    path : Path
        For messages.

    Returns
    -------
    Layout

    Raises
    ------
    DataError
        If rows differ in length.
    """
    with _long_fields():
        try:
            samples = {separator: list(islice(_rows(text, separator), _SAMPLE)) for separator in SEPARATORS}
            separator = max(SEPARATORS, key=lambda s: _fit(samples[s]))
            sample = [fields for fields, _ in samples[separator]]
            first, end = samples[separator][0]
            names = [name.strip() for name in first] if has_names(sample) else None
            lengths = Counter(len(fields) for fields, _ in _rows(text, separator))
        except csv.Error as error:
            raise DataError(f"{path} is not a whole table of separated values ({error}).") from error
        width = len(sample[-1])
        if names is not None:
            lengths[len(names)] -= 1
        if set(+lengths) - {width} or (names is not None and width - len(names) not in (0, 1)):
            number, length = next(
                (line, len(fields)) for fields, line in _rows(text, separator) if len(fields) != len(first)
            )
            raise DataError(
                f"{path} is not a whole table separated by {SEPARATORS[separator]}: line {number} has "
                f"{length} fields, the first line {len(first)}; give each row as many."
            )
    if names is not None and width > len(names):
        # Rows end with a separator; or begin with a name that has no title, as R writes them.
        ended = all(fields[-1] == "" for fields in sample[1:])
        names = [*names, ""] if ended else ["", *names]
    return Layout(separator, names, 0 if names is None else end)


def has_names(rows: list[list[str]]) -> bool:
    """Return whether the first of some rows names the columns.

    It does if it has a word above a column of numbers, or an empty field before words, or if no column is
    made of numbers. Numbers above all columns of numbers are names only if they count from 0 or 1, as those
    do that pandas and many archives write, and what stands above a column of words is not one of its words.
    """
    first, rest = [field.strip() for field in rows[0]], [[f.strip() for f in row] for row in rows[1:]]
    columns = [list(column) for column in zip(*(row[: len(first)] for row in rest), strict=False)]
    numbers = [i for i, column in enumerate(columns) if _all_numbers(column)]
    if first[0] == "" and columns and "" not in columns[0]:
        return True
    if not numbers or any(not _number(first[i]) and first[i] not in MISSING for i in numbers):
        return True
    above = [first[i] for i in numbers if first[i]]
    counted = any(above == [str(k) for k in range(start, start + len(above))] for start in (0, 1))
    if len(above) < 3 or not counted:
        return False
    return all(first[i] not in column for i, column in enumerate(columns) if i not in numbers)


def _fit(sample: list[tuple[list[str], int]]) -> tuple[bool, bool]:
    """Return what a separator is judged by: rows of one length, the first of more than one field."""
    lengths = [len(fields) for fields, _ in sample]
    rows = set(lengths[1:] or lengths)
    whole = len(rows) == 1 and next(iter(rows)) - lengths[0] in (0, 1)
    return whole and lengths[0] > 1, lengths[0] > 1


def _rows(text: bytes, separator: str) -> Iterator[tuple[list[str], int]]:
    """Yield the fields of each row that is not blank, and the number of its last line."""
    lines: Iterable[str] = io.TextIOWrapper(io.BytesIO(text), "utf-8", newline="")
    if separator == " ":
        lines = (line.replace("\t", " ").strip() for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for fields in reader:
        if fields and (len(fields) > 1 or fields[0].strip()):
            yield fields, reader.line_num


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters in a field, which is one of the whole process, for a while."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _all_numbers(column: list[str]) -> bool:
    return any(_number(f) for f in column) and all(_number(f) or f in MISSING for f in column)


def _number(field: str) -> bool:
    if field.lower().lstrip("+-") in ("nan", "inf", "infinity") or "_" in field:
        return False
    try:
        float(field.replace(",", "."))
    except ValueError:
        return False
    return True
