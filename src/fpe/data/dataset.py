"""One way in for all data: a name, a file or a folder becomes a checked `Dataset`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.files import read_json
from fpe.data.embed.shards import MANIFEST, read_embeddings
from fpe.data.named import NAMED, read_npz
from fpe.data.parts import TESTS, Raw, label_names, merged_columns, number_classes, quoted, some
from fpe.errors import ArgumentError, DataError, did_you_mean

#: The share held out where there is no test part.
TEST_FRACTION = 0.2


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
        """Return what was loaded, as lines of text: rows, features, labels, what was left out."""
        count = self.X_train.shape[1]
        names = [repr(name) for name in self.features]
        shown = ", ".join(names if len(names) <= 6 else [*names[:3], "…", names[-1]])
        label = "" if self.label is None else f"{self.label!r}, "
        return [
            f"{self.name}: {len(self.X_train):,} samples to learn from, {len(self.X_test):,} to test on, "
            f"{count:,} features, {len(self.classes)} classes",
            f"features  {count:,}{': ' * bool(names)}{shown}",
            f"label     {label}{len(self.classes)} classes: {some(self.classes, 8)}",
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
    """Load data for a classification by name, from a file or from a folder; check them; hold out a test part.

    Every source gives the same: float32 features without gaps, class numbers from 0, and notes on all that was
    left out, guessed or held out. What would make results silently wrong is refused with what to do about it.

    **Sources.** A name: ``"digits"`` (scikit-learn), ``"fashion-mnist"`` (OpenML, or IDX files in the folder
    ``FPE_DATA``), ``"banking77"``. Arrays: ``.npz`` with ``X`` and ``y``, or ``X_train``, ``y_train`` and
    ``X_test``, ``y_test``; ``classes``, the names, in either. A table: ``.csv``, ``.tsv``, ``.txt``, ``.data``
    and the like with any separator and encoding, ``.jsonl``, ``.json``, or ``.parquet`` (with the extra
    ``parquet``), also compressed. A folder: tables called ``train`` and ``test``, or what `fpe embed` wrote, which
    makes images and texts into features.

    **The label** of a table is the column `label`; by default the one called ``label``, ``fine_label``,
    ``labels``, ``intent``, ``class`` or ``target``; failing that, the only column of text. Anything doubtful is an
    error that lists the columns. Rows without a label are left out and counted.

    **The features** are all other columns: numbers and truth values are one each, a column of lists as many as
    the lists are long. Columns of text or dates are refused, as are missing and infinite values. Whatever is
    known only together with the label belongs into `drop`.

    **The test part** is `test`, or the rows that `split_column` names, or the source's own part called test, or
    else validation, val or dev; failing that, a share is held out at random, classes in proportion.

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
        Columns, or patterns of their names such as ``"id*"``, that are no features; or that are the only ones.
    test_fraction : float, default 0.2
        The share that is held out.
    seed : int, default 0
        Seed of the held-out rows.

    Returns
    -------
    Dataset

    Raises
    ------
    ArgumentError
        If an argument is out of range, names a column that does not exist, or does not apply to the source.
    DataError
        If the source is unknown, missing, empty or broken, or cannot be learnt from.

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
    if raw.X_test is not None and test_fraction is not None:
        raise ArgumentError(
            f"the test fraction is {test_fraction}, but {source} has a test part; leave it out."
        )
    X, X_test = _features(raw.X, "X"), None if raw.X_test is None else _features(raw.X_test, "X_test")
    if X_test is not None and X.shape[1] != X_test.shape[1]:
        raise DataError(f"the training part has {X.shape[1]} features, the test part {X_test.shape[1]}.")
    y, y_test, classes = _labels(raw, source)
    for part, matrix, labels in (("", X, y), ("the test part: ", X_test, y_test)):
        if matrix is not None and labels is not None and len(matrix) != len(labels):
            raise DataError(
                f"{part}X has {len(matrix)} rows, y has {len(labels)} labels; give one label for each row."
            )
    if len(np.unique(y)) < 2:
        raise DataError(
            f"there is only one class, {classes[y[0]]!r}, in the training data; a classifier needs samples of at "
            "least two."
        )
    if len(classes) == len(y) > 20:
        raise DataError(
            f"each of the {len(y)} rows has a label of its own; name the column of labels with --label."
        )
    notes = list(raw.notes)
    if X_test is None or y_test is None:
        share = TEST_FRACTION if test_fraction is None else test_fraction
        X, X_test, y, y_test = _hold_out(X, y, share, seed, classes)
        notes.append(f"{share:.0%} are held out to test on, classes in proportion")
    constant = int((X[0] == X).all(axis=0).sum())
    if constant and raw.features:
        notes.append(f"{constant} of the features have one value in all training rows")
    fingerprint = _hash(X, y, X_test, y_test)
    return Dataset(name, X, y, X_test, y_test, classes, fingerprint, raw.features, raw.label, notes)


