"""Pages of the site that are files elsewhere: CONTRIBUTING.md, CHANGELOG.md, all pages of docs/evidence.

The interactive page of the evidence is made here, of its data.
"""

import posixpath
import re
import tempfile
from pathlib import Path

from mkdocs.structure.files import File

from fpe_reproduction.report.evidence import write_evidence

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "evidence" / "data"
#: The page of each file at the root of the repository.
PAGES = {"CONTRIBUTING.md": "contributing/index.md", "CHANGELOG.md": "changelog.md"}
#: The pages of the evidence that come first in the navigation, where they are.
FIRST = ("summary", "rivals", "transformers-and-cnns", "interpretability", "paper")


def on_config(config):
    """Put the pages of docs/evidence into the navigation where it says ``evidence/*.md``."""
    names = sorted(page.stem for page in ROOT.glob("docs/evidence/*.md"))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    pages = [f"evidence/{name}.md" for name in names]
    for section in config.nav:
        for name, items in section.items():
            section[name] = [
                item for entry in items for item in (pages if entry == "evidence/*.md" else [entry])
            ]
    return config


def on_files(files, config):
    """Add the pages, with links that are relative to them."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, page)))
    if DATA.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            page = write_evidence(DATA, Path(folder) / "report.html")
            content = page.read_text(encoding="utf-8")
        files.append(File.generated(config, "evidence/report.html", content=content))
    return files


def relinked(text, page):
    """Change links to ``docs/…``, and to pages at the root, into links from `page`."""

    def link(match):
        target = PAGES.get(match[1], match[1].removeprefix("docs/"))
        return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}"

    return re.sub(r"\]\((docs/[^)#]+|[A-Z]+\.md)", link, text)
