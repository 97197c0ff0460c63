"""Every example in docstrings, README and docs does what it says."""

import contextlib
import datetime
import doctest
import importlib.util
import io
import json
import pkgutil
import re
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

import fpe
from fpe_reproduction.experiments.findings import verdict
from fpe_reproduction.report.text import plain

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Made with the site, of the data of the evidence.
REPORT = ROOT / "docs" / "evidence" / "report.html"
#: Functions and classes of public modules that only fpe itself uses.
HELPERS = {
    "fpe.errors.raise_problems",
    "fpe.errors.did_you_mean",
    "fpe.integrations.events.metrics",
    "fpe.integrations.events.rewirer_among",
    "fpe.integrations.lightning.network_of",
}
REFERENCE = ROOT / "docs" / "reference"
MODULES = ["fpe", *(module.name for module in pkgutil.walk_packages(fpe.__path__, "fpe."))]
if importlib.util.find_spec("triton") is None:
    MODULES.remove("fpe.packing.triton_kernel")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    module = importlib.import_module(name)
    with torch.random.fork_rng(devices=[]):
        result = doctest.testmod(module, extraglobs={"fpe": fpe, "torch": torch})
    assert result.failed == 0


def test_docstrings_have_examples_at_all():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(found) >= 8


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def quick(block):
    """Return a block of a tutorial that uses two seeds and two epochs; `make docs` runs all of them."""
    return re.sub(r"^(seeds = range\(|epochs = )\d+", r"\g<1>2", block, flags=re.MULTILINE)


def test_the_readme_has_examples():
    assert len(blocks(ROOT / "README.md")) >= 2


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_pages(page, tmp_path, monkeypatch):
    """The blocks of one page run one after another in one namespace; what they claim by print is true."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")  # figures open no window
    namespace = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), torch.random.fork_rng(devices=[]):
        for number, block in enumerate(blocks(page)):
            file = tmp_path / f"{page.stem}-{number}.py"  # nnsight reads the code of its blocks there
            file.write_text(quick(block), encoding="utf-8")
            exec(compile(quick(block), str(file), "exec"), namespace)
    if "nnsight" in sys.modules:  # it gives every object a method `save`, which exporting to ONNX trips over
        nnsight_c = importlib.import_module("nnsight._c")
        nnsight_c.unmount("save")
    assert "False" not in output.getvalue().splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_pages_link_to_is_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    targets = [page.parent / link for link in links]
    assert [target for target in targets if not target.exists() and target != REPORT] == []


def public_names(module):
    """Return what a public module offers: its `__all__`, or all functions and classes that it defines."""
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    return [f"{module.__name__}.{name}" for name in names if not name.startswith("_")]


def test_every_public_name_stands_on_one_page_of_the_reference():
    modules = ["fpe", "fpe.data", "fpe.graph", "fpe.metrics", "fpe.rewiring", "fpe.sklearn", "fpe.training"]
    modules += [
        "fpe.errors",
        "fpe.training.ensemble",
        "fpe.integrations.events",
        "fpe.integrations.hub",
        "fpe.integrations.huggingface",
        "fpe.integrations.lightning",
    ]
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    shown = re.findall(r"^::: (fpe\.\S+)$", pages, re.MULTILINE)
    assert len(shown) == len({*shown})
    objects = [resolved(name) for name in shown]
    missing = [
        name
        for module in modules
        for name in public_names(importlib.import_module(module))
        if name not in HELPERS and not any(resolved(name) is known for known in objects)
    ]
    assert missing == []


def resolved(name):
    """Return the object of a dotted name."""
    value = fpe
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    commands = re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(commands) <= set(targets)


def test_the_version_is_one():
    """The newest section of the changelog with a version has a day; changes after it are unreleased."""
    citation, changes, other = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("CITATION.cff", "CHANGELOG.md", "reproduction/pyproject.toml")
    )
    assert f"\nversion: {fpe.__version__}\n" in citation
    assert f'\nversion = "{fpe.__version__}"\n' in other
    heads = [head for head in re.findall(r"^## (.+)$", changes, re.MULTILINE) if head != "Unreleased"]
    version, day = heads[0].split(" – ")
    assert version == fpe.__version__
    assert datetime.date.fromisoformat(day).isoformat() == day


@pytest.mark.parametrize("page", ["boolean", "vision", "rewiring", "splits"])
def test_verdicts_of_a_page_are_those_of_its_data(page):
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text()
    stored = [json.loads(path.read_text()) for path in (ROOT / "docs" / "results" / page).glob("*.json")]
    claims = [claim for result in stored for claim in result.get("claims", [])]
    verdicts = [verdict(claim) for claim in claims]
    for claim, said in zip(claims, verdicts, strict=True):
        said = said if said == "agrees" else f"**{said}**"
        assert f"| {plain(claim['paper'])} | {plain(claim['ours'])} | {said} |" in text
    if counted := re.search(r"\*\*(\d+) of (\d+) statements", text):
        assert [int(n) for n in counted.groups()] == [verdicts.count("agrees"), len(claims)]
