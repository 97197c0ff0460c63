"""The text for small language models: each module is in one part, always the same."""

import sysconfig
from pathlib import Path

import pytest

from fpe_reproduction.text import CHARACTERS, PARTS, library, part_of


def test_a_share_of_the_modules_is_held_out():
    parts = [part_of(f"module{i}.py") for i in range(20_000)]
    for part, share in PARTS.items():
        assert parts.count(part) / len(parts) == pytest.approx(share, rel=0.1)
    assert part_of("module7.py") == parts[7]


def test_characters_are_told_apart():
    assert len(set(CHARACTERS)) == len(CHARACTERS) == 97


def test_a_module_is_read_into_its_part_alone():
    texts = {part: "".join(CHARACTERS[i] for i in numbers) for part, numbers in library().items()}
    source = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8")
    assert [part for part, text in texts.items() if source.strip() in text] == [part_of("argparse.py")]
    assert len(texts["learn"]) > 5e6
