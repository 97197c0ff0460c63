"""What is in the wheel and in the source distribution, what an index shows; the unrelated package fpe."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import fpe

ROOT = Path(__file__).parents[1]
#: What the repository has, besides hidden files and what was built.
PARTS = (
    *("src", "docs", "examples", "reproduction", "tests"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.py"),
)
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository, in which both distributions are built without a network."""
    folder = tmp_path_factory.mktemp("tree")
    built = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=built)
        else:
            shutil.copy(ROOT / part, folder)
    before = files_of(folder)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, before


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tree):
    (file,) = (tree[0] / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_library_and_nothing_else(tree, wheel):
    own = {name.removeprefix("src/") for name in tree[1] if name.startswith("src/fpe/")}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == own
    assert {
        "fpe/py.typed",
        "fpe/packing/sparse.c",
        "fpe/packing/blocks.c",
        "fpe/io/c/unrolled.py",
        "fpe/__main__.py",
    } <= found


def test_the_source_distribution_has_all_files(tree):
    (file,) = (tree[0] / "dist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        found = {entry.name.partition("/")[2] for entry in archive.getmembers() if entry.isfile()}
    assert tree[1] - found == set()
    assert not [name for name in found if "__pycache__" in name or name.startswith("reproduction/src/fpe-")]


def test_an_index_shows_what_this_is(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("fixed-parameter-expansion", fpe.__version__)
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.10"
    classifiers = metadata.get_all("Classifier")
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= {*classifiers}
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= {*urls}
    files = {url.removeprefix(f"{urls['Repository']}/blob/main/") for url in urls.values() if "/blob/" in url}
    assert all((ROOT / file).is_file() for file in files)


def test_classifiers_name_the_versions_of_python_that_were_tried(metadata):
    named = {c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") if "Python :: 3." in c}
    page = (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    tried = [
        line.split("|")[1]
        for line in page.splitlines()
        if line.startswith("| 3.") and "not tried" not in line
    ]
    assert named == {".".join(each.strip().split(".")[:2]) for line in tried for each in line.split(",")}


def test_links_of_the_long_description_lead_to_files_of_this_version(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    text, readme = metadata.get_payload(), (ROOT / "README.md").read_text(encoding="utf-8")
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    links, before = (re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", each) for each in (text, readme))
    assert len(links) == len(before) > 20
    for (image, url), (_, link) in zip(links, before, strict=True):
        kind = "raw" if image else "blob"
        absolute = f"{urls['Repository']}/{kind}/v{fpe.__version__}/{link}"
        assert url == (link if link.startswith("https://") else absolute)
    assert sum(bool(image) for image, _ in links) == 1


def test_the_command_of_this_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "fpe", "--version"], capture_output=True, text=True, check=True
    )
    assert fpe.__version__ in done.stdout


@pytest.mark.parametrize("left", [True, False], ids=["replaced", "removed"])
@pytest.mark.parametrize(
    "code",
    ["-m fpe --help", "-c from~fpe.cli.main~import~main", "-c import~fpe.errors"],
)
def test_the_unrelated_package_fpe_over_this_one_is_named(tmp_path, code, left):
    """Its folder is FPE, which is fpe where case is ignored; its __init__.py is empty."""
    shutil.copytree(ROOT / "src/fpe", tmp_path / "fpe", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fpe/__init__.py").unlink()
    if left:
        (tmp_path / "fpe/__init__.py").touch()
    # Without site-packages, where fpe is whole.
    command = [sys.executable, "-S", *(word.replace("~", " ") for word in code.split())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(rf"^ImportError: the folder {tmp_path}/fpe .*pip uninstall fpe fixed", last)
