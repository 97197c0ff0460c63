"""Read tables of any common kind into pandas frames: text with separators, JSON and parquet."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import mode
from typing import Any

import pandas
from pandas.api import types

from fpe._util.extras import need
from fpe.data.parts import BROKEN, TESTS, quoted, some
from fpe.errors import DataError

#: Endings of the files that are read as tables, before an ending such as .gz.
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
TABLES = (".csv", ".tsv", ".tab", ".txt", ".data", ".dat", *PARQUET, *JSON)
#: Separators; where several fit equally well, the first. A blank stands for any run of blanks.
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars", " ": "blanks"}
#: What stands for a missing number in a column whose other values are numbers.
MISSING = {"", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NAN", "null", "NULL", "None", "?", "-", "."}
#: Rows that are looked at to find the separator and the line of names.
_SAMPLE = 100
#: Control characters that no table has: other bytes than text.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x7f]")
#: Byte order marks.
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def kind_of(path: Path) -> str:
    """Return the ending of a file's name in small letters, before that of a compression."""
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in (".gz", ".bz2", ".xz", ".zip"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_table(path: Path) -> bool:
    """Return whether a file's name is a table's."""
    return kind_of(path) in TABLES


def table_parts(folder: Path) -> dict[str, Path]:
    """Return the tables directly in a folder that are called train, test, validation …, by that name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.partition(".")[0].lower()
        if is_table(path) and name in ("train", *TESTS):
            if name in found:
                raise DataError(f"{folder} has {found[name].name} and {path.name}; remove one of them.")
            found[name] = path
    return found


def read_table(
    path: Path, known: Collection[str] = (), texts: Collection[str] = ()
) -> tuple[pandas.DataFrame, list[str]]:
    """Read a table; return it without its index, and notes on what the file does not say.

    A first line that has all `known` names is one of names, even of numbers. Columns of `texts` stay text as
    it is written, such as 007 or true; ``attrs["padded"]`` has the columns of numbers that begin with zeros.

    Compression, encoding, separator, decimal commas and the line of names are found. An empty field is a
    missing value; ``NA``, ``null`` and the like are, too, where all other values of a column are numbers. The
    index that pandas stores or writes is dropped. Lists in parquet stay in Arrow's arrays, which take far
    less memory.
    """
    kind, notes = kind_of(path), list[str]()
    if kind not in TABLES:
        raise DataError(f"{path} is no table of a known kind; files can end in {', '.join(TABLES)}.")
    if kind in PARQUET:
        frame = _read_parquet(path, notes)
    else:
        text = _as_utf8(_read_bytes(path), path, notes)
        if kind in JSON:
            frame = _read_json(text, path, texts)
        else:
            frame = _read_separated(text, path, notes, known, texts)
    if not len(frame):
        raise DataError(f"{path} has column names but no rows.")
    # Names that pandas gave to columns without one, written once more.
    indices = [name for name in frame.columns if re.fullmatch(r"Unnamed: \d+", name)]
    if indices:
        notes.append(f"{quoted(indices)}, an index that was written as a column, is no feature")
    return frame.drop(columns=indices), notes


def _read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its first bytes say so."""
    try:
        data = path.read_bytes()
        for mark, decompress in _COMPRESSED.items():
            if data.startswith(mark):
                data = decompress(data)
                break
    except BROKEN as error:
        raise DataError(f"{path} cannot be read ({error}); it may be truncated or broken.") from error
    if not data.strip():
        raise DataError(f"{path} is empty; give a file with data.")
    return data


def _only_member(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"it has {len(names)} files, {some(names)}; give one of them")
        return archive.read(names[0])


#: First bytes of a compressed file, and what decompresses it.
_COMPRESSED = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
    b"PK\x03\x04": _only_member,
}


