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
PARTS = {"validation": 0.04, "test": 0.08}
#: So many characters at most of each module that is held out: some are a hundred times as long as others.
HELD_OUT = 10_000
#: Folders that are left out: the tables of code pages, which are written by a program.
LEFT_OUT = ("encodings",)
#: Byte pairs, and from how many characters they are learned.
PAIRS, PAIRS_FROM = 512, 4_000_000


def part_of(module: str) -> str:
    """Return the part that a module, named by its path, belongs to: ``learn``, ``validation`` or ``test``."""
    place = int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) / 16**8
    for part, share in PARTS.items():
        if place < share:
            return part
        place -= share
    return "learn"


@functools.cache
def texts(root: Path | None = None) -> dict[str, str]:
    """Return the text of each part; equal modules are read once.

    A module is in one part as a whole, so what is measured on the test part was not learned by heart. `root`
    is the folder of the modules, by default that of Python's own.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    seen: set[str] = set()
    found: dict[str, list[str]] = {"learn": [], **{part: [] for part in PARTS}}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        if "site-packages" in path.parts or text in seen or name.startswith(LEFT_OUT):
            continue
        seen.add(text)
        part = part_of(name)
        found[part].append(text if part == "learn" else text[:HELD_OUT])
    return {part: "\n".join(own) for part, own in found.items()}


@functools.cache
def library(root: Path | None = None) -> dict[str, Tensor]:
    """Return the numbers of the characters of each part, (characters,)."""
    number = np.full(0x110000, len(CHARACTERS) - 1, np.uint8)
    number[[ord(character) for character in CHARACTERS]] = range(len(CHARACTERS))
    codes = {part: np.frombuffer(own.encode("utf-32-le"), np.uint32) for part, own in texts(root).items()}
    return {part: torch.from_numpy(number[own]) for part, own in codes.items()}


@functools.cache
def byte_pairs(characters: int = 8_000_000, root: Path | None = None) -> dict[str, Tensor]:
    """Return the numbers of the byte pairs of each part, of so many characters of it at most: (pairs,).

    The pairs are learned from the part to learn from, by the library ``tokenizers``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PAIRS, initial_alphabet=alphabet, show_progress=False)
    parts = {part: own[:characters] for part, own in texts(root).items()}
    learned.train_from_iterator(parts["learn"][:PAIRS_FROM].splitlines(keepends=True), trainer)
    numbers = {
        part: [np.array(line.ids, np.int16) for line in learned.encode_batch(own.splitlines(keepends=True))]
        for part, own in parts.items()
    }
    return {part: torch.from_numpy(np.concatenate(own)) for part, own in numbers.items()}
