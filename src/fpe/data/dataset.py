"""One way in for all data: a name or a file becomes a checked `Dataset`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fpe.data.named import NAMED
from fpe.data.tables import read_csv, read_npz, read_parquet
from fpe.embed.shards import MANIFEST, read_embeddings
from fpe.errors import ArgumentError, DataError, did_you_mean
from fpe.files import read_json

_READERS = {".npz": read_npz, ".parquet": read_parquet, ".csv": read_csv}


@dataclass(frozen=True)
class Raw:
    """Arrays as they were read, before they are checked; the test part may be absent."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class Dataset:
    """Training and test data of a classification.

    Attributes
    ----------
    name : str
        What it was loaded from, without folders.
    X_train, X_test : ndarray
        Features, (samples, features), float32, finite.
    y_train, y_test : ndarray
        Class numbers from 0, (samples,), int64.
    classes : list of str
        The classes' names, by number.
    fingerprint : str
        A hash of all arrays.
    """

    name: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: list[str]
    fingerprint: str


def load(
    source: str | os.PathLike[str], label: str = "label", test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Load data by name, from a file or a folder of embeddings; check it; split it if it has no test part.

    Parameters
    ----------
    source : str or path-like
        ``"digits"``, ``"fashion-mnist"``, or a file: ``.npz`` with ``X_train``, ``y_train``, ``X_test``,
        ``y_test`` or with ``X``, ``y`` (and ``classes``, the names, in either); ``.parquet`` or ``.csv`` with
        a column of labels, all other columns being features; or a folder that ``fpe embed`` wrote.
    label : str, default "label"
        Name of the column of labels.
    test_fraction : float, default 0.2
        The share held out, with the classes in proportion, where there is no test part.
    seed : int, default 0
        Seed of that choice.

    Returns
    -------
    Dataset
        Features as float32, labels as numbers from 0.

    Raises
    ------
    ArgumentError
        If the test fraction is not between 0 and 1.
    DataError
        If the source is unknown, the file is missing, empty, broken or of another layout, features are
        not finite numbers, or labels do not fit.
    """
    if not 0 < test_fraction < 1:
        raise ArgumentError(f"test fraction is {test_fraction!r}; give a share between 0 and 1.")
    name = str(source)
    if name in NAMED:
        raw = Raw(*NAMED[name]())
    else:
        path = Path(source)
        raw = _read_folder(path) if path.is_dir() else _read_file(path, label)
        name = path.resolve().name if path.is_dir() else path.stem
    X, X_test = _features(raw.X, "X"), None
    if raw.X_test is not None:
        X_test = _features(raw.X_test, "X_test")
        if X.shape[1] != X_test.shape[1]:
            raise DataError(f"the training part has {X.shape[1]} features, the test part {X_test.shape[1]}.")
    y, y_test, classes = _labels(raw)
    for part, features, labels in (("", X, y), ("the test part: ", X_test, y_test)):
        if features is not None and labels is not None and len(features) != len(labels):
            raise DataError(
                f"{part}X has {len(features)} rows, y has {len(labels)} labels; give one label for each row."
            )
    if len(np.unique(y)) < 2:
        raise DataError(
            f"there is only one class, {classes[int(y[0])]!r}, in the training data; a classifier needs "
            "samples of at least two."
        )
    if X_test is None or y_test is None:
        X, X_test, y, y_test = _hold_out(X, y, test_fraction, seed, classes)
    arrays = (X, y, X_test, y_test)
    return Dataset(name, X, y, X_test, y_test, classes, _hash(arrays))


def _read_file(path: Path, label: str) -> Raw:
    if not path.exists():
        known = ", ".join(NAMED)
        raise DataError(
            f"there is no data set and no file {str(path)!r}; give one of {known}, or a file ending in "
            f"{', '.join(_READERS)}.{did_you_mean(str(path), NAMED)}"
        )
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"{path} is of no known kind; files can end in {', '.join(_READERS)}. For images or text, embed "
            "them first."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with data.")
    return Raw(*_READERS[path.suffix.lower()](path, label))


def _read_folder(path: Path) -> Raw:
    manifest = read_json(path / MANIFEST)
    if manifest is None:
        raise DataError(
            f"the folder {path} holds no embeddings of fpe embed; for a folder of images, run "
            f"fpe embed {path} first, and give the folder that it writes."
        )
    return Raw(*read_embeddings(path, manifest))


def _features(X: np.ndarray, name: str) -> np.ndarray:
    """Check features and make them (samples, features) in float32."""
    X = np.asarray(X)
    if X.ndim < 2 or 0 in X.shape:
        raise DataError(f"{name} has shape {X.shape}; give (samples, features) with at least one of each.")
    if not (np.issubdtype(X.dtype, np.number) or X.dtype == bool) or np.issubdtype(
        X.dtype, np.complexfloating
    ):
        raise DataError(f"{name} has type {X.dtype}; give real numbers.")
    X = np.ascontiguousarray(X.reshape(len(X), -1), dtype=np.float32)
    bad = ~np.isfinite(X)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        raise DataError(
            f"{name} has {int(bad.sum())} values that are NaN, infinite or too large for float32, the first "
            f"in row {row}, column {column} (from 0); remove those rows or fill them in."
        )
    return X


def _labels(raw: Raw) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Turn labels of any type into numbers from 0, and name the classes."""
    y = np.asarray(raw.y)
    y_test = None if raw.y_test is None else np.asarray(raw.y_test)
    for name, labels in (("y", y), ("y_test", y_test)):
        if labels is None:
            continue
        if labels.ndim != 1 or labels.size == 0:
            raise DataError(f"{name} has shape {labels.shape}; give a flat list with one label for each row.")
        if np.issubdtype(labels.dtype, np.floating) and not (labels == np.round(labels)).all():
            raise DataError(f"{name} holds numbers that are not whole, or NaN; labels are classes.")
        if labels.dtype == object and any(v is None for v in labels):
            raise DataError(f"{name} has rows without a label; remove them.")
    if raw.classes is not None and np.issubdtype(y.dtype, np.integer):
        return _checked_codes(y, "y", raw), _checked_codes(y_test, "y_test", raw), _names(raw.classes)
    known, codes = np.unique(y, return_inverse=True)
    if y_test is None:
        return codes.astype(np.int64), None, _names(known)
    strange = np.setdiff1d(y_test, known)
    if len(strange):
        raise DataError(
            f"y_test has {len(strange)} classes that y_train has not ({_some(strange)}); no network can "
            "learn them."
        )
    return codes.astype(np.int64), np.searchsorted(known, y_test).astype(np.int64), _names(known)


def _checked_codes(codes: np.ndarray | None, name: str, raw: Raw) -> np.ndarray:
    classes: np.ndarray | list[str] = raw.classes if raw.classes is not None else []
    if codes is None:
        return None  # type: ignore[return-value]
    outside = np.unique(codes[(codes < 0) | (codes >= len(classes))])
    if len(outside):
        raise DataError(
            f"{name} has labels out of range ({_some(outside)}); with {len(classes)} classes, 0 to "
            f"{len(classes) - 1} are allowed."
        )
    return codes.astype(np.int64)


def _names(classes: np.ndarray) -> list[str]:
    return [str(c) for c in classes]


def _some(values: np.ndarray) -> str:
    shown = ", ".join(str(v) for v in values[:5])
    return shown + (", …" if len(values) > 5 else "")


def _hold_out(
    X: np.ndarray, y: np.ndarray, fraction: float, seed: int, classes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    counts = np.bincount(y, minlength=len(classes))
    rare = [classes[i] for i in np.flatnonzero(counts == 1)]
    if rare:
        raise DataError(
            f"{len(rare)} classes have a single sample ({', '.join(map(repr, rare[:5]))}), which cannot be "
            "both learnt and tested; remove them, or give a .npz with a test part of your own."
        )
    try:
        split = train_test_split(X, y, test_size=fraction, random_state=seed, stratify=y)
    except ValueError as error:
        raise DataError(
            f"{len(X)} rows with {len(classes)} classes cannot be split into training and test data by a "
            f"test fraction of {fraction}: {error}"
        ) from error
    return tuple(np.ascontiguousarray(part) for part in split)  # type: ignore[return-value]


def _hash(arrays: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