def _as_utf8(data: bytes, path: Path, notes: list[str]) -> bytes:
    """Return text as UTF-8: a byte order mark says its encoding, or else it is guessed."""
    marked = [encoding for mark, encoding in _MARKS.items() if data.startswith(mark)][:1]
    encodings = marked or ["utf-8", "windows-1252", "latin-1"]
    if not marked and b"\0" in data:  # UTF-16, in which every other byte of ASCII characters is zero
        encodings = ["utf-16-le" if data[1:2001:2].count(0) > data[0:2000:2].count(0) else "utf-16-be"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeError:
            continue
        guessed = encoding not in ("utf-8", *marked)
        if "\0" not in text and not (guessed and _CONTROL.search(text)):
            notes += [f"read as {encoding}, since it is not UTF-8"] * guessed
            return text.encode()
    known = marked[0] if marked else "UTF-8 or UTF-16"
    raise DataError(
        f"{path} is no table: its bytes are no text in {known}. Give text with separators, in UTF-8."
    )


def _read_parquet(path: Path, notes: list[str]) -> pandas.DataFrame:
    pyarrow, parquet = need("pyarrow", "parquet"), need("pyarrow.parquet", "parquet")
    of_lists = [getattr(pyarrow.types, f"is_{kind}") for kind in ("list", "large_list", "fixed_size_list")]

    def in_arrow(kind: Any) -> Any:
        return pandas.ArrowDtype(kind) if any(is_of(kind) for is_of in of_lists) else None

    try:
        with path.open("rb") as file:
            plain = file.read(4) == b"PAR1"
        with parquet.ParquetFile(path if plain else pyarrow.BufferReader(_read_bytes(path))) as file:
            batches = file.iter_batches(4096)  # lists that are read at once take a multiple of their memory
            arrow = pyarrow.Table.from_batches(batches, file.schema_arrow)
        _refuse_equal_names(arrow.column_names, path)
        frame = arrow.to_pandas(types_mapper=in_arrow, split_blocks=True, self_destruct=True)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a whole parquet file ({error}); write it again.") from error
    if not isinstance(frame.index, pandas.RangeIndex):
        names = [str(name) for name in frame.index.names if name is not None]
        notes.append(f"pandas' index{f' ({quoted(names)})' if names else ''} is no feature")
    frame.columns = frame.columns.map(str)
    categories = [name for name in frame if isinstance(frame[name].dtype, pandas.CategoricalDtype)]
    return frame.reset_index(drop=True).astype(dict.fromkeys(categories, object))


def _read_json(text: bytes, path: Path, texts: Collection[str]) -> pandas.DataFrame:
    try:
        if not text.lstrip().startswith(b"["):
            text = b"[%b]" % b",\n".join(line for line in text.splitlines() if line.strip())
        records = json.loads(text)
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("a row is no object")
    except ValueError as error:
        raise DataError(f"{path} is neither JSON lines nor a list of objects ({error}).") from error
    frame = pandas.DataFrame.from_records(records)
    frame.columns = frame.columns.map(str)
    return frame.apply(lambda column: column if column.name in texts else _as_numbers(column))


def _read_separated(
    text: bytes, path: Path, notes: list[str], known: Collection[str], texts: Collection[str]
) -> pandas.DataFrame:
    separator, names, above, sample = _layout(text, path, known)
    kept_as_text = {i for i, name in enumerate(names or ()) if name in texts}
    if names is not None:
        _refuse_equal_names([name for name in names if name], path)
    try:
        frame = pandas.read_csv(
            io.BytesIO(text),
            sep=r"\s+" if separator == " " else separator,
            header=None,
            skiprows=above,
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
            low_memory=False,
            dtype=dict.fromkeys(kept_as_text, object),
        )
    except pandas.errors.EmptyDataError as error:
        raise DataError(f"{path} has column names but no rows.") from error
    except ValueError as error:
        raise DataError(f"{path} is no whole table separated by {SEPARATORS[separator]}: {error}") from error
    with_commas = list[Any]()
    padded = [
        i
        for i in frame
        if frame[i].dtype.kind in "iu" and any(re.match(r"0\d", row[i]) for row in sample if len(row) > i)
    ]
    frame = frame.apply(
        lambda column: (
            column
            if column.name in kept_as_text
            else _as_numbers(column, with_commas if separator != "," else None)
        )
    )
    if with_commas:
        _refuse_grouped(frame, sample, path)
        notes.append("commas in its numbers are decimal commas")
    frame.attrs["padded"] = [name for i, name in enumerate(names or ()) if i in padded]
    if names is None:
        notes.append("its first line has no names: columns are numbered from 0")
        return frame.rename(columns=str)
    unnamed = next((i for i, name in enumerate(names) if name), len(names))
    if unnamed:
        columns = "column" if unnamed == 1 else f"{unnamed} columns"
        notes.append(f"the first {columns}, without a name, is no feature")
    kept = [i for i, name in enumerate(names) if i >= unnamed and (name or not frame[i].isna().all())]
    if not all(names[i] for i in kept):
        places = some(i + 1 for i in kept if not names[i])
        raise DataError(f"{path} has values in a column without a name (number {places}); give it one.")
    return frame[kept].rename(columns=dict(enumerate(names)))


def _layout(
    text: bytes, path: Path, known: Collection[str]
) -> tuple[str, list[str] | None, int, list[list[str]]]:
    """Find the separator, the columns' names, the number of lines above the values, and some rows of these.

    Uneven rows are refused.
    """
    limit = csv.field_size_limit(sys.maxsize)  # one of the whole process
    separator = ","
    try:
        samples = {separator: list(islice(_rows(text, separator), _SAMPLE)) for separator in SEPARATORS}
        separator = max(SEPARATORS, key=lambda s: _fit([len(fields) for fields, _ in samples[s]]))
        sample, above = [fields for fields, _ in samples[separator]], samples[separator][0][1]
        width = mode(len(fields) for fields in sample[1:] or sample)
        first = [name.strip() for name in sample[0]]
        names = first if _has_names(sample) or (known and {*known} <= {*first}) else None
        # Rows can end with a separator, or begin with a name that has no title, as R writes them.
        is_short = names is not None and len(names) == width - 1
        for fields, line in islice(_rows(text, separator), int(is_short), None):
            if len(fields) != width:
                raise csv.Error(f"line {line} has {len(fields)} fields, but other rows have {width}")
    except csv.Error as error:
        raise DataError(f"{path} is no whole table separated by {SEPARATORS[separator]}: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    if names is None:
        return separator, None, 0, sample
    if is_short:
        names.insert(width - 1 if all(fields[-1] == "" for fields in sample[1:]) else 0, "")
    return separator, names, above, sample[1:]


def _rows(text: bytes, separator: str) -> Iterator[tuple[list[str], int]]:
    """Yield the fields of each row that is not blank, and the number of its last line."""
    lines: Iterable[str] = io.TextIOWrapper(io.BytesIO(text), "utf-8", newline="")
    if separator == " ":
        lines = (line.replace("\t", " ").strip() for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for fields in reader:
        if len(fields) > 1 or (fields and fields[0].strip()):
            yield fields, reader.line_num


def _fit(lengths: list[int]) -> tuple[bool, bool]:
    """Return what a separator is judged by: rows of one length, the first of more than one field."""
    rows = set(lengths[1:] or lengths)
    return len(rows) == 1 and rows.pop() - lengths[0] in (0, 1) and lengths[0] > 1, lengths[0] > 1


def _has_names(rows: list[list[str]]) -> bool:
    """Return whether the first of some rows names the columns.

    It does if it has a word above a column of numbers, or an empty field before words, or if no column is
    made of numbers. Numbers above all columns of numbers are names only if they count from 0 or 1, as those
    do that pandas and many archives write, and what stands above a column of words is not one of its words;
    one or two numbers only if there is such a column, of words that come again.
    """
    first, *rest = ([field.strip() for field in row] for row in rows)
    columns = [list(column) for column in zip(*(row[: len(first)] for row in rest), strict=False)]
    numbers = [i for i, column in enumerate(columns) if _are_numbers(column)]
    if not numbers or any(first[i] not in MISSING and not _are_numbers([first[i]]) for i in numbers):
        return True
    if first[0] == "" and "" not in columns[0]:
        return True
    above = [first[i] for i in numbers if first[i]]
    if above not in ([str(k + start) for k in range(len(above))] for start in (0, 1)):
        return False
    words = [(first[i], column) for i, column in enumerate(columns) if i not in numbers]
    repeated = any(2 * len({*column}) <= len(column) for _, column in words)
    return (len(above) >= 3 or repeated) and all(name not in column for name, column in words)


def _are_numbers(fields: list[str]) -> bool:
    return _as_numbers(pandas.Series(fields, dtype=object), with_commas=[]).dtype.kind in "iuf"


def _as_numbers(column: pandas.Series[Any], with_commas: list[Any] | None = None) -> pandas.Series[Any]:
    """Turn text into numbers if all values are, but for those that stand for missing ones.

    Columns with decimal commas are added to `with_commas`; where it is None, these are no numbers.
    """
    given = column.dropna()
    if column.dtype.kind != "O" or types.infer_dtype(given) != "string":
        return column
    given = given.str.strip()
    given = given[~given.isin(MISSING)]
    if given.empty or given.str.contains("_").any():
        return column
    commas = given.str.fullmatch(r"[+-]?\d*(,\d+)?([eE][+-]?\d+)?").all() and given.str.contains(",").any()
    if with_commas is not None and commas:
        if _are_grouped(given, ","):
            return column
        with_commas.append(column.name)
        given = given.str.replace(",", ".")
    try:
        return pandas.to_numeric(given).reindex(column.index)
    except (ValueError, TypeError):
        return column


def _are_grouped(given: pandas.Series[Any], mark: str) -> bool:
    """Tell whether a mark in numbers separates thousands: three digits behind each, and none elsewhere."""
    marked = given.str.contains(mark, regex=False)
    groups = given[marked].str.fullmatch(rf"[+-]?[1-9]\d{{0,2}}(\{mark}\d{{3}})+").all()
    return bool(marked.any() and groups and (~marked).any())


def _refuse_grouped(frame: pandas.DataFrame, sample: list[list[str]], path: Path) -> None:
    """Refuse points between thousands in a table of decimal commas."""
    for i in frame:
        if frame[i].dtype.kind == "f":
            fields = pandas.Series([row[i].strip() for row in sample if len(row) > i], dtype=object)
            given = fields[~fields.isin(MISSING)]
            if _are_grouped(given, "."):
                example = next(text for text in given if "." in text)
                raise DataError(
                    f"{path} has decimal commas, and numbers such as {example!r}, whose points seem to "
                    "separate thousands; write numbers without separators of thousands."
                )


def _refuse_equal_names(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has several columns of one name: {quoted(twice)}; rename all but one.")
