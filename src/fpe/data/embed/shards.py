"""Embeddings on disk: a folder of shards, each complete or absent, and a file that describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.extras import need
from fpe._util.files import write_atomically
from fpe.data.parts import Raw
from fpe.errors import DataError

#: The file that describes the shards.
MANIFEST = "embeddings.json"
FORMATS = ("safetensors", "parquet")


def shard_names(manifest: dict[str, Any]) -> dict[tuple[str, int], str]:
    """Return the file name of each shard, by part and number."""
    return {
        (part, number): f"{part}-{number:05d}.{manifest['format']}"
        for part, count in manifest["shards"].items()
        for number in range(count)
    }


def write_shard(path: Path, X: np.ndarray, y: np.ndarray, classes: list[str]) -> None:
    """Write embeddings, (samples, features), and class numbers; the same arrays make the same bytes.

    The ending of `path` says the format: ``.safetensors`` with X and y, or ``.parquet`` with columns
    ``embedding`` and ``label``, the class's name.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        arrays = {"X": np.ascontiguousarray(X), "y": y}
        write_atomically(path, lambda file: save_file(arrays, file))
        return
    pyarrow, parquet = need("pyarrow", "parquet"), need("pyarrow.parquet", "parquet")
    embedding = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X.reshape(-1)), X.shape[1])
    table = pyarrow.table({"embedding": embedding, "label": np.array(classes)[y]})
    write_atomically(path, lambda file: parquet.write_table(table, file))


def _read_shard(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    parquet = need("pyarrow.parquet", "parquet") if path.suffix == ".parquet" else None
    try:
        if parquet is None:
            from safetensors.numpy import load_file

            arrays = load_file(path)
            return arrays["X"], arrays["y"]
        table = parquet.read_table(path)
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        number = {name: i for i, name in enumerate(classes)}
        y = np.array([number[name] for name in table["label"].to_pylist()], dtype=np.int64)
        return flat.reshape(len(table), -1), y
    except Exception as error:  # each library has errors of its own for a broken file
        raise DataError(f"{path} is broken ({error}); remove it and run fpe embed again.") from error


def read_embeddings(folder: Path, manifest: dict[str, Any]) -> Raw:
    """Read all shards of a folder; say which are missing or broken."""
    names = shard_names(manifest)
    missing = [name for name in names.values() if not (folder / name).exists()]
    if missing:
        raise DataError(
            f"{folder} is not finished: {len(missing)} of {len(names)} shards are missing ({missing[0]}, …); "
            "run the same fpe embed command again to make them."
        )
    parts = {}
    for part in manifest["shards"]:
        paths = [folder / name for (own, _), name in names.items() if own == part]
        shards = [_read_shard(path, manifest["classes"]) for path in paths]
        parts[part] = (np.concatenate([X for X, _ in shards]), np.concatenate([y for _, y in shards]))
    return Raw(parts, np.array(manifest["classes"]))
