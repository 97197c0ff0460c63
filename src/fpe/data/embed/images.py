"""Images: read one as 8-bit RGB; find those of a folder, their classes and parts."""

from __future__ import annotations

import functools
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.extras import need
from fpe.data.parts import TESTS, TRAINS, some
from fpe.errors import DataError

#: Kinds that Pillow recognizes but cannot read on every machine, or at all.
_RECOGNIZED_ONLY = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
#: Images that Pillow cannot read; a class folder that has only these is an error.
_UNREADABLE = (".heic", ".heif", ".jxl", ".svg", ".cr2", ".nef", ".arw", ".dng", ".raw")


def read_image(source: Any) -> Any:
    """Read an image, a file or its bytes or what Hugging Face datasets stores, as 8-bit RGB.

    It is rotated as its EXIF data say. What is transparent becomes white. 16-bit values are scaled from 0 …
    65535 to 0 … 255, floating-point values from 0 … 1. Of several frames the first is taken. Pillow's errors
    pass through.
    """
    from PIL import Image

    if isinstance(source, dict):
        if source.get("bytes") is None and not Path(source.get("path") or "").is_file():
            import datasets  # files in archives

            return _as_rgb(datasets.Image().decode_example(source))
        source = source.get("bytes") or source["path"]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return _as_rgb(image)


def _as_rgb(image: Any) -> Any:
    from PIL import Image, ImageOps

    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data beside sound pixels
        image.info.pop("exif", None)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Any) -> np.ndarray:
    """Scale gray values of more than eight bits by the range of their type, not of the image."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("floating-point pixels outside 0 … 1; convert them to 8 or 16 bits")
        return np.rint(values * 255).astype(np.uint8)
    if image.mode.startswith("I;16") or getattr(image, "format", None) == "PNG":
        return np.rint(values / 257).astype(np.uint8)
    raise ValueError("32-bit integer pixels have no known range; convert them to 8 or 16 bits")


@functools.cache
def _endings() -> frozenset[str]:
    Image = need("PIL.Image", "embed")
    kinds = Image.registered_extensions().items()
    return frozenset(end for end, kind in kinds if kind in Image.OPEN and kind not in _RECOGNIZED_ONLY)


def is_image_name(name: str) -> bool:
    """Return whether a name has the ending of an image that Pillow can read."""
    return Path(name).suffix.lower() in _endings()


def is_image(path: Path) -> bool:
    """Return whether a file is an image that Pillow can read: by its ending, or else by its content."""
    if is_image_name(path.name):
        return True
    try:
        with need("PIL.Image", "embed").open(path) as image:
            return image.format not in _RECOGNIZED_ONLY
    except Exception:  # whatever Pillow's plugins raise for other files
        return False


@dataclass(frozen=True)
class Column:
    """Texts, or images as `read_image` takes them, by row; files also have names, paths below a folder."""

    values: Any
    names: Sequence[str] = ()

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return the values of these rows."""
        return [self.values[int(row)] for row in rows]

    def name(self, row: int) -> str:
        """Return the name of a row in messages."""
        return self.names[row] if self.names else f"row {row} (from 0)"

    def keys(self, rows: Iterable[int]) -> list[Any]:
        """Return what changes when these rows do: values; of files, names, sizes and times of change."""
        if not self.names:
            return self.take(rows)
        stats = [(self.names[i], self.values[i].stat() if self.values[i].exists() else None) for i in rows]
        return [(name, stat.st_size, stat.st_mtime_ns) if stat else name for name, stat in stats]


@dataclass(frozen=True)
class Items:
    """Images or texts of a training part and, where there is one, a test part; which are taken."""

    #: "image" or "text".
    kind: str
    parts: dict[str, Column]
    #: The class of each item, None where it is left out.
    names: Mapping[str, Sequence[str | None]]
    #: Names of the classes, in the order of their numbers; if empty, those of `names`.
    classes: list[str] = field(default_factory=list)
    #: Files that are not used, by the reason.
    left_out: dict[str, list[str]] = field(default_factory=dict)
    #: The columns of a table that labels and images or texts were taken from.
    label: str | None = None
    column: str | None = None
    #: What was left out of a table or guessed, and why.
    notes: list[str] = field(default_factory=list)
    #: Numbers of the rows that are taken, and their class numbers.
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)


def listed(left_out: Mapping[str, Sequence[str]]) -> str:
    """Return what is left out, a line for each reason."""
    lines = (f"left out: {reason}: {len(names):,}, {some(names)}\n" for reason, names in left_out.items())
    return "".join(lines)


