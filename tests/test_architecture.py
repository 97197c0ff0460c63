"""Data flows one way: a module imports only from those that stand above it in the picture of the house."""

import ast
import re
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fpe

SOURCE = Path(fpe.__file__).parent
PICTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
#: The face loads names of all modules when they are used; the version is a number.
APART = ("__init__", "_version")
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "_version.py" and path != SOURCE / "__init__.py"
}


def pictured():
    """Return the places in the picture from top to bottom: "graph", "graph.groups", …, "choice", …"""
    tree = PICTURE.read_text(encoding="utf-8").split("```")[1]
    places, package = [], ""
    for indent, names in re.findall(r"^( {2}| {4})((?:[\w*]+(?:\.py|/)(?:, )?)+)", tree, re.MULTILINE):
        for name in re.findall(r"([\w*]+)(?:\.py|/)", names):
            places.append(name if len(indent) == 2 else f"{package}.{name}")
            package = name if len(indent) == 2 else package
    return [place for place in places if place not in APART]


PLACES = pictured()


def place_of(module):
    """Return the number of a module's place or else of its folder's; for the face of a package its last."""
    parts = module.split(".")
    if parts[1:] == ["__init__"]:
        return max(i for i, place in enumerate(PLACES) if f"{place}.".startswith(f"{parts[0]}."))
    for name in (".".join(parts[:2]), parts[0]):
        for match in (str.__eq__, fnmatch):
            for i, place in enumerate(PLACES):
                if match(name, place):
                    return i
    raise AssertionError(f"{PICTURE.name} has no place for {module}")


def imported(path):
    """Return the modules of fpe that a file names in imports, those within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not followed"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first != "fpe":
                continue
            while rest and rest not in MODULES and f"{rest}.__init__" not in MODULES:
                rest = rest.rpartition(".")[0]
            if rest:
                found.add(rest if rest in MODULES else f"{rest}.__init__")
            else:
                assert name.startswith("fpe._version"), f"{path}: import {name} from where it is made"
    return found


def test_the_picture_shows_every_module():
    tops = {name.split(".")[0] for name in MODULES}
    assert tops == {place.split(".")[0] for place in PLACES}
    drawn = {place.split(".")[0] for place in PLACES if "." in place}
    for name in MODULES:
        if name.split(".")[0] in drawn and not name.endswith("__init__"):
            assert "." in PLACES[place_of(name)], f"{PICTURE.name} does not show {name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_those_above_it(module):
    """Modules of one place, such as the files of a folder that is drawn as one, may know each other."""
    above = place_of(module)
    wrong = [other for other in imported(MODULES[module]) if place_of(other) > above]
    assert not wrong, f"{module} stands above {', '.join(wrong)} in {PICTURE.name}"


def test_pinned_versions_can_be_installed_with_the_oldest_python():
    """Of the versions that are installed here, those that need a later Python are pinned for that alone."""
    oldest = "3.10"
    refused = []
    for line in (PICTURE.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        applies = pin.marker is None or pin.marker.evaluate({"python_version": oldest})
        try:
            installed = metadata(pin.name)
        except PackageNotFoundError:
            continue
        needed = SpecifierSet(installed["Requires-Python"] or "")
        if applies and pin.specifier.contains(installed["Version"]) and not needed.contains(f"{oldest}.0"):
            refused.append(f"{line} needs Python {needed}")
    assert refused == []
