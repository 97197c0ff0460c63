"""Writing files so that a crash, a full disk or Ctrl-C leaves the old one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fpe.errors import WriteError


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, then put it in the place of `path` in one step.

    Parameters
    ----------
    path : path-like
        Where the file is to be. Missing parent folders are made.
    write : callable
        Gets the path of an empty temporary file in the same folder, of the same ending.

    Raises
    ------
    WriteError
        If the file cannot be written; what stood at `path` still stands, nothing else is left behind.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(
            f"could not write {path}: {error.strerror or error}. What stood there before is unchanged; "
            "free some space or choose another place."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
