"""The text for small language models: each module is in one part, always the same."""

import pytest

from fpe_reproduction.text import CHARACTERS, HELD_OUT, PARTS, library, part_of, texts


def test_a_share_of_the_modules_is_held_out():
    parts = [part_of(f"module{i}.py") for i in range(20_000)]
    for part, share in PARTS.items():
        assert parts.count(part) / len(parts) == pytest.approx(share, rel=0.1)
    assert part_of("module7.py") == parts[7]


def test_characters_are_told_apart():
    assert len(set(CHARACTERS)) == len(CHARACTERS) == 97


def test_a_module_is_read_into_its_part_alone_and_equal_ones_once(tmp_path):
    (tmp_path / "encodings").mkdir()
    texts = {f"module{i}.py": f"x = {i}\n" for i in range(200)}
    for name, text in {
        **texts,
        "copy.py": texts["module0.py"],
        "other.py": "\u00e4",
        "encodings/a.py": "\u00e4",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = {part: "".join(CHARACTERS[i] for i in numbers) for part, numbers in library(tmp_path).items()}
    for i in range(1, 200):
        name = f"module{i}.py"
        assert [part for part, text in found.items() if f"x = {i}\n" in text] == [part_of(name)]
    assert sum(text.count("x = 0\n") for text in found.values()) == 1
    assert sum(text.count(CHARACTERS[-1]) for text in found.values()) == 1


def test_no_held_out_module_outweighs_the_others(tmp_path):
    for i in range(100):
        (tmp_path / f"module{i}.py").write_text(f"{i:02}" * 15_000, encoding="utf-8")
    names = [part_of(f"module{i}.py") for i in range(100)]
    for part, text in texts(tmp_path).items():
        each = 30_000 if part == "learn" else HELD_OUT
        assert len(text.replace("\n", "")) == each * names.count(part) > 0
