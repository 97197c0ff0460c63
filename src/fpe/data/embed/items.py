"""What is embedded: images or texts with labels, from folders, tables or Hugging Face data sets."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from fpe._util.extras import need
from fpe.data.columns import label_column, require_column
from fpe.data.embed.images import Column, Items, is_image, is_image_name, read_folder
from fpe.data.parts import TESTS, label_names, number_classes, quoted, some
from fpe.data.tables import PARQUET, is_table, kind_of, read_table, table_parts
from fpe.errors import ArgumentError, DataError


class StoredImages(Column):
    """A column of images in a Hugging Face data set, not decoded, read row by row."""

    def take(self, rows: Iterable[int]) -> list[Any]:  # noqa: D102
        (name,) = self.values.column_names
        return list(self.values[[int(row) for row in rows]][name])


@dataclass(frozen=True)
class _Rows:
    """A part of a table or data set: a frame, images apart; names of classes where labels are numbers."""

    name: str
    frame: pandas.DataFrame
    images: Mapping[str, Column]
    classes: Mapping[str, list[str]]
    notes: Sequence[str] = ()


def open_items(
    source: str,
    *,
    label: str | None = None,
    column: str | None = None,
    test: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Items:
    """Choose images or texts of a source, their labels and rows; see `fpe.data.embed.run.embed`."""
    path = Path(source)
    if test is not None and not path.is_file():
        raise ArgumentError(f"--test can only be used with a table; {source} is none.")
    parts = _read_parts(path, source, test)
    if parts is not None:
        items = _choose(parts, label, column, source, require_test=test is not None)
    elif label is not None or column is not None:
        raise ArgumentError(f"{source} is a folder of images; leave out --label and --column.")
    else:
        try:
            items = read_folder(path)
        except OSError as error:  # no permission
            raise DataError(f"{path} cannot be read: {error}.") from error
    codes, names = number_classes(items.names, source, items.classes or None)
    if classes is not None:
        if not 2 <= classes <= len(names):
            raise ArgumentError(f"classes is {classes}; {source} has {len(names)}, give 2 to {len(names)}.")
        kept = np.sort(np.random.default_rng(seed).choice(len(names), classes, replace=False))
        new = np.full(len(names) + 1, -1)  # the last is that of rows that are left out
        new[kept] = np.arange(classes)
        names, codes = [names[i] for i in kept], {part: new[own] for part, own in codes.items()}
    rows = {part: np.flatnonzero(own >= 0) for part, own in codes.items()}
    for part in rows:
        if not len(rows[part]):
            raise DataError(f"{source} has no labelled rows in its {part} part.")
    labels = {part: codes[part][own] for part, own in rows.items()}
    return dataclasses.replace(items, classes=names, rows=rows, labels=labels)


def _read_parts(path: Path, source: str, test: str | None) -> dict[str, _Rows] | None:
    """Read a table, a folder of tables or a data set of Hugging Face; return None for images."""
    if path.is_file():
        return {"train": _read_rows(path)} | ({} if test is None else {"test": _read_rows(Path(test))})
    if not path.is_dir():
        owner, _, name = source.partition("/")
        is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
        if is_name and not Path(owner).exists() and not is_table(Path(name)):  # no path whose end is missing
            return _read_dataset(source, lambda datasets: datasets.load_dataset(source))
        raise DataError(f"there is no file or folder {source}; data sets of the hub are called OWNER/NAME.")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _read_dataset(source, lambda datasets: datasets.load_from_disk(source))
    files = [file for file in path.rglob("*") if file.is_file()]
    tables = [file for file in files if is_table(file)]
    if not tables or any(map(is_image, files)):
        return None
    if "train" in (parts := table_parts(path)):
        return {part: _read_rows(file) for part, file in parts.items()}
    if any(file.suffix.lower() == ".parquet" for file in tables):
        return _read_dataset(source, lambda datasets: datasets.load_dataset("parquet", data_dir=source))
    if any(inner.is_dir() for inner in path.iterdir()):
        return None  # images of kinds that cannot be read, beside notes
    names = some(file.name for file in tables)
    raise DataError(f"{path} has tables ({names}), but none called train; rename one, or give the file.")


def _read_dataset(source: str, open_: Callable[[Any], Any]) -> dict[str, _Rows]:
    """Open the training part of what Hugging Face datasets reads, and all that could be the test part."""
    datasets = need("datasets", "embed")
    datasets.disable_progress_bars()
    try:
        opened = open_(datasets)
    except Exception as error:  # a broken file, no network, no such name
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"datasets could not open {source} ({type(error).__name__}: {reason}).") from error
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
        struct = isinstance(feature, dict) and "bytes" in feature
        if binary or struct or isinstance(feature, datasets.Image):
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
    except (LookupError, TypeError, AttributeError, ValueError):  # compressed, or without names
        return {}


def _choose(
    parts: Mapping[str, _Rows], label: str | None, column: str | None, source: str, require_test: bool
) -> Items:
    """Choose the columns of labels and of items, and the test part; leave out rows without either."""
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
    items = dict[str, Column]()
    for part, rows in used.items():
        if column not in (rows.images if kind == "image" else rows.frame):
            raise DataError(f"{rows.name} has no column {column!r} of {kind}s, which {train.name} has.")
        items[part] = values = rows.images[column] if kind == "image" else Column(rows.frame[column].tolist())
        is_stored = isinstance(values, StoredImages)  # reading these takes too long
        given = [is_stored or _is_given(values.values[row]) for row in range(len(names[part]))]
        has_label = [name is not None for name in names[part]]
        names[part] = [name if own else None for name, own in zip(names[part], given, strict=True)]
        if not any(name is not None for name in names[part]):
            raise DataError(f"{rows.name} has no rows with a label in {label!r} and a {kind} in {column!r}.")
        absent = np.logical_not(given) & has_label
        for missing, what in ((np.logical_not(has_label), "no label"), (absent, f"no {kind}")):
            if missing.any():
                where = f"{missing.sum():,} of {len(missing):,} rows of {rows.name}"
                notes.append(f"{where} have {what}: left out (from 0: {some(np.flatnonzero(missing))})")
    if len(set(names["train"]) - {None}) == 1:
        raise DataError(f"{train.name} has only one class in {label!r}; a classifier needs two.")
    return Items(kind, items, names, train.classes.get(label, []), {}, label, column, notes)


def _is_given(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, bytes | dict)


def _labels(rows: _Rows, label: str) -> list[str | None]:
    values, classes = rows.frame[label].tolist(), rows.classes.get(label)
    if classes is None or rows.frame[label].dtype.kind not in "iuf":
        return label_names(values, f"column {label!r} of {rows.name}")
    strange = [value for value in values if value >= len(classes)]
    if strange:
        raise DataError(f"column {label!r} of {rows.name} has {strange[0]}, of {len(classes)} classes.")
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
    objects = {name: _objects(rows.frame[name]) for name in names}
    lengths = {  # words first, since an identifier can be long
        name: np.mean([(len(value.split()), len(value)) for value in values], axis=0).tolist()
        for name, values in objects.items()
        if values and all(isinstance(value, str) for value in values)
    }
    texts = sorted(lengths, key=lambda name: lengths[name], reverse=True)
    if not texts:
        kinds = some(f"{name} ({rows.frame[name].dtype})" for name in names) or "no others"
        raise DataError(f"{source} has no column of images or texts beside {label!r}; there are {kinds}.")
    if all(is_image_name(value.strip()) for value in objects[texts[0]] if value.strip()):
        raise DataError(
            f"column {texts[0]!r} of {source} has names of image files; give a folder of images, with a "
            "folder for each class, or name a column of texts with --column."
        )
    if texts[1:]:
        notes.append(f"{texts[0]!r} has the longest texts; others, for --column, are {quoted(texts[1:])}")
    return "text", texts[0]


def _is_image(column: pandas.Series[Any]) -> bool:
    values = _objects(column)
    return bool(values) and all(
        isinstance(v, bytes) or (isinstance(v, dict) and "bytes" in v) for v in values
    )


def _objects(column: pandas.Series[Any]) -> list[Any]:
    """Return the texts or images of a column, without missing values; nothing for numbers and lists."""
    is_list = isinstance(column.dtype, pandas.ArrowDtype)
    return [] if is_list or column.dtype.kind != "O" else column.dropna().tolist()