def read_folder(root: Path) -> Items:
    """Find images, classes and parts; every file is used, or listed with the reason.

    The class of an image is the first folder below `root`; if there is a folder ``train``, the first below
    that one and below ``test`` (or else ``validation``, ``val``, ``dev`` …). Deeper folders and file names do
    not matter. Doubtful layouts, and classes without a readable image, are refused.
    """
    left_out, reasons = dict[Path, str](), dict[str, list[str]]()
    train, tests = _part_folders(root, left_out)
    pairs, used = {"train": _collect(root, train, left_out)}, ""
    for test in tests:
        if used:
            left_out[test] = f"the test part is {used}"
        elif found := _collect(root, test, left_out):
            pairs["test"], used = found, test.name
    for path, reason in left_out.items():
        reasons.setdefault(reason, []).append(path.relative_to(root).as_posix() + "/" * path.is_dir())
    classes = sorted({label for label, _ in pairs["train"]})
    if len(classes) < 2:
        has, inner = "no folders of images", list[Path]()
        if classes:
            has, inner = f"only one folder of images, {classes[0]}", _subfolders(train / classes[0])
        hint = f" If {_names(inner)} are classes or parts, give {train / classes[0]}." if inner else ""
        needs = "fpe embed needs one for each of at least two classes"
        raise DataError(f"{train} has {has}; {needs}.{hint}\n{listed(reasons)}")
    parts = {part: Column([root / n for _, n in own], [n for _, n in own]) for part, own in pairs.items()}
    names = {part: [label for label, _ in own] for part, own in pairs.items()}
    return Items("image", parts, names, left_out=reasons)


def _part_folders(root: Path, left_out: dict[Path, str]) -> tuple[Path, list[Path]]:
    """Return the folder of the training part, and those that may be the test part."""
    folders = _subfolders(root)
    trains, tests = (
        [path for name in names for path in folders if path.name.lower() == name] for names in (TRAINS, TESTS)
    )
    others = [path for path in folders if path not in trains + tests]
    flat = bool(trains) and not _subfolders(trains[0])
    if trains and others and flat == bool(tests):
        what = f"{trains[0].name} is a part or a class, beside {_names([*tests, *others])}"
        raise DataError(f"in {root} it is not clear whether {what}; move other folders away, or rename it.")
    if trains and not (others and flat):
        beside = [path for path in sorted(root.iterdir()) if path not in (trains[0], *tests)]
        left_out.update((path, _system(path) or "beside the parts") for path in beside)
        return trains[0], tests
    if tests and not others:
        raise DataError(f"{root} has {_names(tests)}, but no folder called train; rename the training part.")
    # The folders are about to become classes.
    classes = {path.name for path in folders}
    for test in tests:
        same = [path for path in _subfolders(test) if path.name in classes]
        if same:
            what = f"class folders, and {test.name} has folders of the same names ({_names(same)})"
            raise DataError(f"{root} has {what}; put those of the training part into a folder train.")
    words = {path: set(re.split(r"[^a-z]+", path.name.lower())) for path in folders if _subfolders(path)}
    like_train, like_test = ({p for p in words if words[p] & set(names)} for names in (TRAINS, TESTS))
    both = sorted(like_train | like_test)
    if like_train and like_test and len(both) > 1:
        raise DataError(f"{root} has {_names(both)}, which look like parts; call them train and test.")
    return root, []


def _collect(root: Path, folder: Path, left_out: dict[Path, str]) -> list[tuple[str, str]]:
    """Return class and name of all images in the class folders of one part, in order."""
    pairs = list[tuple[str, str]]()
    for path in sorted(folder.iterdir()):
        if _system(path) or not path.is_dir():
            left_out[path] = _system(path) or "not in a class folder"
            continue
        images, unreadable = list[Path](), list[Path]()
        for file in _files(path, left_out):
            ending = file.suffix.lower()
            if is_image(file):
                images.append(file)
            elif ending in _UNREADABLE:
                unreadable.append(file)
                left_out[file] = f"of the kind {ending}, which Pillow cannot read (convert to JPEG or PNG)"
            else:
                left_out[file] = "no image"
        if not images and unreadable:
            many = f"none of the {len(unreadable)} images in {path} can be read"
            raise DataError(f"{many}: {_names(unreadable)}. Convert them to JPEG or PNG.")
        if not images:
            left_out[path] = "without images"
        label = unicodedata.normalize("NFC", path.name).strip()
        pairs += [(label, file.relative_to(root).as_posix()) for file in images]
    return sorted(pairs)


def _files(folder: Path, left_out: dict[Path, str]) -> Iterator[Path]:
    """Yield all files below a folder, through links too, but not round a loop of links."""
    if folder.resolve() in (above.resolve() for above in folder.absolute().parents):
        left_out[folder] = "a link to a folder above it"
        return
    for path in sorted(folder.iterdir()):
        if _system(path):
            left_out[path] = _system(path)
        elif path.is_dir():
            yield from _files(path, left_out)
        else:
            yield path


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _system(path))


def _system(path: Path) -> str:
    """Return why a file or folder is left out whatever it contains, or an empty text."""
    hidden = path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "__macosx")
    return "hidden, or made by the system" if hidden else ""


def _names(paths: Sequence[Path]) -> str:
    return some(path.name for path in paths)
