"""What is to be embedded: images or texts with labels, through Hugging Face datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpe.errors import ArgumentError, DataError, did_you_mean

#: Columns that hold the labels where none is named, the first that there is; CIFAR-100's is the second.
LABELS = ("label", "fine_label", "labels", "intent", "class", "target")
#: Parts of a data set that stand for its test part; the first that has labels. ImageNet's test part has none.
TESTS = ("test", "validation", "valid", "val", "dev")


@dataclass(frozen=True)
class Items:
    """Images or texts, their labels, and which of them are taken.

    Attributes
    ----------
    kind : str
        "image" or "text".
    column : str
        Where they stand in the rows of `parts`.
    parts : dict
        ``"train"`` and, where there is one, ``"test"``: rows of a Hugging Face data set.
    rows : dict of str to ndarray
        Numbers of the rows that are taken, in order.
    labels : dict of str to ndarray
        Class number, from 0, of each row that is taken, int64.
    classes : list of str
        Names of the classes.
    """

    kind: str
    column: str
    parts: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    classes: list[str]

    def fingerprint(self) -> str:
        """Return a hash of what is taken: labels, classes, and the first and last item of each part."""
        digest = hashlib.sha256(repr((self.kind, self.classes)).encode())
        for name, labels in self.labels.items():
            digest.update(name.encode() + labels.tobytes() + self.rows[name].tobytes())
            for row in (self.rows[name][0], self.rows[name][-1]):
                item = self.parts[name][int(row)][self.column]
                digest.update(item.encode() if isinstance(item, str) else np.asarray(item).tobytes())
        return digest.hexdigest()[:16]


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
        A folder with a folder of images for each class, also below ``train`` and ``test``; a ``.parquet``
        or ``.csv`` file with a column of images or texts, or a folder of such; a folder that
        ``Dataset.save_to_disk`` wrote; or the name of a data set of the Hugging Face hub, such as
        ``"uoft-cs/cifar100"``.
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
    parts = _parts(_open(source), source, label)
    first = parts["train"]
    label = _label_column(first, label, source)
    kind, column = _item_column(first, column, label, source)
    if kind == "image":
        parts = {name: _as_images(rows, column) for name, rows in parts.items()}
    codes, names = _codes(parts, label, source)
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
    return Items(kind, column, parts, rows, labels, names)


def _open(source: str) -> Any:
    """Open anything that Hugging Face datasets can."""
    try:
        import datasets
    except ImportError as error:
        raise ArgumentError(
            "fpe embed needs Hugging Face datasets: pip install 'fixed-parameter-expansion[embed]'"
        ) from error
    datasets.disable_progress_bars()
    path = Path(source)
    try:
        if path.is_file():
            kind = {".parquet": "parquet", ".csv": "csv"}.get(path.suffix.lower())
            if kind is None:
                raise DataError(f"{path} is no .parquet or .csv file; fpe embed takes these, or folders.")
            return datasets.load_dataset(kind, data_files=str(path))
        if path.is_dir():
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(path))
            if any(path.rglob("*.parquet")):
                return datasets.load_dataset("parquet", data_dir=str(path))
            return datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=False)
        return datasets.load_dataset(source)
    except DataError:
        raise
    except Exception as error:  # a broken file, no network, no such name: whatever it may end with
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source} could not be opened ({type(error).__name__}: {reason}). Give a folder with a "
            "folder of images for each class, a .parquet or .csv file with images or texts, or the name of a "
            "data set of the Hugging Face hub."
        ) from error


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


def _as_images(rows: Any, column: str) -> Any:
    import datasets

    return (
        rows
        if isinstance(rows.features[column], datasets.Image)
        else rows.cast_column(column, datasets.Image())
    )


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
