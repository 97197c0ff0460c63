"""One way in for all data: a name, a file or a folder becomes a checked `Dataset`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fpe._util.files import read_json
from fpe.data.embed.shards import MANIFEST, read_embeddings
from fpe.data.named import NAMED, read_npz
from fpe.data.parts import TESTS, Raw, label_names, number_classes, quoted, some, why_unfit
from fpe.errors import ArgumentError, DataError, did_you_mean

if TYPE_CHECKING:
    from fpe.data.encoding import Encoding

#: With more classes that are whole numbers, and few rows of each, the label may be a quantity.
MANY_CLASSES = 20


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
        A hash of all arrays, and of the names of classes and columns.
    encoding : Encoding or None
        How the columns of a table became the features; None if the source is no table.
    label : str or None
        The column of labels of a table.
    notes : list of str
        What was left out, guessed or held out, and why.
    source : str
        The name of the file or folder, or of the data.
    """

    name: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: list[str]
    fingerprint: str
    encoding: Encoding | None = None
    label: str | None = None
    notes: list[str] = field(default_factory=list)
    source: str = ""

    @property
    def features(self) -> list[str]:
        """The features' names; empty if they have none."""
        return [] if self.encoding is None else self.encoding.features

    @property
    def majority_accuracy(self) -> float:
        """Test accuracy of always answering the most frequent class of the training part."""
        return float((self.y_test == np.bincount(self.y_train).argmax()).mean())

    def about(self) -> dict[str, Any]:
        """Return what a model of these data has to know about its inputs and outputs, as JSON takes it."""
        whole = all(name.removeprefix("-").isdecimal() and str(int(name)) == name for name in self.classes)
        return {
            "predicts": "classes",
            "classes": [int(name) for name in self.classes] if whole else self.classes,
            "label": self.label,
            "columns": None if self.encoding is None else self.encoding.to_list(),
            "features": self.X_train.shape[1],
            "data": {
                "name": self.source or self.name,
                "fingerprint": self.fingerprint,
                "training_samples": len(self.X_train),
                "test_samples": len(self.X_test),
                "majority_accuracy": self.majority_accuracy,
            },
        }

    def lines(self) -> list[str]:
        """Return what was loaded, as lines of text: rows, features, labels, what was left out."""
        count, classes = self.X_train.shape[1], len(self.classes)
        names = [repr(name) for name in self.features]
        shown = ", ".join(names if len(names) <= 6 else [*names[:3], "…", names[-1]])
        label = "" if self.label is None else f"{self.label!r}, "
        return [
            f"{self.name}: {len(self.X_train):,} samples to learn from, {len(self.X_test):,} to test on, "
            f"{count:,} features, {classes} classes",
            f"features  {count:,}{': ' * bool(names)}{shown}",
            f"label     {label}{classes} classes: {some(self.classes, 8)}",
            *(f"note      {note}" for note in self.notes),
            f"majority  {self.majority_accuracy:.1%} of the test rows have the most frequent training class",
        ]


