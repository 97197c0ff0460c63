"""What is to be embedded: images or texts with labels, from files or Hugging Face datasets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fpe.embed.folders import ImageFolder, read_folder
from fpe.embed.images import is_image
from fpe.errors import ArgumentError, DataError, did_you_mean

#: Columns that hold the labels where none is named, the first that there is; CIFAR-100's is the second.
LABELS = ("label", "fine_label", "labels", "intent", "class", "target")
#: Parts of a data set that stand for its test part; the first that has labels. ImageNet's test part has none.
TESTS = ("test", "validation", "valid", "val", "dev")


class Part(Protocol):
    """Images or texts of one part."""

    def __len__(self) -> int: ...

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return texts, or what `fpe.embed.images.read_image` reads."""

    def name(self, row: int) -> str:
        """Return what a row is called in messages."""

    def mark(self, rows: Iterable[int]) -> bytes:
        """Return what stands for these rows: other contents, other bytes."""


class Column:
    """A column of a Hugging Face data set.

    Parameters
    ----------
    rows : datasets.Dataset
        One part.
    column : str
        Of texts or images; images are not decoded.
    """

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return the values of these rows."""
        return list(self.rows[[int(row) for row in rows]][self.column])

    def name(self, row: int) -> str:
        """Return the number of a row."""
        return f"row {row} (from 0)"

    def mark(self, rows: Iterable[int]) -> bytes:
        """Return a hash of the values."""
        digest = hashlib.sha256()
        for value in self.take(rows):
            digest.update(repr(value).encode())
        return digest.digest()


@dataclass(frozen=True)
class Items:
    """Images or texts, their labels, and which of them are taken.

    Attributes
    ----------
    kind : str
        "image" or "text".
    parts : dict of str to Part
        ``"train"`` and, where there is one, ``"test"``.
    rows : dict of str to ndarray
        Numbers of the rows that are taken, in order.
    labels : dict of str to ndarray
        Class number, from 0, of each row that is taken, int64.
    classes : list of str
        Names of the classes.
    left_out : dict of str to list of str
        Files that are not used, by the reason.
    """

    kind: str
    parts: Mapping[str, Part]
    rows: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    classes: list[str]
    left_out: Mapping[str, list[str]] = field(default_factory=dict)


def open_items(
    source: str,
    label: str | None = None,
    column: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Items:
    """Open a source and choose what is taken of it.

    Parameters
    ----------
    source : str
        A folder with a folder of images for each class, also below ``train`` and ``test`` (see
        `fpe.embed.folders.read_folder`); a ``.parquet`` or ``.csv`` file with a column of images or texts,
        or a folder of such; a folder that ``Dataset.save_to_disk`` wrote; or OWNER/NAME of a data set of
        the Hugging Face hub, such as ``"uoft-cs/cifar100"``.
    label, column : str, optional
        The columns of labels and of images or texts; by default found by name and type.
    classes : int, optional
        Take so many classes only, chosen at random: 100 of ImageNet-1k's make ImageNet-100 (2.2.2).
    seed : int, default 0
        Of that choice.

    Returns
    -------
    Items

    Raises
    ------
    ArgumentError
        If a column does not exist, or there are fewer classes.
    DataError
        If the source cannot be opened, or holds nothing that can be embedded.
    """
    path, left_out = Path(source), {}
    parts: Mapping[str, Part]
    if path.is_dir() and not _is_stored(path):
        if label is not None or column is not None:
            raise ArgumentError(
                f"{source} is a folder of images, where folders are classes; leave out --label and --column."
            )
        folder = _read_folder(path)
        kind, parts, left_out = "image", folder.parts, folder.left_out
        codes, names = _numbers(folder.labels, source)
    else:
        opened = _parts(_open(source), source, label)
        label = _label_column(opened["train"], label, source)
        kind, column = _item_column(opened["train"], column, label, source)
        if kind == "image":
            opened = {name: _undecoded(rows, column) for name, rows in opened.items()}
        codes, names = _codes(opened, label, source)
        parts = {name: Column(rows, column) for name, rows in opened.items()}
    rows = {name: np.flatnonzero(own >= 0) for name, own in codes.items()}
    if classes is not None:
        if not 2 <= classes <= len(names):
            raise ArgumentError(f"classes is {classes}; {source} has {len(names)}, give 2 to {len(names)}.")
        kept = np.sort(np.random.default_rng(seed).choice(len(names), classes, replace=False))
        rows = {name: np.flatnonzero(np.isin(own, kept)) for name, own in codes.items()}
        codes = {name: np.searchsorted(kept, own) for name, own in codes.items()}
        names = [names[i] for i in kept]
    empty = [name for name, own in rows.items() if not len(own)]
    if empty:
        raise DataError(f"{source} has no labelled rows in its {empty[0]} part.")
    labels = {name: codes[name][own].astype(np.int64) for name, own in rows.items()}
    return Items(kind, parts, rows, labels, names, left_out)


def _is_stored(folder: Path) -> bool:
    """Say whether a folder holds a data set that Hugging Face datasets wrote, or tables and no images."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return True
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(folder.rglob("*.parquet")) and not any(is_image(path) for path in files)


def _read_folder(folder: Path) -> ImageFolder:
    try:
        return read_folder(folder)
    except ImportError as error:
        raise ArgumentError(
            f"fpe embed needs Pillow for images ({error}): pip install 'fixed-parameter-expansion[embed]'"
        ) from error
    except OSError as error:  # a folder that may not be read
        raise DataError(f"{folder} cannot be read: {error}.") from error


