"""Data sets known by name, and arrays in .npz and IDX files."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import numpy as np

from fpe.data.parts import BROKEN, TESTS, Raw, some
from fpe.errors import DataError

_FASHION = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _digits() -> Raw:
    """Return scikit-learn's 1,797 digits of 8×8 pixels, without a test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Raw({"train": (bunch.data / 16, bunch.target)}, bunch.target_names)


def _fashion_mnist() -> Raw:
    """Return Fashion-MNIST (Xiao et al. 2017) from IDX files in ``FPE_DATA``, or else from OpenML."""
    folder = find_folder("fashion-mnist")
    if folder is not None:
        X, y, X_test, y_test = (read_idx(folder / f"{name}-ubyte.gz") for name in _FASHION)
    else:
        from sklearn.datasets import fetch_openml

        try:
            bunch = fetch_openml("Fashion-MNIST", version=1, as_frame=False, parser="liac-arff")
        except Exception as error:  # whatever a download can raise
            raise DataError(
                f"Fashion-MNIST cannot be downloaded ({error}). Put its four IDX files into a folder "
                "fashion-mnist, and set FPE_DATA to the folder above."
            ) from error
        images, labels = bunch.data, bunch.target.astype(np.int64)
        X, y, X_test, y_test = images[:60_000], labels[:60_000], images[60_000:], labels[60_000:]
    X, X_test = (part.astype(np.float32) / 255 for part in (X, X_test))
    return Raw({"train": (X, y), "test": (X_test, y_test)}, np.array(_FASHION_CLASSES))


def _banking77() -> Raw:
    """Return Banking77 (Casanueva et al. 2020), 77 intents, embedded by all-MiniLM-L6-v2."""
    folder = find_folder("banking77-minilm")
    if folder is None:
        raise DataError(
            "the embeddings of Banking77 were not found. Make them with `fpe embed mteb/banking77 --encoder "
            "sentence-transformers/all-MiniLM-L6-v2 --out banking77` and give that folder; or put "
            "banking77-minilm.npz into a folder banking77-minilm, and set FPE_DATA to the folder above."
        )
    return read_npz(folder / "banking77-minilm.npz")


NAMED = {"digits": _digits, "fashion-mnist": _fashion_mnist, "banking77": _banking77}


def find_folder(name: str) -> Path | None:
    """Return the folder of this name in ``FPE_DATA``, or None if there is none."""
    place = os.environ.get("FPE_DATA")
    if place is None:
        return None
    if not Path(place).is_dir():
        raise DataError(f"FPE_DATA is {place!r}, which is no folder; set it to the folder of the data.")
    folder = Path(place, name)
    return folder if folder.is_dir() else None


def read_npz(path: Path) -> Raw:
    """Read X_train and y_train, or X and y; and X_test and y_test or another test part, in any case."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.lower(): file[name] for name in file.files}
            names = list(file.files)
    except (*BROKEN, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a whole .npz file of plain arrays ({error}); it may be empty, truncated, or have "
            "Python objects. Write it again with numpy.savez, labels as numbers or fixed-length strings."
        ) from error
    if len(arrays) < len(names):
        raise DataError(f"{path} has {', '.join(names)}, of which two differ in case only; rename one.")
    parts = {}
    for part, endings in (("train", ("_train", "")), ("test", [f"_{name}" for name in TESTS])):
        pairs = [(f"x{end}", f"y{end}") for end in endings if {f"x{end}", f"y{end}"} <= arrays.keys()]
        if pairs:
            parts[part] = (arrays.pop(pairs[0][0]), arrays.pop(pairs[0][1]))
    if "train" not in parts:
        raise DataError(
            f"{path} has {some(names) or 'nothing'}; give X and y, or X_train, y_train, X_test, …"
        )
    classes = arrays.pop("classes", None)
    unused = [name for name in names if name.lower() in arrays]
    if "test" not in parts and any(name.partition("_")[2] in TESTS for name in arrays):
        raise DataError(f"{path} has only half of a test part ({', '.join(unused)}); give X_test and y_test.")
    return Raw(parts, classes, notes=[f"{', '.join(unused)} in the file: not used"] if unused else [])


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes, the format in which the MNIST family is published."""
    try:
        content = gzip.decompress(path.read_bytes())
    except BROKEN as error:
        raise DataError(f"{path} is missing, truncated or not gzipped ({error}); fetch it again.") from error
    header = 4 + 4 * content[3] if len(content) >= 4 else 4
    if len(content) < header or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes; fetch it again.")
    shape = np.frombuffer(content, ">i4", content[3], offset=4).tolist()
    data = np.frombuffer(content, np.uint8, offset=header)
    if data.size != math.prod(shape):
        raise DataError(f"{path} is truncated: it names {shape}, but has {data.size} bytes; fetch it again.")
    return np.asarray(data.reshape(shape))
