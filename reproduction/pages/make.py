"""Make pages of docs/results: run experiments, store their data, put tables and numbers in place.

Usage: python reproduction/pages/make.py [--stored | --quick] [--jobs N] PAGE…

``make results`` makes all pages but those that ``make evidence`` makes.

The prose is in the pages; this program replaces the text between ``<!-- NAME -->`` and
``<!-- end NAME -->``. Runs are kept in fpe-out and resume there. With --stored nothing is run: pages are made
from their stored data. With --quick few networks are trained, shortly; pages are written to fpe-out/quick.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path

import common
from common import inject

from fpe._util.files import write_atomically

#: The module of each page, in the order in which pages depend on each other's data. A module has
#: ``run(page)``, which stores data, and ``parts(page)``: for each page that it writes, the texts between the
#: page's marks.
PAGES = {
    "fit": "commands",
    "picture": "picture",
    "budget": "budget",
    "defaults": "defaults",
    "trained": "trained_budget",
    "pruning": "pruning",
    "boolean": "reproduced",
    "vision": "reproduced",
    "splits": "reproduced",
    "rewiring-trained": "trained",
    "rewiring": "reproduced",
    "models": "models",
    "speed": "speed",
    "charlm": "halfway",
    "cnn": "halfway",
    "whole": "whole_page",
    "rivals": "rivals_page",
    "paper": "paper_pages",
    "interpretability": "interpretability",
    "summary": "summary",
}
#: Pages as they are before they are made for the first time.
TEMPLATES = Path(__file__).parent / "templates"
#: Pages that ``make evidence`` makes; they can be made quickly, too.
EVIDENCE = ("rivals", "paper", "interpretability", "summary")


def parts_of(page: str) -> Mapping[str, Mapping[str, str]]:
    """Return what a page's stored data say: for each page that is written, texts by mark."""
    return importlib.import_module(PAGES[page]).parts(page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pages", nargs="+", metavar="PAGE", choices=["all", "evidence", *PAGES], help=", ".join(PAGES)
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stored", action="store_true", help="run nothing")
    how.add_argument("--quick", action="store_true", help=f"few networks; for {', '.join(EVIDENCE)}")
    parser.add_argument("--jobs", type=int, default=common.JOBS, help="networks trained side by side")
    arguments = parser.parse_args()
    common.JOBS = arguments.jobs
    groups = {"all": [page for page in PAGES if page not in EVIDENCE], "evidence": EVIDENCE}
    pages = [page for name in arguments.pages for page in groups.get(name, [name])]
    if arguments.quick:
        if slow := [page for page in pages if page not in EVIDENCE]:
            parser.error(f"--quick is for {', '.join(EVIDENCE)}; {slow[0]} has no quick run")
        common.be_quick()
    for page in pages:
        print(f"== {page}", flush=True)
        if not arguments.stored:
            importlib.import_module(PAGES[page]).run(page)
        for written, parts in parts_of(page).items():
            path = common.RESULTS / f"{written}.md"
            begun = path if path.exists() else TEMPLATES / path.name
            text = inject(begun.read_text(encoding="utf-8"), parts)
            write_atomically(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