def _read(path: Path, source: str, options: Mapping[str, Any]) -> tuple[Raw, str]:
    """Read any source, and name it; refuse options of tables elsewhere."""
    from fpe.data.columns import read_parts
    from fpe.data.tables import TABLES, is_table, table_parts

    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    options = {**options, "test": None if options["test"] is None else Path(options["test"])}

    def no_table() -> None:
        if given:
            raise ArgumentError(
                f"{', '.join(given)} can only be used with a table, and {source} is none; leave it out."
            )

    if source in NAMED:
        no_table()
        return NAMED[source](), source
    if path.is_dir():
        name = path.resolve().name
        manifest = read_json(path / MANIFEST)
        if manifest is not None:
            no_table()
            return read_embeddings(path, manifest), name
        tables = table_parts(path)
        if "train" not in tables:
            raise DataError(
                f"the folder {path} has neither embeddings of fpe embed nor one table called train; for a folder of "
                f"images, run fpe embed {path} first, and give the folder that it writes."
            )
        options["test"] = options["test"] or next((tables[part] for part in TESTS if part in tables), None)
        return read_parts(tables["train"], **options), name
    kinds = f"files can end in .npz, {', '.join(TABLES)}"
    if not path.exists():
        raise DataError(
            f"there is no data set and no file {source!r}; give one of {', '.join(NAMED)}, or a file: {kinds}."
            f"{did_you_mean(source, NAMED)}"
        )
    if path.suffix.lower() == ".npz":
        no_table()
        return read_npz(path), path.stem
    if not is_table(path):
        raise DataError(
            f"{path} is of no known kind; {kinds}. Images and texts are embedded first, by fpe embed."
        )
    return read_parts(path, **options), path.name.partition(".")[0] or path.stem


def _features(X: np.ndarray, name: str) -> np.ndarray:
    """Check features and make them (samples, features) in float32."""
    X = np.asarray(X)
    if X.ndim < 2 or 0 in X.shape:
        raise DataError(f"{name} has shape {X.shape}; give (samples, features) with at least one of each.")
    if X.dtype.kind not in "biuf":
        raise DataError(f"{name} has type {X.dtype}; give real numbers.")
    X = X.reshape(len(X), -1)
    if X.dtype not in (np.float32, np.float16) and (lost := merged_columns(X)):
        raise DataError(
            f"{name} has columns whose differences float32 cannot hold ({some(lost)}, from 0); subtract their "
            "smallest values, or leave them out."
        )
    with np.errstate(over="ignore"):
        X = np.ascontiguousarray(X, dtype=np.float32)
    bad = ~np.isfinite(X)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        raise DataError(
            f"{name} has {int(bad.sum())} values that are NaN, infinite or too large for float32, the first in row "
            f"{row}, column {column} (from 0); remove those rows or fill them in."
        )
    return X


def _labels(raw: Raw, source: object) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Turn labels of any type into numbers from 0, and name the classes."""
    given = {"y": np.asarray(raw.y)} | ({} if raw.y_test is None else {"y_test": np.asarray(raw.y_test)})
    for name, y in given.items():
        if y.ndim != 1 or y.size == 0:
            raise DataError(f"{name} has shape {y.shape}; give a flat list with one label for each row.")
    if raw.classes is not None and all(y.dtype.kind in "iu" for y in given.values()):
        for name, y in given.items():
            outside = np.unique(y[(y < 0) | (y >= len(raw.classes))])
            if len(outside):
                raise DataError(
                    f"{name} has labels out of range ({some(outside)}); with {len(raw.classes)} classes, 0 to "
                    f"{len(raw.classes) - 1} are allowed."
                )
        codes, classes = {name: y.astype(np.int64) for name, y in given.items()}, list(map(str, raw.classes))
        return codes["y"], codes.get("y_test"), classes
    names = {name: label_names(y.tolist(), name) for name, y in given.items()}
    for name, own in names.items():
        if None in own:
            raise DataError(f"{name} has {own.count(None)} rows without a label, None or NaN; remove them.")
    parts = {"train": names["y"]} | ({"test": names["y_test"]} if "y_test" in names else {})
    codes, classes = number_classes(parts, str(source))
    return codes["train"], codes.get("test"), classes


def _hold_out(
    X: np.ndarray, y: np.ndarray, fraction: float, seed: int, classes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rare = [classes[i] for i in np.flatnonzero(np.bincount(y) == 1)]
    if rare:
        raise DataError(
            f"{len(rare)} classes have a single sample ({quoted(rare)}), which cannot be both learnt and tested; "
            "remove them, or give a test part of your own."
        )
    try:
        split = train_test_split(X, y, test_size=fraction, random_state=seed, stratify=y)
    except ValueError as error:
        raise DataError(
            f"{len(X)} rows with {len(classes)} classes cannot be split into training and test data by a test "
            f"fraction of {fraction}: {error}"
        ) from error
    return tuple(np.ascontiguousarray(part) for part in split)  # type: ignore[return-value]


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()[:16]
