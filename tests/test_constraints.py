"""The pinned versions can be installed with every supported Python."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def test_pinned_versions_can_be_installed_with_the_oldest_python():
    """Of the versions that are installed here, those that need a later Python are pinned for that alone."""
    oldest = "3.10"
    refused = []
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
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
