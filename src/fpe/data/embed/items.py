"""What is embedded: images or texts with labels, from folders, tables or Hugging Face data sets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from fpe._util.extras import need
from fpe.data.columns import label_column, require_column
from fpe.data.embed.images import Files, is_image, is_image_name, read_folder
from fpe.data.parts import TESTS, label_names, number_classes, quoted, some
from fpe.data.tables import PARQUET, is_table, kind_of, read_table, table_parts
from fpe.errors import ArgumentError, DataError


class Column:
    """A column of texts, or of images as `fpe.data.embed.images.read_image` takes them."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return the values of these rows."""
        return [self.values[int(row)] for row in rows]

    def name(self, row: int) -> str:
        """Return the name of a row in messages."""
        return f"row {row} (from 0)"

    def digest(self, rows: Iterable[int]) -> bytes:
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


class StoredImages(Column):
    """A column of images in a Hugging Face data set, not decoded, read row by row."""

    def take(self, rows: Iterable[int]) -> list[Any]:  # noqa: D102
        (name,) = self.values.column_names
        return list(self.values[[int(row) for row in rows]][name])

    def absent(self) -> set[int]:
        """Return nothing: reading all images takes too long."""
        return set()


@dataclass(frozen=True)
class Items:
    """Images or texts, their labels, and which of them are taken.

    Attributes
    ----------
    kind : str
        "image" or "text".
    parts : dict of str to Files or Column
        ``"train"`` and, where there is one, ``"test"``.
    rows : dict of str to ndarray
        Numbers of the rows that are taken, in order.
    labels : dict of str to ndarray
        Class number, from 0, of each row that is taken, int64.
    classes : list of str
        Names of the classes.
    left_out : dict of str to list of str
        Files that are not used, by the reason.
    label, column : str or None
        The columns of a table that labels and images or texts were taken from.
    notes : list of str
        What was left out of a table or guessed, and why.
    """

    kind: str
    parts: Mapping[str, Files | Column]
    rows: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    classes: list[str]
    left_out: Mapping[str, list[str]]
    label: str | None
    column: str | None
    notes: list[str]


