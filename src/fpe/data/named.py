"""Data sets known by name."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fpe.data.arrays import read_npz
from fpe.errors import DataError

_FASHION = {
    "X": "train-images-idx3-ubyte.gz",
    "y": "train-labels-idx1-ubyte.gz",
    "X_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def digits() -> tuple[Any, ...]:
    """Return scikit-learn's 1,797 digits of 8×8 pixels, scaled to 0 … 1, without a test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.data / 16, bunch.target, None, None, bunch.target_names.astype(str)


def fashion_mnist() -> tuple[Any, ...]:
    """Return Fashion-MNIST (Xiao et al. 2017), pixels scaled to 0 … 1, in its own split.

    Its IDX files are looked for in the folder ``fashion-mnist`` of ``FPE_DATA``; failing that, scikit-learn
    takes it from its cache, or downloads it from OpenML, once.
    """
    folder = find_folder("fashion-mnist")
    if folder is None:
        return _fashion_mnist_from_openml()
    parts = {name: read_idx(folder / file) for name, file in _FASHION.items()}
    for part in ("X", "X_test"):
        parts[part] = parts[part].astype(np.float32) / 255
    return parts["X"], parts["y"], parts["X_test"], parts["y_test"], np.array(_FASHION_CLASSES)


def _fashion_mnist_from_openml() -> tuple[Any, ...]:
    from sklearn.datasets import fetch_openml

    try:
        bunch = fetch_openml("Fashion-MNIST", version=1, as_frame=False, parser="liac-arff")
    except Exception as error:  # no network, or any of the errors a download can end with
        raise DataError(
            f"Fashion-MNIST is not here and cannot be downloaded ({error}). Put its four IDX files into a "
            "folder fashion-mnist and set FPE_DATA to the folder that holds it."
        ) from error
    X, y = bunch.data.astype(np.float32) / 255, bunch.target.astype(np.int64)
    return X[:60_000], y[:60_000], X[60_000:], y[60_000:], np.array(_FASHION_CLASSES)


def banking77() -> tuple[Any, ...]:
    """Return Banking77 (Casanueva et al. 2020), 77 intents, embedded by the frozen all-MiniLM-L6-v2.

    ``banking77-minilm/banking77-minilm.npz`` is looked for as Fashion-MNIST is; `fpe embed` can make the
    embeddings anew.
    """
    folder = find_folder("banking77-minilm")
    if folder is None:
        raise DataError(
            "the embeddings of Banking77 are not here. Make them with `fpe embed mteb/banking77 --encoder "
            "sentence-transformers/all-MiniLM-L6-v2 --out banking77` and give that folder; or put "
            "banking77-minilm.npz into a folder banking77-minilm, and set FPE_DATA to the folder above."
        )
    raw = read_npz(folder / "banking77-minilm.npz")
    return raw.X, raw.y, raw.X_test, raw.y_test, raw.classes


def find_folder(name: str) -> Path | None:
    """Return the folder of this data set, or None if it is not here.

    Raises
    ------
    DataError
        If ``FPE_DATA`` is set but is no folder.
    """
    chosen = os.environ.get("FPE_DATA")
    if chosen is not None and not Path(chosen).is_dir():
        raise DataError(
            f"FPE_DATA is {chosen!r}, which is no folder; set it to the folder of the data, or unset it."
        )
    folder = Path(chosen, name) if chosen is not None else None
    return folder if folder is not None and folder.is_dir() else None


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes, the form in which the MNIST family is published.

    Raises
    ------
    DataError
        If the file is missing, truncated, or of another form.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is missing, truncated or not gzipped ({error}); fetch it again.") from error
    header = 4 + 4 * content[3] if len(content) >= 4 else 4
    if len(content) < header or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes; fetch it again.")
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    data = np.frombuffer(content, dtype=np.uint8, offset=header)
    if data.size != math.prod(shape):
        raise DataError(
            f"{path} is truncated: it names {shape}, but holds {data.size} bytes; fetch it again."
        )
    return data.reshape(shape)


NAMED: dict[str, Callable[[], tuple[Any, ...]]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "banking77": banking77,
}