def _open(source: str) -> Any:
    """Open a table, a saved data set, or one of the hub."""
    try:
        import datasets
    except ImportError as error:
        raise ArgumentError(
            "fpe embed needs Hugging Face datasets: pip install 'fixed-parameter-expansion[embed]'"
        ) from error
    datasets.disable_progress_bars()
    path = Path(source)
    if not path.exists() and not _is_hub_name(source):
        raise DataError(
            f"there is no file or folder {source}; give one, or a data set of the Hugging Face hub as "
            "OWNER/NAME."
        )
    if path.is_file() and path.suffix.lower() not in (".parquet", ".csv"):
        raise DataError(f"{path} is no .parquet or .csv file; fpe embed takes these, or folders.")
    try:
        if path.is_file():
            return datasets.load_dataset(path.suffix.lower()[1:], data_files=str(path))
        if path.is_dir():
            if any(path.rglob("*.parquet")):
                return datasets.load_dataset("parquet", data_dir=str(path))
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(source)
    except Exception as error:  # a broken file, no network, no such name: whatever it may end with
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source} could not be opened ({type(error).__name__}: {reason}). Give a folder with a "
            "folder of images for each class, a .parquet or .csv file with images or texts, or the name of a "
            "data set of the Hugging Face hub."
        ) from error


def _is_hub_name(source: str) -> bool:
    """Say whether a source that is no path here is OWNER/NAME, and not a path whose end is missing."""
    owner, _, name = source.partition("/")
    if Path(owner).exists() or Path(name).suffix.lower() in (".parquet", ".csv"):
        return False
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def _parts(opened: Any, source: str, label: str | None) -> dict[str, Any]:
    """Find the training and the test part."""
    import datasets

    if isinstance(opened, datasets.Dataset):
        return {"train": opened}
    if "train" not in opened:
        if len(opened) == 1:
            return {"train": next(iter(opened.values()))}
        raise DataError(f"{source} has the parts {', '.join(opened)}, but none called train.")
    parts = {"train": opened["train"]}
    for name in TESTS:
        if name in opened and _has_labels(opened[name], label):
            parts["test"] = opened[name]
            break
    return parts


def _has_labels(rows: Any, label: str | None) -> bool:
    column = label or next((name for name in LABELS if name in rows.column_names), None)
    if column not in rows.column_names:
        return False
    values = rows.select(range(min(100, len(rows))))[column]
    return any(value is not None and value != -1 for value in values)


def _label_column(rows: Any, label: str | None, source: str) -> str:
    found = label if label is not None else next((n for n in LABELS if n in rows.column_names), None)
    if found is None or found not in rows.column_names:
        what = "no column of labels that is known" if label is None else f"no column {label!r}"
        hint = did_you_mean(label, rows.column_names) if label else ""
        raise ArgumentError(
            f"{source} has {what}; name one with --label: there are {', '.join(rows.column_names)}.{hint}"
        )
    return found


def _item_column(rows: Any, column: str | None, label: str, source: str) -> tuple[str, str]:
    """Return the kind of the items and their column."""
    kinds = {name: _kind(feature) for name, feature in rows.features.items() if name != label}
    if column is not None:
        if column not in kinds:
            raise ArgumentError(
                f"{source} has no column {column!r}; there are {', '.join(kinds)}."
                f"{did_you_mean(column, kinds)}"
            )
        kinds = {column: kinds[column]}
    for kind in ("image", "text"):
        for name, own in kinds.items():
            if own == kind:
                return kind, name
    raise DataError(
        f"{source} has no column of images or texts beside {label!r}; there are "
        f"{', '.join(f'{name} ({rows.features[name]})' for name in kinds) or 'no others'}."
    )


def _kind(feature: Any) -> str | None:
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, dict) and "bytes" in feature:
        return "image"  # as the hub stores images in parquet, without its metadata
    kind = getattr(feature, "dtype", None)
    return {"string": "text", "large_string": "text", "binary": "image", "large_binary": "image"}.get(
        str(kind)
    )


def _undecoded(rows: Any, column: str) -> Any:
    import datasets

    return rows.cast_column(column, datasets.Image(decode=False))


def _codes(parts: Mapping[str, Any], label: str, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Turn labels into class numbers from 0, −1 where there is none."""
    feature = parts["train"].features[label]
    values = {name: list(rows[label]) for name, rows in parts.items()}
    if hasattr(feature, "names"):
        codes = {
            name: np.array([-1 if v is None else v for v in own], dtype=np.int64)
            for name, own in values.items()
        }
        return codes, list(feature.names)
    return _numbers(values, source)


def _numbers(values: Mapping[str, Sequence[Any]], source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Number the classes of the training part; −1 where there is none."""
    known: Sequence[Any] = sorted({v for v in values["train"] if v is not None})
    strange = sorted(
        {str(v) for own in values.values() for v in own if v is not None and v not in set(known)}
    )
    if strange:
        raise DataError(
            f"the test part of {source} has classes that its training part has not: {strange[:5]}."
        )
    number = {value: i for i, value in enumerate(known)}
    codes = {
        name: np.array([-1 if v is None else number[v] for v in own], dtype=np.int64)
        for name, own in values.items()
    }
    return codes, [str(v) for v in known]
