"""Open data sets that Hugging Face datasets reads: of its hub, saved ones, folders of parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpe.data.embed.tables import Column, Rows
from fpe.data.parts import TESTS
from fpe.data.tables import is_table
from fpe.errors import ArgumentError, DataError


class Images(Column):
    """A column of images in a Hugging Face data set, read row by row.

    Parameters
    ----------
    values : datasets.Dataset
        One column; images are not decoded.
    """

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return the values of these rows."""
        (name,) = self.values.column_names
        return list(self.values[[int(row) for row in rows]][name])

    def absent(self) -> set[int]:
        """Return nothing: reading all images to find those that are missing takes too long."""
        return set()


def is_hub_name(source: str) -> bool:
    """Say whether a source that is no path here is OWNER/NAME, and not a path whose end is missing."""
    owner, _, name = source.partition("/")
    if Path(owner).exists() or is_table(Path(name)):
        return False
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def is_stored(folder: Path) -> bool:
    """Say whether a folder holds a data set that Hugging Face datasets wrote."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def open_parts(source: str) -> dict[str, Rows]:
    """Open the training part, and all that could be the test part.

    Parameters
    ----------
    source : str
        OWNER/NAME, or a folder.

    Raises
    ------
    ArgumentError
        If Hugging Face datasets is not installed.
    DataError
        If the source cannot be opened, or has no training part.
    """
    opened = _open(source)
    if hasattr(opened, "column_names") and not isinstance(opened, dict):
        opened = {"train": opened}
    if len(opened) == 1:
        opened = {"train": next(iter(opened.values()))}
    if "train" not in opened:
        raise DataError(f"{source} has the parts {', '.join(opened)}, but none called train.")
    return {part: _rows(opened[part], part) for part in ("train", *TESTS) if part in opened}


def _open(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ArgumentError(
            "fpe embed needs Hugging Face datasets: pip install 'fixed-parameter-expansion[embed]'"
        ) from error
    datasets.disable_progress_bars()
    path = Path(source)
    try:
        if not path.is_dir():
            return datasets.load_dataset(source)
        if is_stored(path):
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset("parquet", data_dir=str(path))
    except Exception as error:  # a broken file, no network, no such name: whatever it may end with
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source} could not be opened ({type(error).__name__}: {reason}). Give a folder with a "
            "folder of images for each class, a table with images or texts, or the name of a data set of the "
            "Hugging Face hub."
        ) from error


def _rows(opened: Any, part: str) -> Rows:
    """Turn a part into a frame, but for its images, which stay where they are, and columns of lists."""
    import datasets

    images, plain, classes = {}, [], {}
    for name, feature in opened.features.items():
        if name.startswith("__index_level_"):  # pandas' index
            continue
        binary = getattr(feature, "dtype", None) in ("binary", "large_binary")
        struct = isinstance(feature, dict) and "bytes" in feature
        if binary or struct or isinstance(feature, datasets.Image):
            images[name] = Images(
                opened.select_columns([name]).cast_column(name, datasets.Image(decode=False))
            )
        elif isinstance(feature, datasets.Value | datasets.ClassLabel):
            plain.append(name)
            if isinstance(feature, datasets.ClassLabel):
                classes[name] = [each.strip() for each in feature.names]
    return Rows(f"the {part} part", opened.select_columns(plain).to_pandas(), images, classes)
