"""Pages of results have the numbers of their stored data."""

import importlib
import re

import pytest

from evidence import PROGRAMS, page_programs

ROOT = PROGRAMS.parents[1]


@pytest.fixture(scope="module")
def program():
    """Return two of the modules that make pages."""
    with page_programs():
        yield importlib.import_module("make"), importlib.import_module("common")


def numbers(text):
    return re.findall(r"\d[\d.,]*", text)


PAGES = [
    "fit",
    "budget",
    "defaults",
    "trained",
    "pruning",
    "boolean",
    "vision",
    "splits",
    "rewiring-trained",
    "rewiring",
    "models",
    "speed",
    "charlm",
    "cnn",
    "whole",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_numbers_of_its_data(page, program):
    make, common = program
    for written, parts in make.parts_of(page).items():
        text = (common.RESULTS / f"{written}.md").read_text(encoding="utf-8")
        assert numbers(common.inject(text, parts)) == numbers(text)


def test_every_page_is_made_by_a_program_and_named_in_it(program):
    make, common = program
    made = [page for page in make.PAGES if page not in make.EVIDENCE]  # those wait for their first run
    assert [*PAGES, "picture"] == sorted(made, key=[*PAGES, "picture"].index)
    text = "".join(path.read_text(encoding="utf-8") for path in common.RESULTS.glob("*.md"))
    assert set(re.findall(r"pages/make\.py ([a-z-]+)", text)) <= set(make.PAGES)
    for program_of_page in re.findall(r"python (reproduction/\w+/\w+\.py)", text):
        assert (ROOT / program_of_page).is_file()


def test_runs_of_different_code_are_not_mixed(program):
    _, common = program
    runs = [{"depends": {"code": code}, "provenance": {"commit": f"at-{code}"}} for code in "aab"]
    common.same_code(runs[:2], "it")
    with pytest.raises(ValueError, match="it were made by different code, at at-a, at-b"):
        common.same_code(runs, "it")


def test_a_part_stands_between_its_marks(program):
    _, common = program
    page = "It is <!-- n -->1<!-- end n --> of 3.\n\n<!-- t -->\n<!-- end t -->\n"
    parts = {"n": "2", "t": common.table(["a"], [["b|c"]])}
    filled = common.inject(page, parts)
    assert filled == (
        "It is <!-- n -->2<!-- end n --> of 3.\n\n<!-- t -->\n| a |\n| --- |\n| b\\|c |\n<!-- end t -->\n"
    )
    assert common.inject(filled, parts) == filled
    with pytest.raises(ValueError, match="no place for other"):
        common.inject(page, {"other": ""})


def test_the_picture_of_the_overview_is_drawn(program, tmp_path, monkeypatch):
    _, common = program
    picture = importlib.import_module("picture")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(picture, "RESULTS", tmp_path / "results")
    picture.run("picture")
    assert (tmp_path / "images" / "expansion.png").stat().st_size > 10_000
    assert common.RESULTS != picture.RESULTS


def test_a_halfway_experiment_trains_and_expands(program, monkeypatch):
    """Two widths of a tiny run: all networks have one count, and the dense one keeps its optimizer."""
    pytest.importorskip("transformers")
    halfway = importlib.import_module("halfway")
    monkeypatch.setattr(halfway.CharLM, "steps", 4)
    monkeypatch.setattr(
        halfway.CharLM, "measure", lambda self, model: {"validation": self.loss(model, self.held_out[:200])}
    )
    record = halfway.compare("charlm", size=32, seed=0)
    assert list(record["kinds"]) == ["dense", halfway.NEW_OPTIMIZER, *halfway.CharLM.ways]
    assert len({kind["nonzero"] for kind in record["kinds"].values()}) == 1


def test_no_line_of_a_paragraph_begins_with_a_mark():
    """A comment at the beginning of a line would end the paragraph."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *(PROGRAMS / "templates").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?m)^<!-- [\w-]+ -->[^\n]", text), page
