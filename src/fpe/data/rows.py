"""New rows to predict on: a table, an array or a folder of embeddings, with labels if there are any."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.files import read_json
from fpe.data.embed.shards import MANIFEST, read_embeddings
from fpe.data.parts import BROKEN, TESTS, some
from fpe.data.tables import TABLES, is_table, read_table
from fpe.errors import DataError


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their file: a frame, or an array, (rows, features), and its labels or None."""

    X: Any
    y: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


def read_rows(path: Path, known: Collection[str] = (), texts: Collection[str] = ()) -> Rows:
    """Read a table, as ``fpe fit`` does; an array (.npy, .npz); or what ``fpe embed`` wrote.

    `known` and `texts` are names of columns, as for `fpe.data.tables.read_table`.

    An .npz file has ``X``, or else a test part such as ``X_test``, and perhaps its ``y``. Of embeddings the
    test part is taken, if there is one. Errors are `DataError`.
    """
    manifest = read_json(path / MANIFEST)
    if manifest is not None:
        parts = read_embeddings(path, manifest).parts
        part = "test" if "test" in parts else "train"
        own, codes = parts[part]
        return Rows(own, np.array(manifest["classes"])[codes], [f"the {part} part of {path.name}"])
    if not path.is_file():
        raise DataError(f"there is no file {path}; give new rows as .npy, .npz or {', '.join(TABLES)}.")
    if is_table(path):
        frame, notes = read_table(path, known, texts)
        return Rows(frame, None, notes)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} is of no known kind; files can end in .npy, .npz, {', '.join(TABLES)}.")
    try:
        with path.open("rb") as file:
            found: Any = np.load(file, allow_pickle=False)
            arrays = {"x": found} if isinstance(found, np.ndarray) else {n.lower(): found[n] for n in found}
    except (*BROKEN, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a whole file of plain arrays ({error}); write it again with numpy.save or "
            "numpy.savez."
        ) from error
    ending = next((end for end in ("", *(f"_{name}" for name in TESTS)) if f"x{end}" in arrays), None)
    if ending is None:
        raise DataError(f"{path} has {some(arrays) or 'nothing'}; give X, and y if there are labels.")
    X, y = arrays[f"x{ending}"], arrays.get(f"y{ending}")
    if X.ndim < 2 or 0 in X.shape or X.dtype.kind not in "biuf":
        raise DataError(
            f"X in {path} has shape {X.shape} and type {X.dtype}; give (rows, features), numbers."
        )
    if y is not None and y.shape[:1] != X.shape[:1]:
        raise DataError(
            f"{path} has {len(X)} rows, but y of shape {y.shape}; give each row a label, or no y."
        )
    classes = arrays.get("classes")
    if classes is not None and y is not None and y.dtype.kind in "iu" and y.ndim == 1:
        named = (y >= 0) & (y < len(classes))
        y = np.where(named, classes.astype(str)[np.where(named, y, 0)], y.astype(str))
    return Rows(X.reshape(len(X), -1), y, [f"X{ending} of {path.name}"] if ending else [])
