"""What a choice has found so far, on disk, so that one that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fpe import __version__
from fpe._util.files import read_json, write_json
from fpe.budget.candidates import CANDIDATES, Settings
from fpe.budget.halving import Entry


@dataclass(frozen=True)
class Kept:
    """The tables of a choice by the width of the parents, each a file as soon as it is known.

    Attributes
    ----------
    folder : Path or None
        Where; None to keep nothing.
    identity : str
        Stands for all that the tables depend on. A table of another identity is not found.
    """

    folder: Path | None
    identity: str

    def find(self, width: int) -> list[Entry] | None:
        """Return a table that was stored before; None if there is none."""
        record = None if self.folder is None else read_json(self._file(width))
        if record is None or record.get("identity") != self.identity:
            return None
        names = ("name", "nonzero", "rounds", "accuracies", "reason")
        return [
            Entry(settings=Settings(**entry["settings"]), **{name: entry[name] for name in names})
            for entry in record["table"]
        ]

    def store(self, width: int, table: list[Entry]) -> None:
        """Write a table."""
        if self.folder is not None:
            record = {"identity": self.identity, "table": [entry.to_dict() for entry in table]}
            write_json(self._file(width), record)

    def _file(self, width: int) -> Path:
        assert self.folder is not None
        return self.folder / f"h{width}.json"


def identity_of(X: Tensor, y: Tensor, how: Mapping[str, Any]) -> str:
    """Return a hash of data, arguments, candidates and version."""
    digest = hashlib.sha256()
    for array in (X.contiguous().numpy(), y.contiguous().numpy()):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(array.data)
    digest.update(json.dumps({"fpe": __version__, **how}, sort_keys=True).encode())
    digest.update(repr(CANDIDATES).encode())
    return digest.hexdigest()[:16]
