"""Labels of any type as names of classes, and these as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fpe.errors import DataError

#: Columns that hold the labels where none is named.
LABELS = ("label", "fine_label", "labels", "intent", "class", "target")


def label_names(values: Iterable[Any], what: str) -> list[str | None]:
    """Return the class's name of each label, None where it is missing.

    Whole numbers are named alike whether they were read as integers or, beside missing ones, as floats.
    Blanks around a name are no part of it. ``"None"``, ``"NA"`` and the like are names.

    Parameters
    ----------
    values : iterable
        Labels: text, numbers or truth values; None, NaN, pandas' NA or ``""`` where one is missing.
    what : str
        Whose they are, for messages.

    Raises
    ------
    DataError
        If a label is a list, or a number that is not whole.
    """
    known: dict[tuple[type, Any], str | None] = {}
    names = []
    for value in values:
        try:
            key = (type(value), value)
            if key not in known:
                known[key] = _name(value, what)
            names.append(known[key])
        except TypeError as error:  # it has no hash
            raise DataError(
                f"{what} holds a {type(value).__name__}; a label is one name or one number for each row."
            ) from error
    return names


def _name(value: Any, what: str) -> str | None:
    if value is None or value != value or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float | np.floating):
        if not np.isfinite(value) or value != int(value):
            raise DataError(
                f"{what} holds numbers that are not whole, such as {value}; labels are classes. fpe does no "
                "regression."
            )
        return str(int(value))
    return str(value)


def numbered(
    train: list[str], test: list[str] | None, what: str
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Number the classes from 0, those of both parts alike, by name.

    Returns
    -------
    y, y_test : ndarray
        Class numbers, int64; `y_test` is None if `test` is.
    classes : list of str
        In the order of numbers if all are whole numbers, else in that of the alphabet.

    Raises
    ------
    DataError
        If the test part has a class that the training part has not.
    """
    classes = sorted(set(train))
    try:
        classes.sort(key=int)
    except ValueError:
        classes.sort()
    number = {name: i for i, name in enumerate(classes)}
    strange = sorted(set(test or ()) - set(classes))
    if strange:
        raise DataError(
            f"the test part of {what} has {len(strange)} classes that the training part has not "
            f"({some(strange)}); no network can learn them. Remove those rows, or write the names alike."
        )
    y = np.array([number[name] for name in train], dtype=np.int64)
    return y, None if test is None else np.array([number[name] for name in test], dtype=np.int64), classes


def some(values: Iterable[Any], most: int = 5) -> str:
    """Return the first few values as text."""
    every = list(values)
    return ", ".join(str(v) for v in every[:most]) + (", …" if len(every) > most else "")
