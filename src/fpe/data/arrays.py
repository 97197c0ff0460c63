"""Read features and labels from .npz files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fpe.data.parts import TESTS, Raw
from fpe.errors import DataError


def read_npz(path: Path) -> Raw:
    """Read X_train and y_train, or X and y; and X_test and y_test or another test part, in any case.

    Raises
    ------
    DataError
        If the file is broken, or its arrays have other names.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a whole .npz file of plain arrays ({error}); it may be truncated, or hold Python "
            "objects. Write it again with numpy.savez, labels as numbers or fixed-length strings."
        ) from error
    lower: dict[str, str] = {}
    for name in arrays:
        if name.lower() in lower:
            raise DataError(f"{path} holds {lower[name.lower()]!r} and {name!r}; rename one of them.")
        lower[name.lower()] = name

    def pair(*ends: str) -> tuple[str, str] | None:
        return next(((f"x{e}", f"y{e}") for e in ends if f"x{e}" in lower and f"y{e}" in lower), None)

    train, test = pair("_train", ""), pair(*(f"_{name}" for name in TESTS))
    if train is None:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; give X_train and y_train, with X_test and "
            "y_test if there is a test part, or X and y."
        )
    used = {*train, *(test or ()), "classes"}
    unused = sorted(lower[name] for name in lower if name not in used)
    half = [name for name in unused if name.lower().partition("_")[2] in TESTS and test is None]
    if half:
        raise DataError(
            f"{path} holds {', '.join(half)} without its other half; give X_test and y_test, or neither."
        )

    def array(name: str) -> Any:
        return arrays[lower[name]]

    return Raw(
        X=array(train[0]),
        y=array(train[1]),
        X_test=None if test is None else array(test[0]),
        y_test=None if test is None else array(test[1]),
        classes=arrays[lower["classes"]] if "classes" in lower else None,
        notes=[f"{', '.join(unused)} in the file: not used"] if unused else [],
    )
