"""What is to be embedded: images or texts with labels, from folders, tables or Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fpe.data.embed.folders import ImageFolder, read_folder
from fpe.data.embed.hub import is_hub_name, is_stored, open_parts
from fpe.data.embed.images import is_image
from fpe.data.embed.tables import Part, choose, number, read_rows, table_parts
from fpe.data.tables import is_table
from fpe.errors import ArgumentError, DataError


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
    label, column : str or None
        The columns of a table that labels and images or texts were taken from.
    notes : list of str
        What was left out of a table or guessed, and why.
    """

    kind: str
    parts: Mapping[str, Part]
    rows: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    classes: list[str]
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    column: str | None = None
    notes: list[str] = field(default_factory=list)


def open_items(
    source: str,
    label: str | None = None,
    column: str | None = None,
    classes: int | None = None,
    seed: int = 0,
    test: str | None = None,
) -> Items:
    """Open a source and choose what is taken of it.

    Parameters
    ----------
    source : str
        A folder with a folder of images for each class, also below ``train`` and ``test`` (see
        `fpe.data.embed.folders.read_folder`); a table with a column of images or texts, as for
        `fpe.data.tables.read_table`; a folder with tables ``train`` and ``test``, or with parquet files; a
        folder that ``Dataset.save_to_disk`` wrote; or OWNER/NAME of a data set of the Hugging Face hub, such
        as ``"uoft-cs/cifar100"``.
    label, column : str, optional
        The columns of labels and of images or texts; by default the label is found by its name, and images,
        or else the longest texts, are taken. Rows without either are left out and counted in the notes.
    classes : int, optional
        Take so many classes only, chosen at random: 100 of ImageNet-1k's make ImageNet-100 (2.2.2).
    seed : int, default 0
        Of that choice.
    test : str, optional
        A table, the test part of another one.

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
    path, left_out, notes = Path(source), {}, []
    parts: Mapping[str, Part]
    codes: Mapping[str, np.ndarray]
    table = _table_source(path, source)
    if test is not None and table != "file":
        raise ArgumentError(f"--test can only be used with a table; {source} is none. Leave it out.")
    if table == "images":
        if label is not None or column is not None:
            raise ArgumentError(
                f"{source} is a folder of images, where folders are classes; leave out --label and --column."
            )
        folder = _read_folder(path)
        kind, parts, left_out = "image", folder.parts, folder.left_out
        codes, names = number(folder.labels, source)
    else:
        if table == "file":
            opened = {"train": read_rows(path)} | ({} if test is None else {"test": read_rows(Path(test))})
        elif table == "folder":
            opened = {part: read_rows(file) for part, file in table_parts(path).items()}
        else:
            opened = open_parts(source)
        found = choose(opened, label, column, source, test is not None)
        kind, label, column, parts = found.kind, found.label, found.column, found.parts
        codes, names, notes = found.codes, found.classes, found.notes
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
    return Items(kind, parts, rows, labels, names, left_out, label, column, notes)


def _table_source(path: Path, source: str) -> str:
    """Say what a source is: "images", a table's "file", a "folder" of tables, or for datasets, "hub"."""
    if path.is_file():
        return "file"
    if not path.is_dir():
        if is_hub_name(source):
            return "hub"
        raise DataError(
            f"there is no file or folder {source}; give one, or a data set of the Hugging Face hub as "
            "OWNER/NAME."
        )
    if is_stored(path):
        return "hub"
    files = [file for file in path.rglob("*") if file.is_file() and is_table(file)]
    if not files or any(is_image(file) for file in path.rglob("*") if file.is_file()):
        return "images"
    if "train" in table_parts(path):
        return "folder"
    if any(file.suffix.lower() == ".parquet" for file in files):
        return "hub"
    if any(inner.is_dir() for inner in path.iterdir()):
        return "images"  # of kinds that cannot be read, beside notes
    raise DataError(
        f"{path} holds tables ({', '.join(file.name for file in files[:5])}), but none called train, such as "
        "train.csv; rename it, or give the file itself."
    )


def _read_folder(folder: Path) -> ImageFolder:
    try:
        return read_folder(folder)
    except OSError as error:  # a folder that may not be read
        raise DataError(f"{folder} cannot be read: {error}.") from error
