"""Text that every machine has, for small language models: the modules of Python's own library."""

from __future__ import annotations

import functools
import hashlib
import string
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: The characters that are told apart; all others are the last one.
CHARACTERS = "\n" + string.printable.split("\t")[0] + "\ufffd"
#: The share of the modules in each part; the others are the part to learn from.
PARTS = {"validation": 0.025, "test": 0.05}


def part_of(module: str) -> str:
    """Return the part that a module, named by its path, belongs to: ``learn``, ``validation`` or ``test``."""
    place = int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) / 16**8
    for part, share in PARTS.items():
        if place < share:
            return part
        place -= share
    return "learn"


@functools.cache
def library(root: Path | None = None) -> dict[str, Tensor]:
    """Return the numbers of the characters of each part, (characters,); equal modules are read once.

    A module is in one part as a whole, so what is measured on the test part was not learned by heart. `root`
    is the folder of the modules, by default that of Python's own.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    seen: set[str] = set()
    texts: dict[str, list[str]] = {"learn": [], **{part: [] for part in PARTS}}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        if "site-packages" in path.parts or text in seen:
            continue
        seen.add(text)
        texts[part_of(name)].append(text)
    number = np.full(0x110000, len(CHARACTERS) - 1, np.uint8)
    number[[ord(character) for character in CHARACTERS]] = range(len(CHARACTERS))
    codes = {
        part: np.frombuffer("\n".join(own).encode("utf-32-le"), np.uint32) for part, own in texts.items()
    }
    return {part: torch.from_numpy(number[own]) for part, own in codes.items()}