@dataclass(frozen=True)
class _Rows:
    """A part of a table or data set: a frame, images apart; names of classes where labels are numbers."""

    name: str
    frame: pandas.DataFrame
    images: Mapping[str, Column]
    classes: Mapping[str, list[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Found:
    """What is chosen of a source: the class of each row, None where it is left out."""

    kind: str
    parts: Mapping[str, Files | Column]
    names: Mapping[str, Sequence[str | None]]
    classes: list[str] | None = None
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    column: str | None = None
    notes: list[str] = field(default_factory=list)


def open_items(
    source: str,
    *,
    label: str | None = None,
    column: str | None = None,
    test: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Items:
    """Open a source and choose the images or texts, their labels, and the rows that are taken.

    Parameters
    ----------
    source : str
        A folder with a folder of images for each class, also below ``train`` and ``test``; a table with a column of
        images or texts; a folder with tables ``train`` and ``test``, or with parquet files; a folder that
        ``Dataset.save_to_disk`` wrote; or OWNER/NAME of a data set of the Hugging Face hub, such as
        ``"uoft-cs/cifar100"``.
    label, column : str, optional
        The columns of labels and of images or texts; by default the label is found by its name, and images, or
        else the longest texts, are taken. Rows without either are left out and counted in the notes.
    test : str, optional
        A table, the test part of another one.
    classes : int, optional
        Number of classes to take, chosen at random: 100 of ImageNet-1k's make ImageNet-100 (2.2.2).
    seed : int, default 0
        Of that choice.

    Raises
    ------
    ArgumentError
        If a column does not exist, an option does not apply, or there are fewer classes.
    DataError
        If the source cannot be opened, is doubtful, or has nothing that can be embedded.
    """
    path = Path(source)
    kind = _kind_of_source(path, source)
    if test is not None and kind != "table":
        raise ArgumentError(f"--test can only be used with a table, and {source} is none; leave it out.")
    if kind != "images":
        if kind == "table":
            parts = {"train": _read_rows(path)} | ({} if test is None else {"test": _read_rows(Path(test))})
        elif kind == "tables":
            parts = {part: _read_rows(file) for part, file in table_parts(path).items()}
        else:
            parts = _open_dataset(source)
        found = _choose(parts, label, column, source, require_test=test is not None)
    elif label is not None or column is not None:
        raise ArgumentError(
            f"{source} is a folder of images, where folders are classes; leave out --label and --column."
        )
    else:
        try:
            folder = read_folder(path)
        except OSError as error:  # no permission
            raise DataError(f"{path} cannot be read: {error}.") from error
        found = _Found("image", folder.parts, folder.labels, left_out=folder.left_out)
    codes, names = number_classes(found.names, source, found.classes)
    if classes is not None:
        if not 2 <= classes <= len(names):
            raise ArgumentError(f"classes is {classes}; {source} has {len(names)}, give 2 to {len(names)}.")
        kept = np.sort(np.random.default_rng(seed).choice(len(names), classes, replace=False))
        names = [names[i] for i in kept]
        codes = {
            part: np.where(np.isin(own, kept), np.searchsorted(kept, own), -1) for part, own in codes.items()
        }
    rows = {part: np.flatnonzero(own >= 0) for part, own in codes.items()}
    empty = [part for part, own in rows.items() if not len(own)]
    if empty:
        raise DataError(f"{source} has no labelled rows in its {empty[0]} part.")
    labels = {part: codes[part][own] for part, own in rows.items()}
    return Items(
        *(
            found.kind,
            found.parts,
            rows,
            labels,
            names,
            found.left_out,
            found.label,
            found.column,
            found.notes,
        )
    )


def _kind_of_source(path: Path, source: str) -> str:
    """Return "images" (a folder), "table", "tables" (a folder) or "dataset" (Hugging Face datasets reads it)."""
    if path.is_file():
        return "table"
    if not path.is_dir():
        owner, _, name = source.partition("/")  # OWNER/NAME, and not a path whose end is missing
        if (
            re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
            and not Path(owner).exists()
            and not is_table(Path(name))
        ):
            return "dataset"
        raise DataError(
            f"there is no file or folder {source}; give one, or a data set of the Hugging Face hub as OWNER/NAME."
        )
    if _is_stored(path):
        return "dataset"
    files = [file for file in path.rglob("*") if file.is_file()]
    tables = [file for file in files if is_table(file)]
    if not tables or any(is_image(file) for file in files):
        return "images"
    if "train" in table_parts(path):
        return "tables"
    if any(file.suffix.lower() == ".parquet" for file in tables):
        return "dataset"
    if any(inner.is_dir() for inner in path.iterdir()):
        return "images"  # of kinds that cannot be read, beside notes
    raise DataError(
        f"{path} has tables ({some(file.name for file in tables)}), but none called train, such as train.csv; rename "
        "it, or give the file itself."
    )


def _is_stored(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _open_dataset(source: str) -> dict[str, _Rows]:
    """Open the training part of what Hugging Face datasets reads, and all that could be the test part."""
    datasets, path = need("datasets", "embed"), Path(source)
    datasets.disable_progress_bars()
    try:
        if not path.is_dir():
            opened = datasets.load_dataset(source)
        elif _is_stored(path):
            opened = datasets.load_from_disk(str(path))
        else:
            opened = datasets.load_dataset("parquet", data_dir=str(path))
    except Exception as error:  # a broken file, no network, no such name
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source} could not be opened ({type(error).__name__}: {reason}). Give a folder with a folder of images "
            "for each class, a table with images or texts, or the name of a data set of the Hugging Face hub."
        ) from error
    parts = opened if isinstance(opened, dict) else {"train": opened}
    if len(parts) == 1:
        parts = {"train": next(iter(parts.values()))}
    if "train" not in parts:
        raise DataError(f"{source} has the parts {', '.join(parts)}, but none called train.")
    return {part: _dataset_rows(datasets, parts[part], part) for part in ("train", *TESTS) if part in parts}


def _dataset_rows(datasets: Any, opened: Any, part: str) -> _Rows:
    """Turn a part into a frame; images stay on disk, columns of lists are left out."""
    images, plain, classes = dict[str, Column](), list[str](), dict[str, list[str]]()
    for name, feature in opened.features.items():
        if name.startswith("__index_level_"):  # pandas' index
            continue
        binary = getattr(feature, "dtype", None) in ("binary", "large_binary")
        if (
            binary
            or isinstance(feature, datasets.Image)
            or (isinstance(feature, dict) and "bytes" in feature)
        ):
            column = opened.select_columns([name]).cast_column(name, datasets.Image(decode=False))
            images[name] = StoredImages(column)
        elif isinstance(feature, datasets.Value | datasets.ClassLabel):
            plain.append(name)
            if isinstance(feature, datasets.ClassLabel):
                classes[name] = [each.strip() for each in feature.names]
    return _Rows(f"the {part} part", opened.select_columns(plain).to_pandas(), images, classes)


def _read_rows(path: Path) -> _Rows:
    frame, notes = read_table(path)
    images = {name: Column(frame[name].tolist()) for name in frame if _is_image(frame[name])}
    return _Rows(path.name, frame.drop(columns=list(images)), images, _class_names(path), notes)


def _class_names(path: Path) -> dict[str, list[str]]:
    """Return the names of classes that Hugging Face datasets stores in parquet files beside numbers."""
    if kind_of(path) not in PARQUET:
        return {}
    try:
        stored = need("pyarrow.parquet", "parquet").read_schema(path).metadata
        features = json.loads(stored[b"huggingface"])["info"]["features"].items()
        is_label = {name: f for name, f in features if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
        return {name: [str(each).strip() for each in feature["names"]] for name, feature in is_label.items()}
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ):  # compressed, or none; ArrowInvalid is a ValueError
        return {}


def _choose(
    parts: Mapping[str, _Rows], label: str | None, column: str | None, source: str, require_test: bool
) -> _Found:
    """Choose the columns of labels and of texts or images, and the test part; leave out rows without either."""
    train = parts["train"]
    label = label_column(list(train.frame.columns), label, source)
    notes = [f"{rows.name}: {note}" for rows in parts.values() for note in rows.notes]
    kind, column = _item_column(train, column, label, source, notes)
    used, names = {"train": train}, {"train": _labels(train, label)}
    for rows in (parts[part] for part in TESTS if part in parts):
        own = _labels(rows, label) if label in rows.frame else []
        labelled = any(name is not None for name in own)
        if "test" not in used and labelled:
            used["test"], names["test"] = rows, own
        elif require_test:
            raise DataError(f"{rows.name} has no labels in a column {label!r}, which {source} has.")
        else:
            why = f"the test part is {used['test'].name}" if "test" in used else "it has no labels"
            notes.append(f"{rows.name} is not used: {why}")
    items = dict[str, Files | Column]()
    for part, rows in used.items():
        if column not in (rows.images if kind == "image" else rows.frame):
            raise DataError(f"{rows.name} has no column {column!r} of {kind}s, which {train.name} has.")
        values = rows.images[column] if kind == "image" else Column(rows.frame[column].tolist())
        unlabelled = {row for row, name in enumerate(names[part]) if name is None}
        absent = values.absent()
        for missing, what in ((unlabelled, "no label"), (absent - unlabelled, f"no {kind}")):
            if missing:
                notes.append(
                    f"{len(missing):,} of {len(values):,} rows of {rows.name} have {what}: left out (from 0: "
                    f"{some(sorted(missing))})"
                )
        items[part] = values
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
    return _Found(kind, items, names, train.classes.get(label), {}, label, column, notes)


def _labels(rows: _Rows, label: str) -> list[str | None]:
    values, classes = rows.frame[label].tolist(), rows.classes.get(label)
    if classes is None or rows.frame[label].dtype.kind not in "iuf":
        return label_names(values, f"column {label!r} of {rows.name}")
    strange = [value for value in values if value >= len(classes)]
    if strange:
        raise DataError(
            f"column {label!r} of {rows.name} has {strange[0]}, but names {len(classes)} classes."
        )
    return [classes[int(value)] if value >= 0 else None for value in values]


def _item_column(
    rows: _Rows, column: str | None, label: str, source: str, notes: list[str]
) -> tuple[str, str]:
    """Return the kind of the items and their column; note which other texts there are."""
    names = [name for name in (*rows.images, *rows.frame.columns) if name != label]
    names = names if column is None else [require_column(names, column, source)]
    images = [name for name in names if name in rows.images]
    if images:
        return "image", images[0]
    lengths = {name: _mean_length(rows.frame[name]) for name in names}
    texts = sorted((name for name in names if lengths[name] > (0, 0)), key=lambda n: lengths[n], reverse=True)
    if not texts:
        kinds = ", ".join(f"{name} ({rows.frame[name].dtype})" for name in names) or "no others"
        raise DataError(f"{source} has no column of images or texts beside {label!r}; there are {kinds}.")
    if all(is_image_name(value.strip()) for value in _objects(rows.frame[texts[0]]) if value.strip()):
        raise DataError(
            f"column {texts[0]!r} of {source} has names of image files; give a folder with a folder of images for "
            "each class, or name a column of texts with --column."
        )
    if texts[1:]:
        notes.append(f"{texts[0]!r} has the longest texts; others, for --column, are {quoted(texts[1:])}")
    return "text", texts[0]


def _mean_length(column: pandas.Series[Any]) -> tuple[float, float]:
    """Return the mean count of words, then of characters, since identifiers are one word; zeros if it is no text."""
    values = _objects(column)
    if not values or not all(isinstance(value, str) for value in values):
        return 0, 0
    return float(np.mean([len(value.split()) for value in values])), float(
        np.mean([len(value) for value in values])
    )


def _is_image(column: pandas.Series[Any]) -> bool:
    values = _objects(column)
    return bool(values) and all(
        isinstance(v, bytes) or (isinstance(v, dict) and "bytes" in v) for v in values
    )


def _objects(column: pandas.Series[Any]) -> list[Any]:
    """Return the texts or images of a column, without missing values; nothing for numbers and lists."""
    is_list = isinstance(column.dtype, pandas.ArrowDtype)
    return [] if is_list or column.dtype.kind != "O" else column.dropna().tolist()
