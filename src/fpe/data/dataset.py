"""One way in for all data: a name or a file becomes a checked `Dataset`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fpe._util.files import read_json
from fpe.data.arrays import read_npz
from fpe.data.choosing import Columns, read_parts
from fpe.data.features import merged_columns
from fpe.data.labels import label_names, numbered, some
from fpe.data.named import NAMED
from fpe.data.parts import TESTS, Raw
from fpe.data.shards import MANIFEST, read_embeddings
from fpe.data.tables import TABLES, is_table
from fpe.errors import ArgumentError, DataError, did_you_mean

#: The share held out where there is no test part.
TEST_FRACTION = 0.2
_KINDS = (".npz", *TABLES)


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
    features : list of str
        The features' names; empty if they have none.
    label : str or None
        The column of labels of a table.
    notes : list of str
        What was left out, guessed or held out, and why.
    """

    name: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: list[str]
    fingerprint: str
    features: list[str] = field(default_factory=list)
    label: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def majority_accuracy(self) -> float:
        """Test accuracy of always answering the most frequent class of the training part."""
        return float((self.y_test == np.bincount(self.y_train).argmax()).mean())

    def lines(self) -> list[str]:
        """Return what was read, as lines of text: rows, features, labels, what was left out."""
        count = self.X_train.shape[1]
        names = f": {_ends(self.features)}" if self.features else ""
        label = "" if self.label is None else f"{self.label!r}, "
        return [
            f"{self.name}: {len(self.X_train):,} samples to learn from, {len(self.X_test):,} to test on, "
            f"{count:,} features, {len(self.classes)} classes",
            f"features  {count:,}{names}",
            f"label     {label}{len(self.classes)} classes: {some(self.classes, 8)}",
            *(f"note      {note}" for note in self.notes),
            f"majority  {self.majority_accuracy:.1%} of the test rows have the most frequent training class",
        ]


def load(
    source: str | os.PathLike[str],
    label: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    *,
    test: str | os.PathLike[str] | None = None,
    split_column: str | None = None,
    drop: Sequence[str] = (),
    features: Sequence[str] = (),
) -> Dataset:
    """Load data by name, from a file or a folder; check it; split it if it has no test part.

    Parameters
    ----------
    source : str or path-like
        ``"digits"``, ``"fashion-mnist"``, ``"banking77"``, or a file: ``.npz`` with ``X_train``, ``y_train``,
        ``X_test``, ``y_test`` or with ``X``, ``y`` (and ``classes``, the names, in either); or a table, as
        for `fpe.data.tables.read_table`; or a folder with tables ``train`` and ``test``, or one that ``fpe
        embed`` wrote.
    label : str, optional
        Column of labels of a table; by default one called ``label``, ``class``, ``target`` or the like, or
        the only one that is not made of numbers.
    test_fraction : float, default 0.2
        The share held out, with the classes in proportion, where there is no test part.
    seed : int, default 0
        Seed of that choice.
    test : str or path-like, optional
        A table, the test part.
    split_column : str, optional
        Column of a table that says ``train`` or ``test``.
    drop, features : sequence of str
        Columns of a table, or patterns of their names, that are no features; or that are the only ones.

    Returns
    -------
    Dataset
        Features as float32, labels as numbers from 0. Rows of tables without a label are left out and counted
        in the notes.

    Raises
    ------
    ArgumentError
        If the test fraction is not between 0 and 1, or an argument does not apply to the source.
    DataError
        If the source is unknown, the file is missing, empty, broken or of another layout, features are
        not finite numbers, or labels do not fit.
    """
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ArgumentError(f"test fraction is {test_fraction!r}; give a share between 0 and 1.")
    asked = Columns(label, split_column, tuple(drop), tuple(features))
    raw, name = _read(source, asked, None if test is None else Path(test))
    if raw.X_test is not None and test_fraction is not None:
        raise ArgumentError(
            f"the test fraction is {test_fraction}, but {source} has a test part; leave it out."
        )
    X, X_test = _features(raw.X, "X"), None
    if raw.X_test is not None:
        X_test = _features(raw.X_test, "X_test")
        if X.shape[1] != X_test.shape[1]:
            raise DataError(f"the training part has {X.shape[1]} features, the test part {X_test.shape[1]}.")
    y, y_test, classes = _labels(raw, str(source))
    for part, matrix, labels in (("", X, y), ("the test part: ", X_test, y_test)):
        if matrix is not None and labels is not None and len(matrix) != len(labels):
            raise DataError(
                f"{part}X has {len(matrix)} rows, y has {len(labels)} labels; give one label for each row."
            )
    if len(np.unique(y)) < 2:
        raise DataError(
            f"there is only one class, {classes[int(y[0])]!r}, in the training data; a classifier needs "
            "samples of at least two."
        )
    if len(classes) == len(y) and len(y) > 20:
        raise DataError(
            f"each of the {len(y)} rows has a label of its own; name the column of labels with --label."
        )
    notes = list(raw.notes)
    if X_test is None or y_test is None:
        share = TEST_FRACTION if test_fraction is None else test_fraction
        X, X_test, y, y_test = _hold_out(X, y, share, seed, classes)
        notes.append(f"{share:.0%} are held out to test on, classes in proportion")
    arrays = (X, y, X_test, y_test)
    constant = int((X[0] == X).all(axis=0).sum())
    if constant and raw.features:
        notes.append(f"{constant} of the features have one value in all training rows")
    return Dataset(name, X, y, X_test, y_test, classes, _hash(arrays), raw.features, raw.label, notes)


