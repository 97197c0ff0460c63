"""Labels, texts and images of tables and of Hugging Face data sets, found part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fpe.data.embed.images import is_image_name
from fpe.data.labels import LABELS, label_names, numbered, some
from fpe.data.parts import TESTS
from fpe.data.tables import PARQUET, is_table, kind_of, read_table
from fpe.errors import ArgumentError, DataError, did_you_mean

if TYPE_CHECKING:
    import pandas


class Part(Protocol):
    """Images or texts of one part."""

    def __len__(self) -> int: ...

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return texts, or what `fpe.data.embed.images.read_image` reads."""

    def name(self, row: int) -> str:
        """Return what a row is called in messages."""

    def mark(self, rows: Iterable[int]) -> bytes:
        """Return what stands for these rows: other contents, other bytes."""


class Column:
    """A column of texts or images.

    Parameters
    ----------
    values : sequence
        Texts, or images as `fpe.data.embed.images.read_image` reads them.
    """

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return the values of these rows."""
        return [self.values[int(row)] for row in rows]

    def name(self, row: int) -> str:
        """Return the number of a row."""
        return f"row {row} (from 0)"

    def mark(self, rows: Iterable[int]) -> bytes:
        """Return a hash of the values."""
        digest = hashlib.sha256()
        for value in self.take(rows):
            digest.update(repr(value).encode())
        return digest.digest()

    def absent(self) -> set[int]:
        """Return the rows without a value; of texts, those of blanks alone too."""
        return {
            row
            for row, value in enumerate(self.values)
            if not isinstance(value, str | bytes | dict) or (isinstance(value, str) and not value.strip())
        }


@dataclass(frozen=True)
class Rows:
    """One part as it was opened.

    Attributes
    ----------
    name : str
        For messages.
    frame : pandas.DataFrame
        All columns but those of images.
    images : dict of str to Column
        The columns of images.
    classes : dict of str to list of str
        Names of the classes by column, where its labels are numbers from 0; −1 is no label.
    notes : list of str
        What was done that the file does not say.
    """

    name: str
    frame: pandas.DataFrame
    images: Mapping[str, Column]
    classes: Mapping[str, list[str]]
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return [*self.images, *map(str, self.frame.columns)]


@dataclass(frozen=True)
class Labelled:
    """Texts or images with labels.

    Attributes
    ----------
    kind : str
        "image" or "text".
    label, column : str
        The columns that were taken.
    parts : dict of str to Part
        ``"train"`` and, where there is one, ``"test"``.
    codes : dict of str to ndarray
        Class number of each row, −1 for those that are left out.
    classes : list of str
        Names of the classes.
    notes : list of str
        What was left out, and why.
    """

    kind: str
    label: str
    column: str
    parts: Mapping[str, Part]
    codes: Mapping[str, np.ndarray]
    classes: list[str]
    notes: list[str]


def read_rows(path: Path) -> Rows:
    """Read a table of any kind that `fpe.data.tables.read_table` reads."""
    table = read_table(path)
    images = {
        name: Column(table.frame[name].tolist()) for name in table.frame if _is_image(table.frame[name])
    }
    return Rows(path.name, table.frame.drop(columns=list(images)), images, _class_names(path), table.notes)


def table_parts(folder: Path) -> dict[str, Path]:
    """Return the tables directly in a folder that are called train, test, validation …, by that name.

    Raises
    ------
    DataError
        If two have the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.partition(".")[0].lower()
        if is_table(path) and name in ("train", *TESTS):
            if name in found:
                raise DataError(f"{folder} has {found[name].name} and {path.name}; leave one of them.")
            found[name] = path
    return found