def load(
    source: str | os.PathLike[str],
    *,
    label: str | None = None,
    test: str | os.PathLike[str] | None = None,
    split_column: str | None = None,
    drop: Sequence[str] = (),
    features: Sequence[str] = (),
    test_fraction: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Load data for a classification by name, from a file or a folder; check them; hold out a test part.

    Every source gives float32 features without gaps, class numbers from 0, and notes on all that was left
    out, guessed or held out. What would make results silently wrong is refused, with what to do about it.

    **Sources.** A name: ``"digits"`` (from scikit-learn), ``"fashion-mnist"`` (from OpenML, or IDX files in
    the folder ``FPE_DATA``), ``"banking77"``. Arrays: ``.npz`` with ``X`` and ``y``, or ``X_train``,
    ``y_train``, ``X_test`` and ``y_test``; in either ``classes``, the names. A table: ``.csv``, ``.tsv``,
    ``.txt`` and the like with any separator and encoding, ``.jsonl``, ``.json`` or ``.parquet``, also
    compressed. A folder: tables called ``train`` and ``test``, or the embeddings that ``fpe embed`` makes of
    images and texts.

    **The label** of a table is the column `label`; by default the one called ``label``, ``fine_label``,
    ``labels``, ``intent``, ``class`` or ``target``; failing that, the only column of text. If several fit, or
    none, the error lists the columns. Rows without a label are left out and counted.

    **The features** are all other columns: numbers and truth values are one feature each, lists of numbers as
    many as they are long, and names as many as there are different ones in the training part, of which one is
    1. Missing numbers are replaced by the median of the training part; missing names, and those that it does
    not have, are zeros. Other texts, dates, infinite values and gaps in lists are refused. A column that is
    only known once the label is known must be dropped.

    **The test part** is `test`, or the rows that `split_column` names, or the source's own part called test,
    or else validation, val or dev; failing that, a share is held out at random, with the classes in
    proportion.

    Parameters
    ----------
    source : str or path-like
        Name, file or folder.
    label : str, optional
        Column of labels.
    test : str or path-like, optional
        Another table, the test part; columns are matched by name.
    split_column : str, optional
        Column whose values are ``train`` and ``test`` (or ``validation``, …).
    drop, features : sequence of str
        Columns, or patterns such as ``"id*"``, that are no features; or that are the only ones.
    test_fraction : float, default 0.2
        The share that is held out.
    seed : int, default 0
        Seed of the rows that are held out.

    Returns
    -------
    Dataset

    Raises
    ------
    ArgumentError
        If an argument is out of range, names a column that does not exist, or does not apply to the source.
    DataError
        If the source is unknown, missing, empty or broken, or cannot be learned from.

    Examples
    --------
    >>> from fpe.data import load
    >>> data = load("digits")
    >>> data.X_train.shape, data.X_test.shape, data.classes[:3]
    ((1437, 64), (360, 64), ['0', '1', '2'])
    """
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ArgumentError(f"test fraction is {test_fraction!r}; give a share between 0 and 1.")
    options = {"label": label, "test": test, "split_column": split_column, "drop": drop, "features": features}
    raw, name = _read(Path(source), str(source), options)
    notes, encoding = list(raw.notes), None
    X = {part: _features(X, part) if isinstance(X, np.ndarray) else X for part, (X, _) in raw.parts.items()}
    y, classes = _labels(raw, str(source))
    if len(np.unique(y["train"])) < 2:
        only = classes[y["train"][0]]
        raise DataError(f"there is only one class, {only!r}, in the training data; a classifier needs two.")
    if len(classes) == len(y["train"]) > 20:
        raise DataError(f"each of the {len(classes)} rows has its own label; give --label.")
    if len(classes) > MANY_CLASSES and len(y["train"]) < 50 * len(classes) and all(map(_is_number, classes)):
        notes.append(
            f"the label has {len(classes)} numbers, each a class; to predict a quantity, use "
            "fpe.FPERegressor in Python"
        )
    if "test" not in X:
        share = 0.2 if test_fraction is None else test_fraction
        rows = dict(zip(("train", "test"), _hold_out(y["train"], share, seed, classes), strict=True))
        y = {part: y["train"][own] for part, own in rows.items()}
        whole = X["train"]
        X = {part: _rows(whole, own) for part, own in rows.items()}
        notes.append(f"{share:.0%} are held out to test on, classes in proportion")
    elif test_fraction is not None:
        raise ArgumentError(f"test_fraction is {test_fraction}, but {source} has a test part; leave it out.")
    elif X["train"].shape[1] != X["test"].shape[1]:
        counts = X["train"].shape[1], X["test"].shape[1]
        raise DataError(f"the training part has {counts[0]} features, the test part {counts[1]}.")
    if not isinstance(X["train"], np.ndarray):  # the columns of a table
        from fpe.data.encoding import Encoding

        encoding = Encoding.of(X["train"], str(source), notes)
        for part, frame in X.items():
            X[part] = encoding.encode(frame, f"{source}{' (test part)' * (part == 'test')}", notes)
        constant = int((X["train"][0] == X["train"]).all(axis=0).sum())
        if constant:
            notes.append(f"{constant} of the features have one value in all training rows")
    arrays = (X["train"], y["train"], X["test"], y["test"])
    names = [classes, raw.label, None if encoding is None else encoding.to_list()]
    return Dataset(
        name, *arrays, classes, _hash(arrays, names), encoding, raw.label, notes, Path(source).resolve().name
    )


def _read(path: Path, source: str, options: dict[str, Any]) -> tuple[Raw, str]:
    """Read any source, and name it; refuse options of tables elsewhere."""
    from fpe.data.columns import read_parts
    from fpe.data.tables import TABLES, is_table, table_parts

    manifest, is_npz = read_json(path / MANIFEST), path.suffix.lower() == ".npz" and path.is_file()
    if source in NAMED or manifest is not None or is_npz:
        given = [f"--{option.replace('_', '-')}" for option, value in options.items() if value]
        if given:
            raise ArgumentError(f"{', '.join(given)} can only be used with a table; {source} is none.")
        if source in NAMED:
            return NAMED[source](), source
        if manifest is None:
            return read_npz(path), path.stem
        return read_embeddings(path, manifest), path.resolve().name
    kinds, table = f"files can end in .npz, {', '.join(TABLES)}", path
    name = path.name.partition(".")[0] or path.stem
    if path.is_dir():
        tables, name = table_parts(path), path.resolve().name
        if "train" not in tables:
            hint = f"for a folder of images, run fpe embed {path} first, and give the folder that it writes"
            raise DataError(f"the folder {path} has neither embeddings nor a table called train; {hint}.")
        table = tables["train"]
        options["test"] = options["test"] or next((tables[part] for part in TESTS if part in tables), None)
    elif not path.exists():
        near = f"{', '.join(NAMED)}, or a file: {kinds}.{did_you_mean(source, NAMED)}"
        raise DataError(f"there is no data set and no file {source!r}; give {near}")
    elif not is_table(path):
        raise DataError(f"{path} is of no known kind; {kinds}. Embed images and texts first, by fpe embed.")
    options["test"] = None if options["test"] is None else Path(options["test"])
    return read_parts(table, **options), name


def _features(X: np.ndarray, part: str) -> np.ndarray:
    """Check features and make them (samples, features) in float32."""
    name, X = "X" if part == "train" else "X_test", np.asarray(X)
    if X.ndim < 2 or 0 in X.shape:
        raise DataError(f"{name} has shape {X.shape}; give (samples, features) with at least one of each.")
    if X.dtype.kind not in "biuf":
        raise DataError(f"{name} has type {X.dtype}; give real numbers.")
    X = X.reshape(len(X), -1)
    if why := why_unfit(X):
        raise DataError(f"{name} {why}.")
    return np.ascontiguousarray(X, dtype=np.float32)


def _labels(raw: Raw, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Turn labels of any type into numbers from 0, and name the classes."""
    given = {part: np.asarray(y) for part, (_, y) in raw.parts.items()}
    for part, y in given.items():
        count = len(raw.parts[part][0])
        if y.shape != (count,):
            raise DataError(f"the {part} part has {count} rows, but y of shape {y.shape}; give each a label.")
    if raw.classes is None or any(y.dtype.kind not in "iu" for y in given.values()):
        names = {part: label_names(y.tolist(), f"y of the {part} part") for part, y in given.items()}
        for part, own in names.items():
            if None in own:
                raise DataError(f"the {part} part has {own.count(None)} rows without a label; remove them.")
        return number_classes(names, source)
    last = len(raw.classes) - 1
    for part, y in given.items():
        outside = np.unique(y[(y < 0) | (y > last)])
        if len(outside):
            raise DataError(f"{part} labels are out of range ({some(outside)}); give 0 to {last}.")
    return {part: y.astype(np.int64) for part, y in given.items()}, [str(name) for name in raw.classes]


def _hold_out(y: np.ndarray, share: float, seed: int, classes: list[str]) -> list[np.ndarray]:
    """Return the numbers of the rows to learn from, and of those that are held out."""
    from sklearn.model_selection import train_test_split

    try:
        split = train_test_split(np.arange(len(y)), test_size=share, random_state=seed, stratify=y)
    except ValueError as error:
        rare = [classes[i] for i in np.flatnonzero(np.bincount(y) == 1)]
        why = f"{len(rare)} classes have a single sample ({quoted(rare)})" if rare else str(error)
        why = f"with a test fraction of {share}: {why}; remove classes, or give a test part of your own"
        if len(rare) > 2 and all(map(_is_number, rare)):
            why += ". For labels that are numbers to predict, use fpe.FPERegressor in Python"
        raise DataError(f"{len(y)} rows with {len(classes)} classes cannot be split {why}.") from error
    return list(split)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _rows(X: Any, rows: np.ndarray) -> Any:
    return np.ascontiguousarray(X[rows]) if isinstance(X, np.ndarray) else X.iloc[rows]


def _hash(arrays: Sequence[np.ndarray], names: Any) -> str:
    digest = hashlib.sha256(json.dumps(names).encode())
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()[:16]
