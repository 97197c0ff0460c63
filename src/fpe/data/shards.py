"""Embeddings on disk: a folder of shards, each whole or absent, and a file that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.files import write_atomically
from fpe.errors import DataError

#: The file that says what the shards are.
MANIFEST = "embeddings.json"
FORMATS = ("safetensors", "parquet")


def shard_path(folder: Path, part: str, number: int, format: str) -> Path:
    """Return the file of a shard."""
    return folder / f"{part}-{number:05d}.{format}"


def write_shard(path: Path, X: np.ndarray, y: np.ndarray, classes: list[str]) -> None:
    """Write a shard; a crash leaves none. The same arrays make the same bytes.

    Parameters
    ----------
    path : Path
        Its ending says the format: ``.safetensors`` with X and y, or ``.parquet`` with columns
        ``embedding`` and ``label``, the class's name.
    X : ndarray
        Embeddings, (samples, features), float16 or float32.
    y : ndarray
        Class numbers, (samples,).
    classes : list of str
        Names of the classes.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        arrays = {"X": np.ascontiguousarray(X), "y": y}
        write_atomically(path, lambda file: save_file(arrays, file))
        return
    import pyarrow
    import pyarrow.parquet

    embedding = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X.reshape(-1)), X.shape[1])
    table = pyarrow.table({"embedding": embedding, "label": np.array(classes)[y]})
    write_atomically(path, lambda file: pyarrow.parquet.write_table(table, file))


def read_shard(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a shard.

    Raises
    ------
    DataError
        If it is broken.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            arrays = load_file(path)
            return arrays["X"], arrays["y"]
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        column = table["embedding"].combine_chunks()
        X = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        number = {name: i for i, name in enumerate(classes)}
        return X, np.array([number[name] for name in table["label"].to_pylist()], dtype=np.int64)
    except Exception as error:  # each library has errors of its own for a broken file
        raise DataError(f"{path} is broken ({error}); remove it and run fpe embed again.") from error


def read_embeddings(folder: Path, manifest: dict[str, Any]) -> tuple[Any, ...]:
    """Return X, y, X_test, y_test, classes of a folder of embeddings; the test part may be None.

    Raises
    ------
    DataError
        If shards are missing or broken.
    """
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, count in manifest["shards"].items():
        paths = [shard_path(folder, part, i, manifest["format"]) for i in range(count)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise DataError(
                f"{folder} is not finished: {len(missing)} of {count} shards of the {part} part are missing "
                f"({missing[0]}, …); run the same fpe embed command again to make them."
            )
        read = [read_shard(path, manifest["classes"]) for path in paths]
        parts[part] = np.concatenate([X for X, _ in read]), np.concatenate([y for _, y in read])
    test = parts.get("test", (None, None))
    return (*parts["train"], *test, np.array(manifest["classes"]))
