"""Make pages of docs/results: run experiments, store their data, put tables and numbers in place.

Usage: python reproduction/pages/make.py [--stored] [--jobs N] PAGE…    (``make results`` makes all)

The prose is in the pages; this program replaces the text between ``<!-- NAME -->`` and
``<!-- end NAME -->``. Runs are kept in fpe-out and resume there. With --stored nothing is run: pages are made
from their stored data.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

import common
from common import RESULTS, inject

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
}


def parts_of(page: str) -> Mapping[str, Mapping[str, str]]:
    """Return what a page's stored data say: for each page that is written, texts by mark."""
    return importlib.import_module(PAGES[page]).parts(page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", metavar="PAGE", choices=["all", *PAGES], help=", ".join(PAGES))
    parser.add_argument("--stored", action="store_true", help="run nothing")
    parser.add_argument("--jobs", type=int, default=common.JOBS, help="networks trained side by side")
    arguments = parser.parse_args()
    common.JOBS = arguments.jobs
    for page in PAGES if "all" in arguments.pages else arguments.pages:
        print(f"== {page}", flush=True)
        if not arguments.stored:
            importlib.import_module(PAGES[page]).run(page)
        for written, parts in parts_of(page).items():
            path = RESULTS / f"{written}.md"
            text = inject(path.read_text(encoding="utf-8"), parts)
            write_atomically(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
