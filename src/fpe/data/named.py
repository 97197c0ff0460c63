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
    encoder = "--encoder sentence-transformers/all-MiniLM-L6-v2"
    return _embeddings("Banking77", "banking77-minilm", f"mteb/banking77 {encoder} --out banking77")


def _cifar100() -> Raw:
    """Return CIFAR-100 (Krizhevsky 2009), 100 classes, embedded by EfficientNet-Lite0."""
    return _embeddings("CIFAR-100", "cifar100-efficientnet", "uoft-cs/cifar100 --out cifar100")


def _embeddings(title: str, name: str, options: str) -> Raw:
    """Read embeddings from ``FPE_DATA``; `options` are those of ``fpe embed`` that make them."""
    folder = find_folder(name)
    if folder is None:
        raise DataError(
            f"the embeddings of {title} were not found. Make them with `fpe embed {options}` and give that "
            f"folder; or put {name}.npz into a folder {name}, and set FPE_DATA to the folder above."
        )
    return read_npz(folder / f"{name}.npz")


def _letter() -> Raw:
    """Return Letter Recognition (Frey & Slate 1991): 16,000 rows to learn, the last 4,000 to test."""
    folder = find_folder("letter")
    if folder is None:
        raise DataError(
            "Letter Recognition was not found. Put letter-recognition.data of the UCI archive into "
            "a folder letter, and set FPE_DATA to the folder above."
        )
    path = folder / "letter-recognition.data"
    rows = np.loadtxt(path, delimiter=",", dtype=str)
    rows = rows[len(rows[0, 0]) > 1 :]  # some copies begin with the names of the columns
    if rows.shape != (20_000, 17):
        raise DataError(
            f"{path} has {' × '.join(map(str, rows.shape))} values; the archive's has 20,000 × 17."
        )
    classes, y = np.unique(rows[:, 0], return_inverse=True)
    X = rows[:, 1:].astype(np.float32) / 15
    return Raw({"train": (X[:16_000], y[:16_000]), "test": (X[16_000:], y[16_000:])}, classes)


NAMED = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "banking77": _banking77,
    "cifar100": _cifar100,
    "letter": _letter,
}


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
