"""Find the images of a folder, their classes and parts: every file is used, or listed with the reason."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fpe.data.embed.images import UNREADABLE, is_image
from fpe.errors import DataError

#: Names of the folder, directly below the source, that holds the training part.
TRAINS = ("train", "training")
#: Names of the folder that holds the test part; the first that has images in class folders.
TESTS = ("test", "testing", "validation", "valid", "val", "dev", "eval")
#: What systems leave in folders, beside names that begin with a dot.
_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")


class Files:
    """The image files of a part, in order.

    Attributes
    ----------
    root : Path
        The source.
    names : list of str
        Paths below the source, with ``/``.
    """

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Iterable[int]) -> list[Any]:
        """Return the files of these rows."""
        return [self.root / self.names[row] for row in rows]

    def name(self, row: int) -> str:
        """Return what a row is called in messages."""
        return self.names[row]

    def mark(self, rows: Iterable[int]) -> bytes:
        """Return what stands for these rows: names, sizes and times of change."""
        digest = hashlib.sha256()
        for row in rows:
            try:
                status = (self.root / self.names[row]).stat()
                digest.update(repr((self.names[row], status.st_size, status.st_mtime_ns)).encode())
            except OSError:  # a link to nowhere
                digest.update(repr(self.names[row]).encode())
        return digest.digest()


@dataclass
class ImageFolder:
    """What a folder of images holds.

    Attributes
    ----------
    root : Path
        The folder.
    parts : dict of str to Files
        ``"train"`` and, where there is one, ``"test"``.
    labels : dict of str to list of str
        The class of each file.
    left_out : dict of str to list of str
        Files and folders that are not used, by the reason.
    """

    root: Path
    parts: dict[str, Files] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, path: Path, reason: str) -> None:
        """List a file or folder that is not used."""
        name = path.relative_to(self.root).as_posix()
        self.left_out.setdefault(reason, []).append(name + "/" * path.is_dir())


def read_folder(root: Path) -> ImageFolder:
    """Find images, classes and parts.

    The class of an image is the first folder below the source. If the source holds a folder ``train``,
    it is the first folder below that one, and below ``test`` (or else ``validation``, ``val``, ``dev`` …).
    Deeper folders and the names of files play no part.

    Parameters
    ----------
    root : Path
        An existing folder.

    Returns
    -------
    ImageFolder

    Raises
    ------
    DataError
        If there are fewer than two classes, if it is doubtful which folders are classes or parts, or if none
        of a class's images can be read.
    """
    found = ImageFolder(root)
    train, tests = _part_folders(found)
    _collect(found, "train", train)
    for test in tests:
        if "test" in found.parts:
            found.leave_out(test, f"the test part is {found.parts['test'].names[0].partition('/')[0]}")
        else:
            _collect(found, "test", test)
    classes = sorted(set(found.labels.get("train", ())))
    if len(classes) < 2:
        has, hint = "no folders of images", ""
        if classes:
            inner, has = _subfolders(train / classes[0]), f"only one folder of images, {classes[0]}"
            hint = f" If its folders ({_some(inner)}) are classes or parts, give {train / classes[0]}."
            hint = hint if inner else ""
        raise DataError(
            f"{train} has {has}; fpe embed needs one for each of at least two classes.{hint}"
            f"\n{listed(found.left_out)}".rstrip()
        )
    return found


def listed(left_out: dict[str, list[str]]) -> str:
    """Say what is not used, a line for each reason."""
    return "".join(
        f"left out: {reason}: {len(names):,}, {_some(names)}\n" for reason, names in left_out.items()
    )


def _part_folders(found: ImageFolder) -> tuple[Path, list[Path]]:
    """Return the folder of the training part, and those that may hold the test part."""
    root = found.root
    folders = {path.name: path for path in _subfolders(root)}
    trains = [folders[name] for name in sorted(folders, key=_rank(TRAINS)) if name.lower() in TRAINS]
    tests = [folders[name] for name in sorted(folders, key=_rank(TESTS)) if name.lower() in TESTS]
    others = [path for path in folders.values() if path not in trains + tests]
    flat = bool(trains) and not _subfolders(trains[0])
    if trains and others and flat == bool(tests):
        raise DataError(
            f"in {root} it is not clear whether {trains[0].name} is a part or a class: it has "
            f"{'no' if flat else 'its own'} class folders, and stands beside {_some([*tests, *others])}. "
            "Move everything but the parts train and test away, or rename the class."
        )
    if trains and not (others and flat):
        for path in sorted(root.iterdir()):
            if path not in [trains[0], *tests]:
                found.leave_out(path, _system(path) or "beside the parts")
        return trains[0], tests
    if tests and not others:
        raise DataError(
            f"{root} has {_some(tests)}, but no folder called train; rename that of the training part."
        )
    _refuse_parts_as_classes(root, list(folders.values()), tests)
    return root, []


def _refuse_parts_as_classes(root: Path, folders: list[Path], tests: list[Path]) -> None:
    """Refuse folders that look like parts where the folders of the source are about to become classes."""
    names = {path.name for path in folders}
    for test in tests:
        same = [path for path in _subfolders(test) if path.name in names]
        if same:
            raise DataError(
                f"{root} has class folders and {test.name}, which holds folders of the same names "
                f"({_some(same)}). Put the class folders of the training part into a folder called train."
            )
    words = {path: set(re.split(r"[^a-z]+", path.name.lower())) for path in folders if _subfolders(path)}
    for first in words:
        for second in words:
            if first != second and words[first] & set(TRAINS) and words[second] & set(TESTS):
                raise DataError(
                    f"{root} has {first.name} and {second.name}, which look like parts but are not called "
                    "train and test; rename them."
                )


def _collect(found: ImageFolder, part: str, folder: Path) -> None:
    """Add the images of the class folders of one part, class by class; leave out what else is there."""
    names: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if _system(path):
            found.leave_out(path, _system(path))
        elif not path.is_dir():
            found.leave_out(path, "not in a class folder")
        else:
            own, unreadable = _images(found, path)
            if not own and unreadable:
                raise DataError(
                    f"none of the {len(unreadable)} images in {path} can be read: {_some(unreadable)}. "
                    "Convert them to JPEG or PNG."
                )
            if not own:
                found.leave_out(path, "without images")
            label = unicodedata.normalize("NFC", path.name).strip()
            names.setdefault(label, []).extend(own)
    labelled = [(label, name) for label in sorted(names) for name in sorted(names[label])]
    if labelled:
        found.parts[part] = Files(found.root, [name for _, name in labelled])
        found.labels[part] = [label for label, _ in labelled]


def _images(found: ImageFolder, folder: Path) -> tuple[list[str], list[str]]:
    """Return the images below a class folder, and those of kinds that cannot be read."""
    names, unreadable = [], []
    for path in _files(found, folder, frozenset()):
        name = path.relative_to(found.root).as_posix()
        if is_image(path):
            names.append(name)
            continue
        ending = path.suffix.lower()
        if ending in UNREADABLE:
            unreadable.append(name)
            found.leave_out(path, f"of the kind {ending}, which Pillow cannot read (convert to JPEG or PNG)")
        else:
            found.leave_out(path, "no image")
    return names, unreadable


def _files(found: ImageFolder, folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield all files below a folder, through links too, but round no loop of links."""
    real = folder.resolve()
    if real in above:
        found.leave_out(folder, "a link to a folder above it")
        return
    for path in sorted(folder.iterdir()):
        if _system(path):
            found.leave_out(path, _system(path))
        elif path.is_dir():
            yield from _files(found, path, above | {real})
        else:
            yield path


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _system(path))


def _system(path: Path) -> str:
    """Return why a file or folder is left out whatever it holds, or an empty text."""
    name = path.name.lower()
    return "hidden, or made by the system" if name.startswith(".") or name in _SYSTEM else ""


def _rank(names: Sequence[str]) -> Any:
    return lambda name: names.index(name.lower()) if name.lower() in names else len(names)


def _some(paths: Sequence[Path] | Sequence[str]) -> str:
    shown = ", ".join(path if isinstance(path, str) else path.name for path in paths[:5])
    return shown + (", …" if len(paths) > 5 else "")