def _class_names(path: Path) -> dict[str, list[str]]:
    """Return the names of classes that Hugging Face datasets stores in parquet files beside numbers."""
    if kind_of(path) not in PARQUET:
        return {}
    import pyarrow.parquet

    try:
        stored = pyarrow.parquet.read_schema(path).metadata or {}
        features = json.loads(stored[b"huggingface"])["info"]["features"]
        return {
            name: [str(each).strip() for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, AttributeError, ValueError, pyarrow.ArrowException):  # compressed, or none
        return {}


def choose(
    parts: Mapping[str, Rows], label: str | None, column: str | None, source: str, require_test: bool = False
) -> Labelled:
    """Choose the columns of labels and of texts or images; leave out rows without either.

    Parameters
    ----------
    parts : dict of str to Rows
        With ``"train"``; the first of `fpe.data.parts.TESTS` that has labels becomes the test part.
    label, column : str, optional
        Columns; by default the label is found by its name, and images, or else the longest texts, are taken.
    source : str
        For messages.
    require_test : bool, default False
        Whether a test part without labels is an error.

    Raises
    ------
    ArgumentError
        If a column does not exist, or it is doubtful which holds the labels.
    DataError
        If there are no texts or images, or a part has no rows with labels.
    """
    train = parts["train"]
    label = _label_column(train, label, source)
    notes = [f"{rows.name}: {note}" for rows in parts.values() for note in rows.notes]
    kind, column = _item_column(train, column, label, source, notes)
    used, names = {"train": train}, {"train": _labels(train, label)}
    for part in [part for part in TESTS if part in parts]:
        rows = parts[part]
        own = _labels(rows, label) if label in rows.frame else []
        if "test" in used:
            notes.append(f"{rows.name} is not used: the test part is {used['test'].name}")
        elif any(name is not None for name in own):
            used["test"], names["test"] = rows, own
        elif require_test:
            raise DataError(f"{rows.name} has no labels in a column {label!r}, which {source} has.")
        else:
            notes.append(f"{rows.name} is not used: it has no labels")
    items: dict[str, Column] = {}
    for part, rows in used.items():
        if column not in (rows.images if kind == "image" else rows.frame):
            raise DataError(f"{rows.name} has no column {column!r} of {kind}s, which {train.name} has.")
        items[part] = rows.images[column] if kind == "image" else Column(rows.frame[column].tolist())
        unlabelled = {row for row, name in enumerate(names[part]) if name is None}
        absent = items[part].absent()
        for gone, what in ((unlabelled, "no label"), (absent - unlabelled, f"no {kind}")):
            if gone:
                notes.append(
                    f"{len(gone):,} of {len(names[part]):,} rows of {rows.name} have {what}: left out "
                    f"(from 0: {some(sorted(gone))})"
                )
        names[part] = [None if row in absent else name for row, name in enumerate(names[part])]
        if not any(name is not None for name in names[part]):
            raise DataError(
                f"{rows.name} has no rows with both a label in {label!r} and a {kind} in {column!r}."
            )
    only = set(names["train"]) - {None}
    if len(only) == 1:
        raise DataError(
            f"{train.name} has one class only, {only.pop()!r} in {label!r}; a classifier needs two."
        )
    codes, classes = number(names, source, train.classes.get(label))
    return Labelled(kind, label, column, items, codes, classes, notes)


def number(
    names: Mapping[str, Sequence[str | None]], source: str, order: list[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Number the classes of all parts alike, by name; −1 where there is no label.

    Parameters
    ----------
    names : dict of str to sequence
        Class of each row of ``"train"`` and, where there is one, ``"test"``.
    source : str
        For messages.
    order : list of str, optional
        All classes, in the order of their numbers.
    """
    told = {part: [name for name in own if name is not None] for part, own in names.items()}
    y, y_test, classes = numbered(told["train"], told.get("test"), source)
    if order is not None:
        place = np.array([order.index(name) for name in classes], dtype=np.int64)
        y, y_test, classes = place[y], None if y_test is None else place[y_test], order
    codes = {}
    for part, numbers in (("train", y), ("test", y_test)):
        if numbers is not None:
            codes[part] = np.full(len(names[part]), -1, dtype=np.int64)
            codes[part][[name is not None for name in names[part]]] = numbers
    return codes, classes


def _labels(rows: Rows, label: str) -> list[str | None]:
    values, classes = rows.frame[label].tolist(), rows.classes.get(label)
    if classes is None or rows.frame[label].dtype.kind not in "iuf":
        return label_names(values, f"column {label!r} of {rows.name}")
    strange = [value for value in values if value >= len(classes)]
    if strange:
        raise DataError(
            f"column {label!r} of {rows.name} holds {strange[0]}, but names {len(classes)} classes."
        )
    return [classes[int(value)] if value >= 0 else None for value in values]


def _label_column(rows: Rows, label: str | None, source: str) -> str:
    names = [str(name) for name in rows.frame.columns]
    if label is not None:
        if label not in names:
            raise ArgumentError(
                f"{source} has no column {label!r} of labels; name one with --label: there are "
                f"{some(rows.columns, 12)}.{did_you_mean(label, names)}"
            )
        return label
    found = [name for name in names if name.lower() in LABELS]
    if len(found) != 1:
        what = f"several columns that could hold the labels: {', '.join(map(repr, found))}"
        raise ArgumentError(
            f"{source} has {what if found else 'no column of labels that is known'}; name one with --label: "
            f"there are {some(rows.columns, 12)}."
        )
    return found[0]


def _item_column(
    rows: Rows, column: str | None, label: str, source: str, notes: list[str]
) -> tuple[str, str]:
    """Return the kind of the items and their column; note which other texts there are."""
    names = [name for name in rows.columns if name != label]
    if column is not None and column not in names:
        raise ArgumentError(
            f"{source} has no column {column!r} beside the labels; there are {some(names, 12)}."
            f"{did_you_mean(column, names)}"
        )
    asked = names if column is None else [column]
    images = [name for name in asked if name in rows.images]
    if images:
        return "image", images[0]
    lengths = {name: _length(rows.frame[name]) for name in asked}
    texts = sorted((name for name in asked if lengths[name] > (0, 0)), key=lambda n: lengths[n], reverse=True)
    if not texts:
        kinds = ", ".join(f"{name} ({rows.frame[name].dtype})" for name in asked) or "no others"
        raise DataError(f"{source} has no column of images or texts beside {label!r}; there are {kinds}.")
    values = [value.strip() for value in rows.frame[texts[0]].dropna().tolist()]
    if all(is_image_name(value) for value in values if value):
        raise DataError(
            f"column {texts[0]!r} of {source} holds names of image files; give a folder with a folder of "
            "images for each class, or name a column of texts with --column."
        )
    if texts[1:]:
        notes.append(
            f"{texts[0]!r} holds the longest texts; others, for --column, are {some(map(repr, texts[1:]))}"
        )
    return "text", texts[0]


def _length(column: pandas.Series[Any]) -> tuple[float, float]:
    """Return how many words and characters a text has on average; zeros if a column holds anything else.

    Words come first: an identifier can be longer than a text, but is a single word.
    """
    values = _values(column)
    if not values or not all(isinstance(value, str) for value in values):
        return 0, 0
    return (
        sum(len(value.split()) for value in values) / len(values),
        sum(map(len, values)) / len(values),
    )


def _is_image(column: pandas.Series[Any]) -> bool:
    values = _values(column)
    return bool(values) and all(
        isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value) for value in values
    )


def _values(column: pandas.Series[Any]) -> list[Any]:
    """Return what a column that may hold texts or images holds, without missing values."""
    import pandas

    arrow = isinstance(column.dtype, pandas.ArrowDtype)  # of lists
    return [] if arrow or column.dtype.kind != "O" else column.dropna().tolist()
