"""The long description for package indexes: README.md with absolute links. All else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def matched(pattern: str, file: str) -> str:
    """Return what a file of the repository says about itself, by a pattern of one group."""
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{file} has no line like {pattern}")
    return found[1]


def long_description() -> str:
    """Return README.md, whose relative links and images lead to this version's tag in the repository."""
    repository = matched(r'^Repository = "(.+)"$', "pyproject.toml")
    tag = "v" + matched(r'^__version__ = "(.+)"$', "src/fpe/__init__.py")

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"  # an image, or a page
        return f"{match[1]}[{match[2]}]({repository}/{kind}/{tag}/{match[3]})"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", link, text)


setup(long_description=long_description(), long_description_content_type="text/markdown")
