"""Write files so that a crash, a full disk or Ctrl-C keeps the old one; read and write JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fpe.errors import DataError, WriteError


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, of the same suffix, and rename it to `path`.

    Missing parent folders are made. If the file cannot be written, `WriteError` is raised, `path` is as it
    was and the temporary file is removed.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.stem}-{os.urandom(8).hex()}{path.suffix}"
        temporary.open("xb").close()
        mode = temporary.stat().st_mode  # that of any new file of this process; `write` may make another
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(
            f"could not write {path}: {error.strerror or error}. What stood there before is unchanged; "
            "free some space or choose another place."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def finite(record: Any) -> Any:
    """Return a record with None in place of NaN and infinite numbers, which JSON does not have."""
    if isinstance(record, float):
        return record if math.isfinite(record) else None
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return record


def to_json(record: Any, indent: int | None = None) -> str:
    """Return a record as JSON, with null in place of NaN and infinite numbers."""
    return json.dumps(finite(record), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, record: Any) -> None:
    """Write a record as JSON (see `to_json`), atomically."""
    text = to_json(record, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file, `DataError` if it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it may be truncated or edited. Remove it and run the command "
            "again."
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"{path} holds a {type(record).__name__} and no record of fpe; remove it.")
    return record