def _read(source: str | os.PathLike[str], asked: Columns, test: Path | None) -> tuple[Raw, str]:
    """Read any source; refuse what does not apply to it."""
    path = Path(source)
    if str(source) in NAMED:
        _refuse(asked, test, f"the data set {source}")
        return Raw(*NAMED[str(source)]()), str(source)
    if path.is_dir():
        name = path.resolve().name
        manifest = read_json(path / MANIFEST)
        if manifest is not None:
            _refuse(asked, test, f"the embeddings in {path}")
            return Raw(*read_embeddings(path, manifest)), name
        found = {
            part: sorted(f for f in path.iterdir() if is_table(f) and f.name.partition(".")[0] == part)
            for part in ("train", *TESTS)
        }
        if len(found["train"]) != 1:
            raise DataError(
                f"the folder {path} holds no embeddings of fpe embed; for a folder of images, run fpe embed "
                f"{path} first, and give the folder that it writes; of tables, one must be called train."
            )
        tests = [file for part in TESTS for file in found[part]]
        if test is None and tests:
            test = tests[0]
        return read_parts(found["train"][0], test, asked), name
    if not path.exists():
        known = ", ".join(NAMED)
        raise DataError(
            f"there is no data set and no file {str(path)!r}; give one of {known}, or a file ending in "
            f"{', '.join(_KINDS)}.{did_you_mean(str(path), NAMED)}"
        )
    if path.suffix.lower() == ".npz":
        _refuse(asked, test, str(path))
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with data.")
        return read_npz(path), path.stem
    if not is_table(path):
        raise DataError(
            f"{path} is of no known kind; files can end in {', '.join(_KINDS)}. For images or text, embed "
            "them first."
        )
    raw = read_parts(path, test, asked)
    return raw, path.name.partition(".")[0] or path.stem


def _refuse(asked: Columns, test: Path | None, what: str) -> None:
    given = asked.given() + ([] if test is None else ["--test"])
    if given:
        raise ArgumentError(
            f"{', '.join(given)} can only be used with a table; {what} is none. Leave it out."
        )


def _ends(names: list[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", shown[-1]])


def _features(X: np.ndarray, name: str) -> np.ndarray:
    """Check features and make them (samples, features) in float32."""
    X = np.asarray(X)
    if X.ndim < 2 or 0 in X.shape:
        raise DataError(f"{name} has shape {X.shape}; give (samples, features) with at least one of each.")
    if not (np.issubdtype(X.dtype, np.number) or X.dtype == bool) or np.issubdtype(
        X.dtype, np.complexfloating
    ):
        raise DataError(f"{name} has type {X.dtype}; give real numbers.")
    X = X.reshape(len(X), -1)
    if X.dtype != np.float32 and X.dtype != np.float16 and (lost := merged_columns(X)):
        raise DataError(
            f"{name} has columns whose differences float32 cannot hold ({some(lost)}, from 0); subtract "
            "their smallest values, or leave them out."
        )
    with np.errstate(over="ignore"):
        X = np.ascontiguousarray(X, dtype=np.float32)
    bad = ~np.isfinite(X)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        raise DataError(
            f"{name} has {int(bad.sum())} values that are NaN, infinite or too large for float32, the first "
            f"in row {row}, column {column} (from 0); remove those rows or fill them in."
        )
    return X


def _labels(raw: Raw, source: str) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Turn labels of any type into numbers from 0, and name the classes."""
    y = np.asarray(raw.y)
    y_test = None if raw.y_test is None else np.asarray(raw.y_test)
    for name, labels in (("y", y), ("y_test", y_test)):
        if labels is not None and (labels.ndim != 1 or labels.size == 0):
            raise DataError(f"{name} has shape {labels.shape}; give a flat list with one label for each row.")
    if raw.classes is not None and np.issubdtype(y.dtype, np.integer):
        codes = _checked_codes(y, "y", raw.classes)
        codes_test = None if y_test is None else _checked_codes(y_test, "y_test", raw.classes)
        return codes, codes_test, [str(c) for c in raw.classes]
    return numbered(_complete(y, "y"), None if y_test is None else _complete(y_test, "y_test"), source)


def _complete(labels: np.ndarray, name: str) -> list[str]:
    names = label_names(labels.tolist(), name)
    if None in names:
        raise DataError(f"{name} has {names.count(None)} rows without a label, None or NaN; remove them.")
    return [each for each in names if each is not None]


def _checked_codes(codes: np.ndarray, name: str, classes: np.ndarray) -> np.ndarray:
    outside = np.unique(codes[(codes < 0) | (codes >= len(classes))])
    if len(outside):
        raise DataError(
            f"{name} has labels out of range ({some(outside)}); with {len(classes)} classes, 0 to "
            f"{len(classes) - 1} are allowed."
        )
    return codes.astype(np.int64)


def _hold_out(
    X: np.ndarray, y: np.ndarray, fraction: float, seed: int, classes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    counts = np.bincount(y, minlength=len(classes))
    rare = [classes[i] for i in np.flatnonzero(counts == 1)]
    if rare:
        raise DataError(
            f"{len(rare)} classes have a single sample ({', '.join(map(repr, rare[:5]))}), which cannot be "
            "both learnt and tested; remove them, or give a test part of your own."
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
